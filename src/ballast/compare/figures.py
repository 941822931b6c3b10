"""What a summary says of metrics: which decides, which interval is shown, whether a difference is beyond noise."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ballast.compare.numbers import ROUNDING, percentage
from ballast.errors import BallastError, suggest
from ballast.records.folder import AFTER, BEFORE
from ballast.records.summary import Better, Difference, Result, Row, Summary

SFT, RL = "after SFT", "after RL"
STAGES = {BEFORE: SFT, AFTER: RL}
SIGNS: dict[Better, int] = {"higher": 1, "lower": -1, None: 0}
BETTER: dict[int, Better] = {sign: better for better, sign in SIGNS.items()}
COVERAGE = ("over seeds and items", "over seeds, on these items", "over items, for these runs")
"""What an interval covers, the widest first."""
ALPHA = 0.05
WITHIN = "within noise"
SHARES = r"accuracy\w*|chance|(mean|pass|mixed)@\d+"

Entry = tuple[Row, Result]
"""A row with its result of a metric at a stage."""


@dataclass(frozen=True)
class Value:
    """A figure with its interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Metric:
    """A metric of a task; `sign` is 1 where more is better, -1 where less is, 0 where neither."""

    task: str
    name: str
    sign: int

    @property
    def title(self) -> str:
        """The task and the metric, for headings."""
        return f"{self.task}: {self.name}"

    @property
    def phrase(self) -> str:
        """The task and the metric, for sentences."""
        return f"{self.task} {self.name}"

    @property
    def share(self) -> bool:
        """Whether it is a share of items or answers."""
        return re.fullmatch(SHARES, self.name) is not None

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {1: "↑", -1: "↓"}.get(self.sign, "")


def metrics(summary: Summary) -> list[Metric]:
    """Return every metric of every reported task, in the order of the tasks."""
    return [
        Metric(task.name, name, SIGNS[metric.better]) for task in summary.tasks for name, metric in task.metrics.items()
    ]


def deciding(summary: Summary, wanted: str | None = None) -> Metric | None:
    """Return the metric that the answer is about; None where nothing was measured.

    That is the one asked for, as ``metric`` or ``task/metric``; else the metric that chose the rates, on the first
    reported task that has it; else the first that knows a better and a worse.

    Raises:
        BallastError: the one asked for was not measured, or has no better and worse.
    """
    measured = metrics(summary)
    if wanted is not None:
        return _wanted(measured, wanted)
    ordered = [metric for metric in measured if metric.sign]
    chose = summary.choose_by.metric if summary.choose_by is not None else None
    return next((metric for metric in ordered if metric.name == chose), next(iter(ordered), None))


def _wanted(measured: Sequence[Metric], wanted: str) -> Metric:
    metric = next((one for one in measured if wanted in (one.name, f"{one.task}/{one.name}")), None)
    if metric is None:
        names = [f"{one.task}/{one.name}" for one in measured]
        raise BallastError(f"--metric {wanted}: was not measured in these runs{suggest(wanted, names)}")
    if not metric.sign:
        raise BallastError(
            f"--metric {wanted}: has no better and worse, so no objective could be best by it; choose an accuracy, "
            "pass@k or a negative log-likelihood"
        )
    return metric


def rows(summary: Summary, *kinds: str) -> list[Row]:
    """Return the rows of these kinds: ``start`` (the base model), ``method``, ``random``; all without any."""
    return [row for row in summary.rows if not kinds or row.kind in kinds]


def contestants(summary: Summary) -> list[Row]:
    """Return the methods that are compared: a halving leaves out some."""
    return [row for row in rows(summary, "method") if row.left is None]


def stages(summary: Summary) -> list[str]:
    """Return the stages that any method reached."""
    return [stage for stage in STAGES if any(stage in row.stages for row in rows(summary, "method"))]


def result(row: Row, stage: str, metric: Metric) -> Result | None:
    """Return a row's result at a stage, None where there is none."""
    return row.result(stage, metric.task, metric.name)


