"""Charts as tables, for Markdown: pass@k in full, other curves by their first and last value."""

from __future__ import annotations

from collections.abc import Sequence

from ballast.compare.figures import Value
from ballast.compare.numbers import interval, number
from ballast.report.charts.data import Cell, DotChart, LineChart, Section, Table


def chart_tables(section: Section) -> list[Table]:
    """Return tables that say what a section's charts show; none where tables stand beside the charts already."""
    if section.tables:
        return []
    curves = [chart for chart in section.charts if isinstance(chart, LineChart)]
    tables = [_dots(chart) for chart in section.charts if isinstance(chart, DotChart)]
    tables += [_at_ticks(chart) for chart in curves if chart.x_ticks]
    over_steps = [chart for chart in curves if not chart.x_ticks]
    return tables + ([_ends(over_steps)] if over_steps else [])


def _dots(chart: DotChart) -> Table:
    rows = (
        tuple(map(Cell, (f"{dot.label}, {dot.stage}", _with_interval(dot.x), _with_interval(dot.y))))
        for dot in chart.dots
    )
    return Table(("", chart.x, chart.y), tuple(rows), chart.title)


def _with_interval(value: Value) -> str:
    span = interval(value.low, value.high)
    return f"{number(value.value)}{f' ({span})' if span else ''}"


def _at_ticks(chart: LineChart) -> Table:
    values = {line.label: dict(line.points) for line in chart.lines}
    rows = tuple((Cell(label), *(Cell(number(own.get(x))) for x in chart.x_ticks)) for label, own in values.items())
    return Table((chart.x, *(f"{x:g}" for x in chart.x_ticks)), rows, chart.title)


def _ends(charts: Sequence[LineChart]) -> Table:
    labels = dict.fromkeys(line.label for chart in charts for line in chart.lines)
    rows = tuple((Cell(label), *(Cell(_first_and_last(chart, label)) for chart in charts)) for label in labels)
    return Table(("", *(f"{chart.title}, {chart.y}" for chart in charts)), rows, "First and last point of each curve")


def _first_and_last(chart: LineChart, label: str) -> str:
    points = next((line.points for line in chart.lines if line.label == label), None)
    return "–" if points is None else f"{number(points[0][1])} → {number(points[-1][1])}"
