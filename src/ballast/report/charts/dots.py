"""Dot charts: labels at places with an interval in each direction, each with its name beside it."""

from __future__ import annotations

from markupsafe import Markup

from ballast.compare.figures import RL, Value
from ballast.compare.numbers import number
from ballast.records.folder import BASE
from ballast.report.charts.data import Dot, DotChart
from ballast.report.charts.labels import Box, Point, around, place, shortened, text_width
from ballast.report.charts.scales import Extent, linear, robust
from ballast.report.charts.shapes import (
    BOTTOM,
    MARK_SIZE,
    RIGHT,
    TOP,
    WIDTH,
    Scales,
    Styles,
    arrow,
    axes,
    css_class,
    figures,
    group,
    left_of,
    mark,
    path,
    said,
    svg,
    text,
)

TALL = 300
"""Height of the chart, which leaves room for names."""
NAME_WIDTH = 110.0


def dot_chart(chart: DotChart, styles: Styles) -> Markup:
    """Return dots with their names; one that would squash the others lies at the edge, its values beside it."""
    bases = [chart.base] if chart.base else []
    y_range = robust([_extent(dot.y) for dot in chart.dots], [y for _, y in bases])
    x_range = robust([_extent(dot.x) for dot in chart.dots], [x for x, _ in bases])
    y_scale = linear(y_range, TALL - BOTTOM, TOP)
    scales = Scales(linear(x_range, left_of(y_scale), WIDTH - RIGHT, count=4), y_scale, styles)
    parts = [axes(chart.x, chart.y, scales.x, scales.y, WIDTH - RIGHT, TALL)]
    origins = [scales.at(*base) for base in bases]
    parts += [group("s-base", mark(BASE, styles, point, title=said(BASE, "before any training"))) for point in origins]
    for label in dict.fromkeys(dot.label for dot in chart.dots):
        dots = [dot for dot in chart.dots if dot.label == label]
        points = [*(origins if label == BASE else []), *(_place(dot, scales) for dot in dots)]
        join = path(points, "join") if len(points) > 1 else ""
        parts.append(group(css_class(label, styles), join + "".join(_dot(dot, scales) for dot in dots)))
    parts += _names(chart, scales, origins)
    return svg(f"{chart.title}: {chart.y} by {chart.x}, {len(chart.dots)} points", parts, TALL)


def _place(dot: Dot, scales: Scales) -> Point:
    return scales.at(dot.x.value, dot.y.value)


def _extent(value: Value) -> Extent:
    low = value.value if value.low is None else value.low
    return low, value.value, value.value if value.high is None else value.high


def _whiskers(dot: Dot, scales: Scales) -> list[Box]:
    """Return what the intervals of a dot cover."""
    (low_x, _, high_x), (low_y, _, high_y) = _extent(dot.x), _extent(dot.y)
    (x, y), (left, bottom), (right, top) = _place(dot, scales), scales.at(low_x, low_y), scales.at(high_x, high_y)
    return [Box(left, y - 1, right, y + 1), Box(x - 1, top, x + 1, bottom)]


def _dot(dot: Dot, scales: Scales) -> str:
    x, y = _place(dot, scales)
    whiskers = ""
    if dot.x.low is not None and dot.x.high is not None:
        whiskers += path([(scales.x.nearest(dot.x.low), y), (scales.x.nearest(dot.x.high), y)], "whisker")
    if dot.y.low is not None and dot.y.high is not None:
        whiskers += path([(x, scales.y.nearest(dot.y.low)), (x, scales.y.nearest(dot.y.high))], "whisker")
    title = said(f"{dot.label}, {dot.stage}: {figures(dot.y)} at {figures(dot.x)}", dot.note)
    across, down = scales.x.side(dot.x.value), -scales.y.side(dot.y.value)
    beyond = arrow((x + 10 * across, y), across) if across else ""
    beyond += arrow((x, y + 10 * down), 0, down) if down else ""
    return group("dot", whiskers + mark(dot.label, scales.styles, (x, y), hollow=dot.stage == RL) + beyond, title)


def _names(chart: DotChart, scales: Scales, origins: list[Point]) -> list[str]:
    """Return a name for each label at its first dot, and for the base model, where there is room; legends have all."""
    first = {dot.label: dot for dot in reversed(chart.dots) if dot.label != BASE}
    named = [(BASE, point, BASE) for point in origins]
    named += [(dot.label, _place(dot, scales), _words(dot, scales)) for dot in reversed(first.values())]
    area = Box(scales.x.start, TOP - 12, WIDTH - 2, TALL - BOTTOM)
    marks = [around(point, MARK_SIZE) for point in (*origins, *(_place(dot, scales) for dot in chart.dots))]
    marks += [box for dot in chart.dots for box in _whiskers(dot, scales)]
    spots = place([point for _, point, _ in named], [text_width(words) for _, _, words in named], area, marks)
    found = []
    for (label, point, words), spot in zip(named, spots, strict=True):
        if spot is not None:
            join = path([point, spot.box.nearest(point)], "leader") if spot.leader else ""
            name = text((spot.box.left + spot.box.right) / 2, spot.box.bottom - 3, words, "middle", "point")
            found.append(group(css_class(label, scales.styles), join + name))
    return found


def _words(dot: Dot, scales: Scales) -> str:
    """Return a dot's name, with the values that the axes do not reach."""
    beyond = [number(value) for axis, value in ((scales.x, dot.x.value), (scales.y, dot.y.value)) if axis.side(value)]
    values = "".join(f" {value}" for value in beyond)
    return shortened(dot.label, NAME_WIDTH) + values
