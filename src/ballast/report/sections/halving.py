"""Successive halving: what the short runs scored, and which pairs of objective and rate went on."""

from __future__ import annotations

from ballast.compare.figures import Metric, rows
from ballast.compare.numbers import counted, number, rate
from ballast.compare.verdict import left_out
from ballast.records.summary import Row, Summary
from ballast.report.charts.data import MISSING, Cell, Section, Table


def halving(summary: Summary) -> Section | None:
    """Return a table of each rung; None where nothing was halved."""
    found, by = summary.halving, summary.choose_by
    if found is None or by is None:
        return None
    metric = Metric(by.task, by.metric, 0)
    return Section(
        "halving",
        "Short runs",
        f"Whole runs of fewer steps, by {metric.phrase} (not reported above). ★ marks the pairs that went on: the best "
        f"1/{found.eta} of a rung, each with the next smaller rate, and the baseline's best.",
        tables=tuple(_rung(summary, one.steps) for one in found.rungs),
        notes=tuple(f"{line}." for line in left_out(summary)),
    )


def _rung(summary: Summary, steps: int) -> Table:
    there = [row for row in rows(summary, "method") if any(point.rung == steps for point in row.rungs)]
    rates = sorted({point.rate for row in there for point in row.rungs if point.rung == steps})
    lines = tuple((Cell(row.label), *(_cell(row, steps, one) for one in rates)) for row in there)
    return Table(("", *(rate(one) for one in rates)), lines, counted(steps, "step"))


def _cell(row: Row, steps: int, at: float) -> Cell:
    point = next((one for one in row.rungs if (one.rung, one.rate) == (steps, at)), None)
    if point is None or (point.score is None and point.stayed is None):
        return MISSING
    return Cell("failed") if point.score is None else Cell(number(point.score), best=bool(point.stayed))
