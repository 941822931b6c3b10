"""Runs as they were stored: which run a folder is, how far it came, what it scored item by item."""

import itertools
import json

import numpy as np
import pytest

from ballast.errors import BallastError
from ballast.records import write as records
from ballast.records.folder import AFTER, BEFORE, Store
from ballast.records.runs import per_item, read_comparison, read_record, read_runs

CELL = {"label": "sft", "rate": 1e-3, "seed": 7, "role": "report"}


def task(name, metrics):
    estimate = {"n": 2, "low": None, "high": None, "level": 0.95, "method": "none"}
    return {
        "name": name,
        "kind": "generate",
        "counts": {},
        "settings": {},
        "seconds": 1.0,
        "metrics": {metric: {**estimate, "value": value} for metric, value in metrics.items()},
    }


ROWS = [
    {"prompt": "1+1=", "scores": [1.0, 0.5], "completions": [{"text": "2"}, {"text": "2 "}]},
    {"prompt": "2+2=", "scores": [0.0, 0.0], "completions": [{"text": "4"}, {"text": "5"}]},
]
RECIPE = {"seed": 3, "training": {"learning_rate": 2e-4}, "evaluation": {"tasks": [{"name": "test"}]}}


def write(folder, *, cell=CELL, metrics=({"mean@2": 0.375},), rows=ROWS, model="trained", **record):
    """Write a finished run that was measured several times."""
    entries = [{"model": model, "tasks": [task("test", each), task("text", {"nll": 1.5})]} for each in metrics]
    records.write_jsonl(folder / "evals.jsonl", entries)
    records.write_jsonl(folder / "evals" / model / "test.jsonl", rows)
    records.write_jsonl(folder / "evals" / model / "text.jsonl", [{"nll": 1.0}, {"nll": 2.0}])
    logs = [{"step": 1, "loss": 2.0, "num_tokens": 50}, {"step": 2, "loss": 1.0, "num_tokens": 90}, {"step": 2}]
    records.write_jsonl(folder / "metrics.jsonl", logs)
    made = {"seconds": {"prepare": 3.0, "train": 1.25}, "objective": {"name": "sft"}, "commit": "c", "device": "cpu"}
    given = {"schema": 1, "status": "finished", "recipe": RECIPE, **made, "cell": cell, **record}
    records.write_json(folder / "run.json", given)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_a_run_is_what_its_record_says(store):
    write(store.cell("any-name"))
    [run] = read_comparison(store)
    assert (run.done, run.failed, run.is_base) == (True, False, False)
    assert (run.path, run.label, run.rate, run.seed, run.role, run.stage) == (
        "cells/any-name",
        *CELL.values(),
        BEFORE,
    )
    assert run.budget == {"steps": 2, "tokens": 90, "seconds": 1.25}
    assert run.record.objective == {"name": "sft"}
    assert (run.record.versions, run.record.commit, run.record.device) == ({}, "c", "cpu")
    assert [log.step for log in run.log] == [1, 2, 2]
    assert run.result.scores == {"test": ((1.0, 0.5), (0.0, 0.0))}
    assert run.result.prompts == {"test": ('"1+1="', '"2+2="')}
    assert run.value("test", "mean@2") == 0.375
    assert run.value("test", "pass@2") is None
    assert run.value("other", "mean@2") is None


def test_every_item_has_a_value_where_scores_were_kept(store):
    metrics = {"mean@2": 0.375, "pass@1": 0.25, "pass@2": 0.5, "mixed@2": 0.5, "distinct@2": 1.5, "entropy": 0.3}
    write(store.cell("a"), metrics=[metrics])
    [run] = read_comparison(store)
    assert {name: column.tolist() for name, column in run.result.items["test"].items()} == {
        "mean@2": [0.75, 0.0],
        "pass@1": [0.5, 0.0],
        "pass@2": [1.0, 0.0],
        "mixed@2": [1.0, 0.0],
        "distinct@2": [1.0, 2.0],
    }
    assert "text" not in run.result.items


@pytest.mark.parametrize("rows", [[], [ROWS[0], {**ROWS[1], "scores": None}], [{"prompt": "1+1="}]])
def test_an_item_without_scores_leaves_the_task_without_items(store, rows):
    write(store.cell("a"), rows=rows)
    [run] = read_comparison(store)
    assert run.result.items == {}
    assert run.value("test", "mean@2") == 0.375


