"""Rows and weights that changed under their names are never mixed into results that are there."""

import json
import shutil

import pytest

from ballast.compare import run_compare
from ballast.compare.inputs import check_alike
from ballast.errors import BallastError
from ballast.records.folder import BEFORE
from ballast.records.schema import InputRecord
from ballast.report.source import load
from compare_tools import THEN, cell, one_rate, run_quietly, stored_run, task_record, write_inputs


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison that is done, beside what it was made of."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    run_quietly(one_rate(folder, "out", seeds=1))
    return folder


def change_rows(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "completion": "7"}) + "\n" for row in rows))


def change_weights(folder):
    from tiny import tiny_model

    tiny_model(seed=5).save_pretrained(folder)


CHANGES = {
    "data.train": lambda folder: change_rows(folder / "rows.jsonl"),
    "task test": lambda folder: change_rows(folder / "test.jsonl"),
    "model": lambda folder: change_weights(folder / "model"),
}


@pytest.fixture
def copied(done, tmp_path, request):
    """The same in place of the first: paths in records stay those of the recipe."""
    kept = tmp_path / "kept"
    shutil.copytree(done, kept)
    yield done
    shutil.rmtree(done)
    shutil.copytree(kept, done)


@pytest.mark.parametrize("key", CHANGES)
def test_going_on_after_a_change_is_refused_and_leaves_everything_as_it_was(copied, key):
    plan = (copied / "out" / "compare.json").read_bytes()
    CHANGES[key](copied)
    with pytest.raises(BallastError, match=rf"{key} \(.*\) has changed since this run.*put the old content back"):
        run_compare(one_rate(copied, "out", seeds=2), say=lambda _: None)
    assert (copied / "out" / "compare.json").read_bytes() == plan


def test_what_is_unchanged_goes_on_and_the_plan_says_what_it_was_made_of(copied):
    assert run_quietly(one_rate(copied, "out", seeds=1))["complete"]
    inputs = json.loads((copied / "out" / "compare.json").read_text())["inputs"]
    assert set(inputs) == {"model", "data.train", "task validation", "task test", "task text"}
    [record] = [json.loads(path.read_text()) for path in (copied / "out" / "cells").glob("sft*/run.json")]
    assert record["inputs"] == {key: inputs[key] for key in ("model", "data.train")}
    [base] = [json.loads(line) for line in (copied / "out" / "base" / "evals.jsonl").read_text().splitlines()]
    assert base["inputs"] == record["inputs"]
    assert {task["name"]: task["rows"] for task in base["tasks"]} == {
        name: inputs[f"task {name}"]["digest"] for name in ("validation", "test", "text")
    }


def test_a_row_with_rows_of_its_own_is_made_of_them_and_refused_when_they_change(done, tmp_path):
    (done / "few.jsonl").write_text("".join((done / "rows.jsonl").read_text().splitlines(keepends=True)[:4]))
    few = {"label": "few", "name": "sft", "data": str(done / "few.jsonl")}
    then = {"rl": {**THEN["rl"], "steps": 1}}
    recipe = one_rate(done, tmp_path / "own", objectives=["sft", few], seeds=1, then=then)
    assert run_quietly(recipe)["complete"]
    plan = json.loads((tmp_path / "own" / "compare.json").read_text())["inputs"]
    assert plan["data.train"]["digest"] != plan["data.train of few"]["digest"]
    for label, key in (("sft", "data.train"), ("few", "data.train of few")):
        [path] = (tmp_path / "own" / "cells").glob(f"{label}-*/run.json")
        assert json.loads(path.read_text())["inputs"]["data.train"] == plan[key]
        # What follows asks the recipe's rows, whatever the row was trained on.
        after = json.loads((path.parent / "rl" / "run.json").read_text())
        assert after["inputs"]["data.train"] == plan["data.train"]
    assert run_quietly(recipe)["complete"]
    change_rows(done / "few.jsonl")
    with pytest.raises(BallastError, match=r"few-.*data.train \(.*few.jsonl\) has changed since this run"):
        run_compare(recipe, say=lambda _: None)


def test_records_of_earlier_versions_have_no_digests_and_are_taken(copied):
    for path in (copied / "out").rglob("run.json"):
        record = json.loads(path.read_text())
        del record["inputs"]
        path.write_text(json.dumps(record))
    for path in (copied / "out").rglob("evals.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line.pop("inputs", None)
            for task in line["tasks"]:
                del task["rows"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    CHANGES["data.train"](copied)
    assert run_quietly(one_rate(copied, "out", seeds=1))["complete"]


def made(label, rows="a", task="b", **facts):
    return stored_run(
        cell(label, 1e-3, 1),
        BEFORE,
        {"test": task_record({"nll": 1.0}, rows=task, settings={"data": "test.jsonl"})},
        inputs={"data.train": InputRecord(source=facts.pop("source", "rows.jsonl"), digest=rows)},
        path=label,
    )


def test_a_table_holds_one_content_under_one_name():
    check_alike([made("sft"), made("dft"), made("ift", rows="c", source="other.jsonl")])
    with pytest.raises(BallastError, match=r"^dft: data.train \(rows.jsonl\) had other content than for sft"):
        check_alike([made("sft"), made("dft", rows="c")])
    few, many = (task_record({"nll": 1.0}, counts={"rows": n}) for n in (8, 9))
    short = [stored_run(cell(label, 1e-3, 1), BEFORE, {"test": one}) for label, one in (("a", few), ("b", many))]
    with pytest.raises(BallastError, match=r"number of rows of task test .* had other content"):
        check_alike(short)
    with pytest.raises(BallastError, match=r"^dft: task test \(test.jsonl\) had other content than for sft"):
        check_alike([made("sft"), made("dft", task="c")])


def test_a_report_on_loose_runs_refuses_them_too(copied, tmp_path):
    [sft, dft] = [next((copied / "out" / "cells").glob(f"{label}*")) for label in ("sft", "dft")]
    record = json.loads((dft / "run.json").read_text())
    load([sft, dft])
    record["inputs"]["data.train"]["digest"] = "0"
    (dft / "run.json").write_text(json.dumps(record))
    with pytest.raises(BallastError, match=r"data.train .* had other content than for"):
        load([sft, dft])
