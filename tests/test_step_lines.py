"""Lines that a run says as it goes: few enough to read, with the time that is left."""

from types import SimpleNamespace

import pytest

from ballast.pipeline import step_lines as module
from ballast.pipeline.step_lines import step_lines


def told(entries, steps, monkeypatch, seconds=2.0, **options):
    clock, said = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    tell = step_lines(said.append, ("loss", "nll"), **options)
    for step, entry in entries:
        clock[0] = seconds * step
        tell(entry, SimpleNamespace(global_step=step, max_steps=steps))
    return said


def test_a_line_has_the_step_the_metrics_and_the_time_left(monkeypatch):
    entries = [(4, {"loss": 0.41234, "nll": 0.5, "other": 1}), (8, {"loss": 0.3}), (64, {"loss": 0.1, "nll": None})]
    assert told(entries, 64, monkeypatch) == [
        "step 4/64 · loss 0.412 · nll 0.5",
        "step 8/64 · loss 0.3 · 2 min left",
        "step 64/64 · loss 0.1",
    ]
    assert told([(1, {"loss": 1.0}), (2, {"loss": 1.0})], 10, monkeypatch)[1] == "step 2/10 · loss 1 · 16 s left"


@pytest.mark.parametrize(("steps", "count"), [(10, 10), (40, 40), (1000, 41), (977, 41)])
def test_a_long_run_says_no_more_than_a_short_one(steps, count, monkeypatch):
    said = told([(step, {"loss": 1.0}) for step in range(1, steps + 1)], steps, monkeypatch, most=40)
    assert len(said) == count
    assert said[-1].startswith(f"step {steps}/{steps}")


def test_entries_without_the_first_metric_are_no_lines(monkeypatch):
    assert told([(1, {"nll": 1.0}), (2, {"eval_loss": 1.0})], 2, monkeypatch) == []
    step_lines(None, ("loss",))({"loss": 1.0}, SimpleNamespace(global_step=1, max_steps=2))
