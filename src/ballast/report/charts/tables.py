"""Charts as tables, for Markdown: pass@k in full, other curves by their first and last value."""

from __future__ import annotations

from collections.abc import Sequence

from ballast.report.charts.data import Cell, DotChart, Line, LineChart, Section, Table, Value
from ballast.report.text import interval, number


def plain_tables(section: Section) -> list[Table]:
    """Return tables that say what a section's charts show; none where tables stand beside the charts already."""
    if section.tables:
        return []
    curves = [chart for chart in section.charts if isinstance(chart, LineChart)]
    found = [_dots(chart) for chart in section.charts if isinstance(chart, DotChart)]
    found += [_places(chart) for chart in curves if chart.places]
    over_steps = [chart for chart in curves if not chart.places]
    return found + ([_ends(over_steps)] if over_steps else [])


def _dots(chart: DotChart) -> Table:
    rows = (tuple(map(Cell, (f"{dot.label}, {dot.stage}", _spanned(dot.x), _spanned(dot.y)))) for dot in chart.dots)
    return Table(("", chart.x, chart.y), tuple(rows), chart.title)


def _spanned(value: Value) -> str:
    span = interval(value.low, value.high)
    return f"{number(value.value)}{f' ({span})' if span else ''}"


def _places(chart: LineChart) -> Table:
    known = {line.label: dict(line.points) for line in chart.lines}
    rows = tuple((Cell(label), *(Cell(number(own.get(x))) for x in chart.places)) for label, own in known.items())
    return Table((chart.x, *(f"{place:g}" for place in chart.places)), rows, chart.title)


def _ends(charts: Sequence[LineChart]) -> Table:
    labels = dict.fromkeys(line.label for chart in charts for line in chart.lines)
    rows = tuple((Cell(label), *(Cell(_first_and_last(chart, label)) for chart in charts)) for label in labels)
    return Table(("", *(f"{chart.title}, {chart.y}" for chart in charts)), rows, "First and last point of each curve")


def _first_and_last(chart: LineChart, label: str) -> str:
    line: Line | None = next((line for line in chart.lines if line.label == label), None)
    if line is None:
        return "–"
    return f"{number(line.points[0][1])} → {number(line.points[-1][1])}"
