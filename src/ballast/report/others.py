"""All other metrics, a line for each and a column for each row of the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ballast.records.runs import BEFORE
from ballast.report.charts.data import Cell, Section, Table
from ballast.report.figures import STAGES, Metric, best_of, metrics, ranked, result, rows, stages
from ballast.report.sections.results import NONE, cell


def everything(summary: Mapping[str, Any], deciding: Metric | None) -> Section | None:
    """Return a table of all other metrics for each stage, None where there is none."""
    others = _ordered([metric for metric in metrics(summary) if metric != deciding])
    if not others:
        return None
    tables = [_table(summary, stage, others) for stage in stages(summary) or [BEFORE]]
    lead = "↑ more is better, ↓ less is better, others are neither; ★ marks the best of the objectives."
    return Section("metrics", "All other metrics", lead, tables=tuple(tables))


def _ordered(listed: list[Metric]) -> list[Metric]:
    """Return the metrics with pass@1, pass@2, … of a task by rising k, where the first of them stood."""
    place = {(metric.task, _family(metric)): at for at, metric in reversed(list(enumerate(listed)))}
    return sorted(listed, key=lambda metric: (place[metric.task, _family(metric)], _count(metric)))


def _family(metric: Metric) -> str:
    return metric.name.partition("@")[0]


def _count(metric: Metric) -> int:
    count = metric.name.partition("@")[2]
    return int(count) if count.isdecimal() else 0


def _table(summary: Mapping[str, Any], stage: str, listed: list[Metric]) -> Table:
    measured = [row for row in rows(summary) if stage in row["stages"] or row["kind"] == "start"]
    lines = []
    for metric in listed:
        best = {row["label"] for row, _ in best_of(ranked(summary, stage, metric))} if metric.sign else set()
        found = [(row, result(row, stage, metric)) for row in measured]
        figures = [NONE if one is None else cell(one, metric, row["label"] in best) for row, one in found]
        lines.append((Cell(f"{metric.name} {metric.arrow}".strip(), metric.task), *figures))
    return Table(("", *(str(row["label"]) for row in measured)), tuple(lines), STAGES[stage])
