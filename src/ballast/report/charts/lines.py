"""Line charts: curves with their bands, a mark at each point, a label at the end of each line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from ballast.compare.figures import Value
from ballast.compare.numbers import number, rate
from ballast.report.charts.data import Line, LineChart
from ballast.report.charts.labels import LINE, Point, shortened, spread, text_width
from ballast.report.charts.scales import linear, logarithmic, robust
from ballast.report.charts.shapes import (
    BOTTOM,
    HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Scales,
    Styles,
    arrow,
    axes,
    commands,
    css_class,
    dashes,
    figures,
    group,
    left_of,
    mark,
    path,
    said,
    svg,
    text,
    tick,
    titled,
)

MANY_LINES = 5
"""Lines from which on bands are fainter, because they lie on each other."""
MARKED_POINTS = 24
"""Points of a line up to which each has a mark."""
LARGEST_RATE = 0.1
LABEL_WIDTH, LABEL_GAP = 84.0, 14.0
"""Width of the longest label at the end of a line, and the room before it."""


def line_chart(chart: LineChart, styles: Styles) -> Markup:
    """Return lines over a common x. Points that would squash the others lie beyond the edge, their value at it."""
    y_scale = linear(_range(chart), HEIGHT - BOTTOM, TOP)
    ends = {line.label: end for line in chart.lines if (end := _end(line)) is not None}
    heights = spread([y_scale.nearest(y) for _, y in ends.values()], TOP + LINE / 2, HEIGHT - BOTTOM)
    names = {label: shortened(label, LABEL_WIDTH) for label in ends} if heights else {}
    room = max(map(text_width, names.values())) + LABEL_GAP if names else 0.0
    right = WIDTH - RIGHT - 4 - room
    xs = [x for line in chart.lines for x, _ in line.points]
    span = (left_of(y_scale) + 4, right)
    whole = all(x == int(x) for x in xs)
    x_scale = (
        logarithmic(chart.x_ticks, *span) if chart.x_ticks else linear(xs, *span, whole=whole, count=4, tight=True)
    )
    scales = Scales(x_scale, y_scale, styles)
    # Learning rates are written as in the tables.
    show = rate if chart.x_ticks and chart.x_ticks[-1] < LARGEST_RATE else tick
    bands = "".join(_band(line, scales) for line in chart.lines if line.band)
    parts = [axes(chart.x, chart.y, x_scale, y_scale, right + 4, show=show)]
    parts.append(group("many", bands) if len(chart.lines) >= MANY_LINES else bands)
    parts += [_line(line, scales) for line in chart.lines]
    parts += [
        _name(label, name, scales.at(*ends[label]), height, scales)
        for (label, name), height in zip(names.items(), heights or (), strict=True)
    ]
    return svg(f"{chart.title}: {chart.y} by {chart.x}, {len(chart.lines)} lines", parts)


def _range(chart: LineChart) -> tuple[float, float]:
    """Return the range of the lines, but for a few that would squash the others."""
    return robust([extent for line in chart.lines if (extent := _extent(line)) is not None] or [(0.0, 0.0, 0.0)])


def _extent(line: Line) -> tuple[float, float, float] | None:
    """Return the lowest value of a line and its band, its last value, and the highest."""
    values = [y for _, y in line.points if y is not None]
    bounds = [bound for _, *pair in line.band for bound in pair]
    return (min(values + bounds), values[-1], max(values + bounds)) if values else None


def _end(line: Line) -> tuple[float, float] | None:
    return next(((x, y) for x, y in reversed(line.points) if y is not None), None)


def _band(line: Line, scales: Scales) -> str:
    upper = [scales.at(x, high) for x, _, high in line.band]
    lower = [scales.at(x, low) for x, low, _ in reversed(line.band)]
    band = f'<path class="band" d="{commands([*upper, *lower])}Z"/>'
    return group(css_class(line.label, scales.styles), band, line.label)


def _line(line: Line, scales: Scales) -> str:
    drawn = [piece for whole in _unbroken(line) for piece in within(whole, scales.y.low, scales.y.high)]
    dash = dashes(line.label, scales.styles)
    lines = "".join(path([scales.at(*point) for point in piece], "line", dash) for piece in drawn)
    lone = {piece[0] for piece in _unbroken(line) if len(piece) == 1}
    spans = {x: (low, high) for x, low, high in line.band}
    marks = "".join(
        _point(line, x, Value(y, *spans.get(x, (None, None))), scales)
        for x, y in line.points
        if y is not None and (len(line.points) <= MARKED_POINTS or (x, y) in lone)
    )
    return group(css_class(line.label, scales.styles), lines + marks + _beyond(line, scales), line.label)


def _point(line: Line, x: float, value: Value, scales: Scales) -> str:
    if scales.y.side(value.value):
        return ""
    title = said(f"{line.label}: {figures(value)} at {tick(x)}", line.note)
    return mark(line.label, scales.styles, scales.at(x, value.value), title=title)


def _beyond(line: Line, scales: Scales) -> str:
    """Return an arrow at the edge, with the value, for the furthest point beyond each."""
    known = [(x, y) for x, y in line.points if y is not None]
    found = ""
    for side, furthest in ((1, max), (-1, min)):
        outside = [point for point in known if scales.y.side(point[1]) == side]
        if outside:
            x, y = furthest(outside, key=lambda point: point[1])
            place = scales.at(x, y)
            title = titled(said(f"{line.label}: {number(y)} at {tick(x)}, beyond the axis", line.note))
            anchor, shift = ("end", -6) if place[0] > (scales.x.start + scales.x.end) / 2 else ("start", 6)
            value = text(place[0] + shift, place[1] + (9 if side > 0 else -3), number(y), anchor, "edge")
            found += f"<g>{title}{arrow(place, 0, -side)}{value}</g>"
    return found


def _name(label: str, name: str, end: Point, height: float, scales: Scales) -> str:
    """Return a label beside the end of its line, joined to it where it had to move."""
    x = scales.x.end + LABEL_GAP
    join = (
        path([(end[0] + 5, end[1]), (x - 2, height)], "leader") if abs(height - end[1]) > 2 or end[0] < x - 20 else ""
    )
    return group(css_class(label, scales.styles), join + text(x, height + 3.5, name, "start", "point"))


def _unbroken(line: Line) -> list[list[Point]]:
    """Return the parts of a line between its gaps."""
    pieces: list[list[Point]] = [[]]
    for x, y in line.points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((x, y))
    return [piece for piece in pieces if piece]


def within(points: Sequence[Point], low: float, high: float) -> list[list[Point]]:
    """Return the parts of a line that lie between two heights, cut where it crosses them; points alone are no line."""
    pieces: list[list[Point]] = []
    for start, end in pairwise(points):
        part = _cut(start, end, low, high)
        if part is None:
            continue
        if pieces and pieces[-1][-1] == part[0]:
            pieces[-1].append(part[1])
        else:
            pieces.append(list(part))
    return pieces


def _cut(start: Point, end: Point, low: float, high: float) -> tuple[Point, Point] | None:
    """Return the part of one segment between two heights, None where it lies outside."""
    (x, y), rise = start, end[1] - start[1]
    if rise == 0:
        return (start, end) if low <= y <= high else None
    enters, leaves = sorted(((low - y) / rise, (high - y) / rise))
    first, last = max(enters, 0.0), min(leaves, 1.0)
    if first >= last:
        return None
    run = end[0] - x
    cut = ((x + part * run, y + part * rise) for part in (first, last))
    one, other = cut
    return (start if first == 0 else one), (end if last == 1 else other)
