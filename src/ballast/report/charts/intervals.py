"""Interval charts: a row for each label and stage with a dot and its interval, and dashed lines to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from ballast.compare.figures import RL, Value
from ballast.compare.numbers import number
from ballast.report.charts.data import IntervalChart, IntervalRow
from ballast.report.charts.labels import shortened, text_width
from ballast.report.charts.scales import Extent, Scale, linear, robust
from ballast.report.charts.shapes import (
    BOTTOM,
    RIGHT,
    TOP,
    WIDTH,
    Styles,
    arrow,
    css_class,
    figures,
    group,
    mark,
    path,
    said,
    svg,
    text,
    titled,
    x_axis,
)

ROW, GAP = 13.0, 8.0
"""Heights of a row, and of the room between the rows of two labels."""
NAME = 13.0
"""Height of the name of a reference line."""
LABEL_WIDTH, NAME_WIDTH = 118.0, 120.0
EDGE = 8.0
"""Distance of a mark from the edge beyond which its value lies."""


def interval_chart(chart: IntervalChart, styles: Styles) -> Markup:
    """Return the rows; a value that would squash the others is drawn at the edge and written there."""
    left = 14 + max((text_width(shortened(row.label, LABEL_WIDTH)) for row in chart.rows), default=0)
    top = TOP + NAME * max(len(chart.references) - 1, chart.names - 1, 0)
    heights = list(_heights(chart.rows, top))
    bottom = (heights[-1] if heights else top) + (ROW + GAP) / 2 + 3
    keep = [*(value for value, _ in chart.references), *chart.holds]
    extents = [_extent(row.value) for row in chart.rows if row.value is not None]
    scale = linear(robust(extents, keep) if extents else (keep or (0.0, 1.0)), left, WIDTH - RIGHT, count=4)
    parts = [x_axis(chart.x, scale, bottom, top - 8), *_references(chart.references, scale, bottom)]
    parts += _labels(chart.rows, heights, left)
    parts += [_row(row, scale, y, styles) for row, y in zip(chart.rows, heights, strict=True)]
    parts += _not_measured(chart.rows, heights, left)
    return svg(f"{chart.title}: {chart.x}, {len(chart.rows)} rows", parts, bottom + BOTTOM)


def _extent(value: Value) -> Extent:
    low = value.value if value.low is None else value.low
    return low, value.value, value.value if value.high is None else value.high


def _heights(rows: Sequence[IntervalRow], top: float) -> Iterator[float]:
    y = top + (ROW + GAP) / 2 - ROW
    for place, row in enumerate(rows):
        y += ROW if place == 0 or rows[place - 1].label == row.label else ROW + GAP
        yield y


def _labels(rows: Sequence[IntervalRow], heights: Sequence[float], left: float) -> list[str]:
    """Return each label once, beside the middle of its rows."""
    middles = _middles(rows, heights).items()
    return [text(left - 8, y + 3.5, label, "end", "label", LABEL_WIDTH) for label, y in middles]


def _not_measured(rows: Sequence[IntervalRow], heights: Sequence[float], left: float) -> list[str]:
    """Return words beside each label that has no value."""
    known = {row.label for row in rows if row.value is not None}
    middles = _middles(rows, heights).items()
    return [text(left + 5, y + 3.5, "not measured", "start", "name") for label, y in middles if label not in known]


def _middles(rows: Sequence[IntervalRow], heights: Sequence[float]) -> dict[str, float]:
    places: dict[str, list[float]] = {}
    for row, y in zip(rows, heights, strict=True):
        places.setdefault(row.label, []).append(y)
    return {label: sum(ys) / len(ys) for label, ys in places.items()}


def _references(references: Sequence[tuple[float, str]], scale: Scale, bottom: float) -> list[str]:
    lines, names = [], []
    leftmost = min((value for value, _ in references), default=0.0)
    for place, (value, name) in enumerate(references):
        # Names of lines that lie close would run into each other at one height.
        x, y = scale(value), TOP - 11 + NAME * place
        title = titled(f"{name}: {number(value)}")
        lines.append(f'<path class="reference" d="M{x:.1f} {y:.1f}V{bottom:.1f}">{title}</path>')
        outward = len(references) > 1 and value == leftmost
        before = outward or x + 4 + text_width(shortened(name, NAME_WIDTH)) > WIDTH
        names.append(text(x + (-4 if before else 4), y + 4, name, "end" if before else "start", "name", NAME_WIDTH))
    return lines + names


def _row(row: IntervalRow, scale: Scale, y: float, styles: Styles) -> str:
    if row.value is None:
        return ""
    value, drawn = row.value, ""
    side = scale.side(value.value)
    if value.low is not None and value.high is not None and not side:
        drawn = path([(scale.nearest(value.low), y), (scale.nearest(value.high), y)], "whisker")
        drawn += "".join(arrow((scale(end), y), way) for end, way in _cut_off(value, scale))
    x = scale.nearest(value.value) - EDGE * side
    drawn += mark(row.label, styles, (x, y), hollow=row.stage == RL)
    if side:
        anchor = "end" if side > 0 else "start"
        drawn += arrow((x + EDGE * side, y), side) + text(x - 7 * side, y + 3.5, number(value.value), anchor, "edge")
    title = said(f"{row.label}, {row.stage}: {figures(value)}", row.note)
    return group(css_class(row.label, styles), drawn, title)


def _cut_off(value: Value, scale: Scale) -> Iterator[tuple[float, int]]:
    """Yield the ends of the scale beyond which an interval goes on, with the way there."""
    for bound, end in ((value.low, scale.low), (value.high, scale.high)):
        if bound is not None and (side := scale.side(bound)):
            yield end, side
