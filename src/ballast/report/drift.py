"""What each objective gained over the start, against how far it moved away from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ballast.records.runs import AFTER
from ballast.report.charts.data import Dot, DotChart, Section, Value
from ballast.report.figures import STAGES, Metric, Row, apart, bounded, metrics, result, rows, shown, stages

MOVED = ("base_kl", "demonstrations_kl")
FORGOTTEN = ("forgetting", "nll")


@dataclass(frozen=True)
class _Cost:
    """A metric along x; `relative` takes its difference to the start."""

    metric: Metric
    title: str
    x: str
    relative: bool


def drift(summary: Mapping[str, Any], deciding: Metric) -> Section | None:
    """Return what each objective gained and how far it moved for it; None where no distance was measured."""
    drawn = tuple(chart for cost in _costs(summary, deciding) if (chart := _chart(summary, deciding, cost)) is not None)
    if not drawn:
        return None
    straight = " The grey hollow mark is RL straight from the start." if AFTER in stages(summary) else ""
    lead = f"Up is better, left is closer to the start, the grey mark.{straight}"
    return Section("drift", "Gain and drift", lead, charts=drawn, legend=True)


def _costs(summary: Mapping[str, Any], deciding: Metric) -> list[_Cost]:
    known, found = metrics(summary), []
    moved = next((metric for name in MOVED for metric in known if metric.name == name), None)
    if moved is not None:
        on = moved.task if moved.name == "base_kl" else "the demonstrations"
        title = "Gain against distance from the start"
        found.append(_Cost(moved, title, f"KL to the start on {on}, nats per token", False))
    forgotten = next((one for name in FORGOTTEN for one in known if one.name == name and one != deciding), None)
    if forgotten is not None:
        x = f"rise of {forgotten.name} on {forgotten.task}, nats per token"
        found.append(_Cost(forgotten, "Gain against forgetting", x, True))
    return found


def _chart(summary: Mapping[str, Any], deciding: Metric, cost: _Cost) -> DotChart | None:
    dots = []
    for row in rows(summary, "start", "method"):
        for stage, name in STAGES.items():
            gain, place = _gain(row, stage, deciding), _place(row, stage, cost)
            if gain is not None and place is not None:
                dots.append(Dot(str(row["label"]), name, place, gain))
    gained = f"gain in {deciding.name} over the start"
    return DotChart(cost.title, cost.x, gained, tuple(dots), (0.0, 0.0)) if dots else None


def _place(row: Row, stage: str, cost: _Cost) -> Value | None:
    found = result(row, stage, cost.metric)
    if found is None:
        return None
    if not cost.relative:
        return bounded(shown(found)[0], cost.metric)
    return None if found["to_start"] is None else apart(found["to_start"], cost.metric)


def _gain(row: Row, stage: str, metric: Metric) -> Value | None:
    """Return the difference to the start so that more is better; the start before RL has none."""
    found = result(row, stage, metric)
    if found is None or found["to_start"] is None:
        return None
    value = apart(found["to_start"], metric)
    if metric.sign > 0:
        return value
    low, high = (None if bound is None else -bound for bound in (value.high, value.low))
    return Value(-value.value, low, high)
