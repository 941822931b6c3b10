"""Reading a summary: which metrics it has, which one decides, and which interval is shown of a figure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ballast.errors import BallastError, suggest
from ballast.records.runs import AFTER, BEFORE
from ballast.report.charts.data import RL, SFT, Value
from ballast.report.text import ROUNDING

STAGES = {BEFORE: SFT, AFTER: RL}
SIGNS = {"higher": 1, "lower": -1}
COVERAGE = {
    "over_both": "other seeds and other items",
    "over_seeds": "other seeds on these items",
    "over_items": "other items with these runs",
}
"""What an interval is for, the widest first."""

ALPHA = 0.05
SHARES = r"accuracy\w*|chance|(mean|pass|mixed)@\d+"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A metric of a task; `sign` is 1 where more is better, -1 where less is, 0 where neither."""

    task: str
    name: str
    sign: int

    @property
    def title(self) -> str:
        """Return the metric and its task, in words for headings."""
        return f"{self.name}, {self.task}"

    @property
    def where(self) -> str:
        """Return the metric and its task, in words for sentences."""
        return f"{self.name} on {self.task}"

    @property
    def share(self) -> bool:
        """Whether it is a share of items or answers."""
        return re.fullmatch(SHARES, self.name) is not None

    @property
    def arrow(self) -> str:
        """Return which way is better."""
        return {1: "↑", -1: "↓"}.get(self.sign, "")


def metrics(summary: Mapping[str, Any]) -> list[Metric]:
    """Return every metric of every reported task, in the order of the tasks."""
    found = []
    for task in summary["tasks"]:
        for name, facts in task["metrics"].items():
            found.append(Metric(task["name"], name, SIGNS.get(facts.get("better"), 0)))
    return found


def deciding(summary: Mapping[str, Any], wanted: str | None = None) -> Metric | None:
    """Return the metric that the answer is about; None where nothing was measured.

    That is the one asked for, as ``metric`` or ``task/metric``; else the metric that chose the rates, on the first
    reported task that has it; else the first that knows a better and a worse.

    Raises:
        BallastError: the one asked for was not measured, or has no better and worse.
    """
    known = metrics(summary)
    if wanted is not None:
        return _wanted(known, wanted)
    by = summary.get("choose_by") or {}
    ranked = [metric for metric in known if metric.sign]
    return next((metric for metric in ranked if metric.name == by.get("metric")), next(iter(ranked), None))


def _wanted(known: Sequence[Metric], wanted: str) -> Metric:
    found = next((one for one in known if wanted in (one.name, f"{one.task}/{one.name}")), None)
    if found is None:
        names = [f"{one.task}/{one.name}" for one in known]
        raise BallastError(f"--metric {wanted}: was not measured in these runs{suggest(wanted, names)}")
    if not found.sign:
        raise BallastError(
            f"--metric {wanted}: has no better and worse, so no objective could be best by it; choose an accuracy, "
            "pass@k or a negative log-likelihood"
        )
    return found


def result(row: Row, stage: str, metric: Metric) -> Mapping[str, Any] | None:
    """Return a row's result at a stage, None where there is none."""
    found = row["stages"].get(stage, {}).get("tasks", {}).get(metric.task, {}).get(metric.name)
    return None if found is None or found["over_seeds"]["value"] is None else found


def shown(holder: Mapping[str, Any]) -> tuple[Value, str]:
    """Return a mean with its widest known interval, and what that covers (empty without one)."""
    for key, coverage in COVERAGE.items():
        estimate = holder.get(key)
        if estimate is not None and estimate.get("low") is not None:
            return Value(
                float(holder["over_seeds"]["value"]), float(estimate["low"]), float(estimate["high"])
            ), coverage
    return Value(float(holder["over_seeds"]["value"])), ""


def bounded(value: Value, metric: Metric) -> Value:
    """Return a figure with its interval cut at 0, and at 1 for a share: beyond it cannot lie. Not for differences."""
    if value.low is None or value.high is None:
        return value
    return Value(value.value, max(value.low, 0.0), min(value.high, 1.0) if metric.share else value.high)


def apart(difference: Mapping[str, Any], metric: Metric) -> Value:
    """Return a difference with its widest known interval, that of a share cut at -1 and 1."""
    value, _ = shown(difference)
    if value.low is None or value.high is None or not metric.share:
        return value
    return Value(value.value, max(value.low, -1.0), min(value.high, 1.0))


def rows(summary: Mapping[str, Any], *kinds: str) -> list[Row]:
    """Return the rows of these kinds: ``start``, ``method``, ``random``; all without any."""
    return [row for row in summary["rows"] if not kinds or row["kind"] in kinds]


def with_results(summary: Mapping[str, Any], stage: str, metric: Metric, *kinds: str) -> Iterator[tuple[Row, Any]]:
    """Yield the rows that have a result, with it."""
    for row in rows(summary, *kinds):
        if (found := result(row, stage, metric)) is not None:
            yield row, found


def stages(summary: Mapping[str, Any]) -> list[str]:
    """Return the stages that any method reached."""
    return [stage for stage in STAGES if any(stage in row["stages"] for row in rows(summary, "method"))]


def ranked(summary: Mapping[str, Any], stage: str, metric: Metric) -> list[tuple[Row, Any]]:
    """Return the methods that were measured at a stage, the best mean first."""
    found = list(with_results(summary, stage, metric, "method"))
    return sorted(found, key=lambda pair: -metric.sign * pair[1]["over_seeds"]["value"])


def best_of(order: Sequence[tuple[Row, Any]]) -> list[tuple[Row, Any]]:
    """Return those of `ranked` that share the best mean: several where they are equal but for rounding."""
    means = [found["over_seeds"]["value"] for _, found in order]
    return [pair for pair, mean in zip(order, means, strict=True) if math.isclose(mean, means[0], abs_tol=ROUNDING)]


def verdict(difference: Mapping[str, Any]) -> str:
    """Return in few words whether a difference to the baseline is beyond noise; `VERDICTS` says them in a sentence.

    It is where Holm's adjusted p-value is below 0.05 and the interval for other seeds and items leaves out zero.
    """
    value, _ = shown(difference)
    p = difference.get("p_holm")
    if p is None:
        return "untested" if len(difference["seeds"]) < 2 else "no spread"
    if p >= ALPHA:
        return "within noise"
    if value.low is not None and value.high is not None and value.low <= 0 <= value.high:
        return "on these items"
    return "beyond noise"


VERDICTS = {
    "untested": "one seed, so whether another would say the same is not known",
    "no spread": "the same difference on every seed, so there is no spread to test it against",
    "within noise": "within noise",
    "on these items": "beyond the noise of seeds on these items, but other items could undo it",
    "beyond noise": "beyond noise",
}