def entries(summary: Summary, stage: str, metric: Metric, *kinds: str) -> Iterator[Entry]:
    """Yield the rows that have a result, with it."""
    for row in rows(summary, *kinds):
        if (measured := result(row, stage, metric)) is not None:
            yield row, measured


def base_result(summary: Summary, stage: str, metric: Metric) -> Result | None:
    """Return what the base model reached at a stage, None where it was not measured."""
    return next((measured for _, measured in entries(summary, stage, metric, "start")), None)


def ranked(summary: Summary, stage: str, metric: Metric) -> list[Entry]:
    """Return the methods that were measured at a stage, the best mean first."""
    measured = entries(summary, stage, metric, "method")
    return sorted(measured, key=lambda entry: -metric.sign * mean(entry[1]))


def best_of(order: Sequence[Entry]) -> list[Entry]:
    """Return those of `ranked` that share the best mean: several where they are equal but for rounding."""
    return [entry for entry in order if math.isclose(mean(entry[1]), mean(order[0][1]), abs_tol=ROUNDING)]


def starred(summary: Summary, stage: str, metric: Metric) -> set[str]:
    """Return the labels of the best methods; none where all are equal, so that none is better than another."""
    order = ranked(summary, stage, metric) if metric.sign else []
    best = best_of(order) if order else []
    return {row.label for row, _ in best} if len(best) < len(order) or len(order) == 1 else set()


def answers_words(row: Row, stage: str, metric: Metric) -> str:
    """Return what stands beside an accuracy: how many answers were cut off, and that none is right."""
    found = row.answers(stage, metric.task)
    if found is None or not metric.share or not found.total:
        return ""
    none = f"0 of {found.total:,} right" if found.right == 0 else ""
    cut = f"{percentage(found.cut_off / found.total)} cut off" if found.cut_off else ""
    return ", ".join(part for part in (cut, none) if part)


def mean(estimates: Result | Difference) -> float:
    """Return the mean over seeds."""
    value = estimates.over_seeds.value
    assert value is not None, "`Row.result` leaves out results without a value"
    return value


def interval_of(estimates: Result | Difference) -> tuple[Value, str]:
    """Return a mean with its widest known interval, and what it covers (empty without one)."""
    widest_first = (estimates.over_both, estimates.over_seeds, estimates.over_items)
    for estimate, coverage in zip(widest_first, COVERAGE, strict=True):
        if estimate is not None and estimate.low is not None:
            return Value(mean(estimates), estimate.low, estimate.high), coverage
    return Value(mean(estimates)), ""


def clipped(estimates: Result, metric: Metric) -> Value:
    """Return a figure with its widest interval, which ends at 0, and at 1 for a share."""
    value, _ = interval_of(estimates)
    if value.low is None or value.high is None:
        return value
    return Value(value.value, max(value.low, 0.0), min(value.high, 1.0) if metric.share else value.high)


def difference_value(difference: Difference, metric: Metric) -> Value:
    """Return a difference with its widest interval, which ends at -1 and 1 for a share."""
    value, _ = interval_of(difference)
    if value.low is None or value.high is None or not metric.share:
        return value
    return Value(value.value, max(value.low, -1.0), min(value.high, 1.0))


def verdict(difference: Difference) -> str:
    """Return in few words whether a difference is beyond noise; `VERDICTS` has the words for a sentence.

    It is where Holm's adjusted p-value is below 0.05 and the interval over seeds and items excludes 0.
    """
    value, _ = interval_of(difference)
    if difference.p_holm is None:
        return "one seed" if len(difference.seeds) < 2 else "no spread"
    if difference.p_holm >= ALPHA:
        return WITHIN
    if value.low is not None and value.high is not None and value.low <= 0 <= value.high:
        return "across seeds only"
    return "beyond noise"


VERDICTS = {
    "one seed": "not tested, as there is only one seed",
    "no spread": "not tested, as the difference is the same on every seed",
    WITHIN: "within noise",
    "across seeds only": "beyond noise across seeds, but not across items",
    "beyond noise": "beyond noise",
}