def test_a_model_that_was_measured_again_is_what_was_measured_last(store):
    write(store.cell("a"), metrics=[{"mean@2": 0.1}, {"mean@2": 0.2}])
    write(store.base, metrics=[{"mean@2": 0.3}, {"mean@2": 0.4}], model="base", cell=None)
    (store.base / "run.json").unlink()
    base, run = read_comparison(store)
    assert run.value("test", "mean@2") == 0.2
    assert (base.is_base, base.done, base.label, base.path) == (True, True, "base", "base")
    assert base.value("test", "mean@2") == 0.4


def test_rl_lies_in_its_runs_folder_or_in_that_of_the_start(store):
    write(store.cell("a"))
    write(store.rl("a"))
    write(store.base_rl(8), cell={"label": "base", "rate": None, "seed": 8, "role": "report"})
    assert [(run.path, run.stage, run.seed) for run in read_comparison(store)] == [
        ("cells/a", BEFORE, 7),
        ("cells/a/rl", AFTER, 7),
        ("base/rl/s8", AFTER, 8),
    ]


def test_runs_that_are_not_done_are_told_by_their_status(store):
    write(store.cell("a"), status="trained")
    write(store.cell("b"), status="running")
    records.write_json(
        store.cell("c") / "run.json", {"schema": 1, "status": "failed", "recipe": {}, "error": "boom", "cell": CELL}
    )
    write(store.cell("of-no-comparison"), cell=None)
    store.cell("empty").mkdir()
    (store.root / "cells" / "note.txt").touch()
    trained, running, failed = read_comparison(store)
    assert [(run.done, run.failed) for run in (trained, running, failed)] == [(False, False)] * 2 + [(False, True)]
    assert (failed.path, failed.label, failed.seed, failed.record.error) == ("cells/c", "sft", 7, "boom")
    assert read_record(store.cell("empty")) is None


def test_a_run_in_progress_may_end_in_half_a_line(store):
    write(store.cell("a"), status="running")
    with (store.cell("a") / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    [run] = read_comparison(store)
    assert [log.step for log in run.log] == [1, 2, 2]


def test_a_record_of_another_version_is_refused_by_name(store):
    records.write_json(store.cell("old") / "run.json", {"status": "finished", "recipe": {}, "cell": CELL})
    with pytest.raises(BallastError, match=r"cells/old/run.json: has no `schema`, so another version .* remove"):
        read_comparison(store)


def test_a_run_on_its_own_is_called_by_its_objective_and_its_rl_like_it(tmp_path):
    write(tmp_path / "mine", cell=None)
    write(tmp_path / "mine" / "rl", cell=None, objective=None, rl={"steps": 1})
    assert [(run.label, run.rate, run.seed, run.stage) for run in read_runs(tmp_path / "mine")] == [
        ("sft", 2e-4, 3, BEFORE),
        ("sft", 2e-4, 3, AFTER),
    ]
    write(tmp_path / "alone", cell=None, objective=None, rl={"steps": 1})
    [alone] = read_runs(tmp_path / "alone")
    assert (alone.label, alone.stage) == ("alone", AFTER)


@pytest.mark.parametrize("model", ["base", "before rl"])
def test_what_a_run_started_from_is_no_result_of_it(tmp_path, model):
    write(tmp_path / "mine", cell=None, model=model)
    [run] = read_runs(tmp_path / "mine")
    assert (run.result, run.done, list(run.measured)) == (None, False, [model])
    write(tmp_path / "unasked", cell=None, model=model, recipe={**RECIPE, "evaluation": {"tasks": []}})
    assert read_runs(tmp_path / "unasked")[0].done


def test_a_finished_run_without_measurements_is_said(store):
    write(store.cell("a"))
    (store.cell("a") / "evals.jsonl").unlink()
    with pytest.raises(BallastError, match=r"cells/a: is finished but has no evals.jsonl; remove the run's folder"):
        read_comparison(store)


@pytest.mark.parametrize("name", ["evals.jsonl", "evals/trained/test.jsonl"])
def test_a_damaged_file_is_said(store, name):
    write(store.cell("a"))
    (store.cell("a") / name).write_text('{"half')
    with pytest.raises(BallastError, match=rf"cells/a/{name}:1: is not JSON .* remove the run's folder"):
        read_comparison(store)


def test_values_of_items_by_counting():
    scores = [[1.0, 1.0, 0.0, 0.9], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    pairs = [list(itertools.combinations(given, 2)) for given in scores]
    passed = [np.mean([any(score >= 1 for score in pair) for pair in some]) for some in pairs]
    assert per_item("pass@2", scores) == pytest.approx(passed)
    assert per_item("accuracy", scores) == pytest.approx([0.725, 0.0, 1.0])
    assert per_item("nll", scores) is None
    assert json.dumps(per_item("mean@4", scores).tolist()) == json.dumps([0.725, 0.0, 1.0])
