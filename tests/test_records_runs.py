"""Records as values: which run a folder is, what it scored, item by item."""

import itertools
import json

import numpy as np
import pytest

from ballast.errors import BallastError
from ballast.records import write as records
from ballast.records.folder import Store, mark_done, read_run
from ballast.records.runs import AFTER, BEFORE, START, per_item, read_runs

CELL = {"label": "sft", "rate": 1e-3, "seed": 7, "role": "report"}


def task(name, metrics):
    estimate = {"n": 2, "low": None, "high": None, "level": 0.95, "method": "none"}
    return {
        "name": name,
        "kind": "generate",
        "settings": {},
        "metrics": {metric: {**estimate, "value": value} for metric, value in metrics.items()},
    }


ROWS = [
    {"prompt": "1+1=", "scores": [1.0, 0.5], "completions": [{"text": "2"}, {"text": "2 "}]},
    {"prompt": "2+2=", "scores": [0.0, 0.0], "completions": [{"text": "4"}, {"text": "5"}]},
]


def write(folder, *, cell=CELL, metrics=({"mean@2": 0.375},), rows=ROWS, model="trained", **record):
    """Write a finished run that was measured several times."""
    entries = [{"model": model, "tasks": [task("test", each), task("text", {"nll": 1.5})]} for each in metrics]
    records.write_jsonl(folder / "evals.jsonl", entries)
    records.write_jsonl(folder / "evals" / model / "test.jsonl", rows)
    records.write_jsonl(folder / "evals" / model / "text.jsonl", [{"nll": 1.0}, {"nll": 2.0}])
    logs = [{"step": 1, "loss": 2.0, "num_tokens": 50}, {"step": 2, "loss": 1.0, "num_tokens": 90}, {"step": 2}]
    records.write_jsonl(folder / "metrics.jsonl", logs)
    made = {"seconds": {"prepare": 3.0, "train": 1.25}, "objective": {"name": "sft"}, "commit": "c", "device": "cpu"}
    records.write_json(folder / "run.json", {"status": "finished", **made, **record})
    if cell is not None:
        mark_done(folder, cell)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_a_run_is_what_its_record_says(store):
    write(store.cell("any-name"))
    [run], failures = read_runs(store)
    assert failures == []
    assert (run.path, run.label, run.rate, run.seed, run.role, run.stage) == (
        "cells/any-name",
        *CELL.values(),
        BEFORE,
    )
    assert run.budget == {"steps": 2, "tokens": 90, "seconds": 1.25}
    assert run.objective == {"name": "sft"}
    assert run.provenance == {"versions": None, "commit": "c", "device": "cpu"}
    assert run.prompts == {"test": ('"1+1="', '"2+2="')}
    assert run.value("test", "mean@2") == 0.375
    assert run.value("test", "pass@2") is None
    assert run.value("other", "mean@2") is None


def test_every_item_has_a_value_where_scores_were_kept(store):
    metrics = {"mean@2": 0.375, "pass@1": 0.25, "pass@2": 0.5, "mixed@2": 0.5, "distinct@2": 1.5, "entropy": 0.3}
    write(store.cell("a"), metrics=[metrics])
    [[run], _] = read_runs(store)
    assert {name: column.tolist() for name, column in run.items["test"].items()} == {
        "mean@2": [0.75, 0.0],
        "pass@1": [0.5, 0.0],
        "pass@2": [1.0, 0.0],
        "mixed@2": [1.0, 0.0],
        "distinct@2": [1.0, 2.0],
    }
    assert "text" not in run.items


@pytest.mark.parametrize("rows", [[], [ROWS[0], {**ROWS[1], "scores": None}], [{"prompt": "1+1="}]])
def test_an_item_without_scores_leaves_the_task_without_items(store, rows):
    write(store.cell("a"), rows=rows)
    [[run], _] = read_runs(store)
    assert run.items == {}
    assert run.value("test", "mean@2") == 0.375


def test_a_run_that_was_measured_again_is_what_was_measured_last_and_the_start_what_was_first(store):
    write(store.cell("a"), metrics=[{"mean@2": 0.1}, {"mean@2": 0.2}])
    write(store.base, metrics=[{"mean@2": 0.3}, {"mean@2": 0.4}], model="base", cell=None)
    start, run = read_runs(store)[0]
    assert run.value("test", "mean@2") == 0.2
    assert (start.role, start.label, start.path, start.value("test", "mean@2")) == (START, "base", "base", 0.3)


def test_rl_lies_in_its_runs_folder_or_in_that_of_the_start(store):
    write(store.cell("a"))
    write(store.rl("a"))
    write(store.base_rl(8), cell={"label": "base", "rate": None, "seed": 8, "role": "report"})
    assert [(run.path, run.stage, run.seed) for run in read_runs(store)[0]] == [
        ("cells/a", BEFORE, 7),
        ("cells/a/rl", AFTER, 7),
        ("base/rl/s8", AFTER, 8),
    ]


def test_runs_that_are_not_done_are_none(store):
    write(store.cell("unmarked"), cell=None)
    write(store.cell("running"), status="running")
    records.write_json(store.cell("broken") / "run.json", {"status": "failed", "error": "boom", "cell": CELL})
    records.write_json(store.cell("list") / "run.json", [1])
    records.write_json(store.cell("train") / "run.json", {"status": "failed", "error": "of no comparison"})
    store.cell("empty").mkdir()
    (store.root / "cells" / "note.txt").touch()
    runs, [failure] = read_runs(store)
    assert runs == []
    assert (failure.path, failure.label, failure.seed, failure.error) == ("cells/broken", "sft", 7, "boom")
    assert read_run(store.cell("unmarked")) is None


def test_a_finished_run_without_measurements_is_said(store):
    write(store.cell("a"))
    (store.cell("a") / "evals.jsonl").unlink()
    with pytest.raises(BallastError, match=r"cells/a: is finished but has no evals.jsonl; remove the folder"):
        read_runs(store)


@pytest.mark.parametrize("name", ["evals.jsonl", "evals/trained/test.jsonl"])
def test_a_damaged_file_is_said(store, name):
    write(store.cell("a"))
    (store.cell("a") / name).write_text('{"half')
    with pytest.raises(BallastError, match=rf"cells/a/{name}: cannot be read .* remove the run's folder"):
        read_runs(store)


def test_values_of_items_by_counting():
    scores = [[1.0, 1.0, 0.0, 0.9], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    pairs = [list(itertools.combinations(given, 2)) for given in scores]
    passed = [np.mean([any(score >= 1 for score in pair) for pair in some]) for some in pairs]
    assert per_item("pass@2", scores) == pytest.approx(passed)
    assert per_item("accuracy", scores) == pytest.approx([0.725, 0.0, 1.0])
    assert per_item("nll", scores) is None
    assert json.dumps(per_item("mean@4", scores).tolist()) == json.dumps([0.725, 0.0, 1.0])
