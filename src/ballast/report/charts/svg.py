"""Charts as SVG: no script, no font, no colour of their own; the style sheet gives them light and dark.

Labels differ by colour, by the shape of their marks and by their dashes, so that no reader depends on colour. Text is
escaped; a mark has a title with its value, which browsers show on hovering and screen readers read.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping

from markupsafe import Markup, escape

from ballast.compare.figures import RL, SFT, Value
from ballast.compare.numbers import number, rate
from ballast.records.folder import BASE
from ballast.report.charts.data import Chart, Dot, DotChart, Histogram, IntervalChart, IntervalRow, Line, LineChart
from ballast.report.charts.scales import Scale, linear, logarithmic
from ballast.report.text import one_line

WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 36
ROW_HEIGHT = 20.0
"""Height of a row of an interval chart."""
NAME_HEIGHT = 13
"""Height of the name of a reference line."""
LETTER_WIDTH = 7.2
"""Width of a wide digit in the labels."""
MANY_LINES = 5
"""Lines from which on bands are fainter, because they lie on each other."""
MARKED_POINTS = 24
"""Points of a line up to which each has a mark."""
STYLES = 8
"""Number of colours and of marks; the ninth label takes the first ones with other dashes."""

Styles = Mapping[str, int]
"""From a label to its number among the styles."""
Point = tuple[float, float]


def styles_of(labels: Iterable[str]) -> dict[str, int]:
    """Return the style of every label, by its place; the base has none."""
    return {label: place for place, label in enumerate(dict.fromkeys(labels)) if label != BASE}


def css_class(label: str, styles: Styles) -> str:
    """Return the class that gives a label its colour; the base is grey."""
    return f"s{styles[label] % STYLES}" if label in styles else "s-base"


def dashes(label: str, styles: Styles) -> str:
    """Return a label's dashes, different where colours repeat."""
    if label not in styles:
        return "2 3"
    return ("", "6 3", "2 2", "8 3 2 3")[styles[label] // STYLES % 4]


def label_key(label: str, styles: Styles) -> Markup:
    """Return a label's line and mark, for a legend."""
    line = _path([(2, 7), (26, 7)], "line", dashes(label, styles))
    body = f'<g class="{css_class(label, styles)}">{line}{_mark(label, styles, (14, 7))}</g>'
    return Markup(f'<svg class="key" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">{body}</svg>')


def stage_key(stage: str) -> Markup:
    """Return the mark of a stage, for a legend: full after fine-tuning, hollow after RL."""
    body = f'<g class="s-base">{_mark(BASE, {}, (7, 7), hollow=stage == RL)}</g>'
    return Markup(f'<svg class="key" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{body}</svg>')


def labels_in(charts: Iterable[Chart]) -> list[str]:
    """Return the labels in charts, for a legend; the base last."""
    labels = dict.fromkeys(label for chart in charts for label in chart.labels)
    return sorted(labels, key=lambda label: label == BASE)


def stages_in(charts: Iterable[Chart]) -> list[str]:
    """Return the stages whose marks charts show, none where a single one needs no legend."""
    stages = {dot.stage for chart in charts if isinstance(chart, DotChart) for dot in chart.dots}
    stages |= {row.stage for chart in charts if isinstance(chart, IntervalChart) for row in chart.rows}
    return [SFT, RL] if {SFT, RL} <= stages else []


def draw(chart: Chart, styles: Styles) -> Markup:
    """Return a chart as an SVG element that scales with its box."""
    match chart:
        case LineChart():
            return _line_chart(chart, styles)
        case DotChart():
            return _dot_chart(chart, styles)
        case IntervalChart():
            return _interval_chart(chart, styles)
        case Histogram():
            return _histogram(chart, styles)


def _line_chart(chart: LineChart, styles: Styles) -> Markup:
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points if y is not None]
    ys += [bound for line in chart.lines for _, *bounds in line.band for bound in bounds]
    y_scale = linear(ys, HEIGHT - BOTTOM, TOP)
    ends = (_left(y_scale) + 4, WIDTH - RIGHT - 4)
    whole = all(x == int(x) for x in xs)
    x_scale = logarithmic(chart.x_ticks, *ends) if chart.x_ticks else linear(xs, *ends, whole=whole)
    parts = [_axes(chart.x, chart.y, x_scale, y_scale)]
    bands = "".join(_band(line, styles, x_scale, y_scale) for line in chart.lines if line.band)
    parts.append(f'<g class="many">{bands}</g>' if len(chart.lines) >= MANY_LINES else bands)
    parts += [_line(line, styles, x_scale, y_scale) for line in chart.lines]
    return _svg(chart.title, parts)


def _band(line: Line, styles: Styles, x: Scale, y: Scale) -> str:
    upper = [(x(at), y(high)) for at, _, high in line.band]
    lower = [(x(at), y(low)) for at, low, _ in reversed(line.band)]
    return f'<g class="{css_class(line.label, styles)}"><path class="band" d="{_commands([*upper, *lower])}Z"/></g>'


def _line(line: Line, styles: Styles, x: Scale, y: Scale) -> str:
    pieces: list[list[Point]] = [[]]
    for at, value in line.points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((x(at), y(value)))
    lines = "".join(_path(piece, "line", dashes(line.label, styles)) for piece in pieces if len(piece) > 1)
    lone = {piece[0] for piece in pieces if len(piece) == 1}
    marked = len(line.points) <= MARKED_POINTS
    marks = "".join(
        _mark(line.label, styles, (x(at), y(value)), title=f"{line.label}: {number(value)} at {at:g}")
        for at, value in line.points
        if value is not None and (marked or (x(at), y(value)) in lone)
    )
    title = f"<title>{escape(one_line(line.label))}</title>"
    return f'<g class="{css_class(line.label, styles)}">{title}{lines}{marks}</g>'


def _dot_chart(chart: DotChart, styles: Styles) -> Markup:
    bases = [chart.base] if chart.base else []
    xs, ys = _extent(dot.x for dot in chart.dots), _extent(dot.y for dot in chart.dots)
    y_scale = linear([*ys, *(y for _, y in bases)], HEIGHT - BOTTOM, TOP)
    x_scale = linear([*xs, *(x for x, _ in bases)], _left(y_scale), WIDTH - RIGHT, count=4)
    parts = [_axes(chart.x, chart.y, x_scale, y_scale)]
    base_points = [(x_scale(x), y_scale(y)) for x, y in bases]
    parts += [f'<g class="s-base">{_mark(BASE, styles, point, title=BASE)}</g>' for point in base_points]
    for label in dict.fromkeys(dot.label for dot in chart.dots):
        dots = [dot for dot in chart.dots if dot.label == label]
        points = base_points if label == BASE else []
        points = [*points, *((x_scale(dot.x.value), y_scale(dot.y.value)) for dot in dots)]
        join = _path(points, "join") if len(points) > 1 else ""
        marks = "".join(_dot(dot, styles, x_scale, y_scale) for dot in dots)
        parts.append(f'<g class="{css_class(label, styles)}">{join}{marks}</g>')
    return _svg(chart.title, parts)


def _dot(dot: Dot, styles: Styles, x_scale: Scale, y_scale: Scale) -> str:
    x, y = x_scale(dot.x.value), y_scale(dot.y.value)
    whiskers = ""
    if dot.x.low is not None and dot.x.high is not None:
        whiskers += _path([(x_scale(dot.x.low), y), (x_scale(dot.x.high), y)], "whisker")
    if dot.y.low is not None and dot.y.high is not None:
        whiskers += _path([(x, y_scale(dot.y.low)), (x, y_scale(dot.y.high))], "whisker")
    title = f"{dot.label}, {dot.stage}: {number(dot.y.value)} at {number(dot.x.value)}"
    return whiskers + _mark(dot.label, styles, (x, y), hollow=dot.stage == RL, title=title)


def _interval_chart(chart: IntervalChart, styles: Styles) -> Markup:
    left = 14 + max((_text_width(_shortened(row.label)) for row in chart.rows), default=0)
    top: float = TOP + NAME_HEIGHT * max(len(chart.references) - 1, 0)
    bottom = top + ROW_HEIGHT * len(chart.rows) + 6
    values = [*_extent(row.value for row in chart.rows), *(value for value, _ in chart.references)]
    scale = linear(values, left, WIDTH - RIGHT, count=4)
    parts = [_x_axis(chart.x, scale, bottom, top - 8), *_reference_lines(chart.references, scale, bottom)]
    labelled: set[str] = set()
    for place, row in enumerate(chart.rows):
        y = top + ROW_HEIGHT * place + 10
        if row.label not in labelled:
            parts.append(_text(left - 8, y + 4, _shortened(row.label), "end", "label"))
        labelled.add(row.label)
        parts.append(_interval(row, scale, y, styles))
    return _svg(chart.title, parts, bottom + BOTTOM)


def _reference_lines(references: tuple[tuple[float, str], ...], scale: Scale, bottom: float) -> list[str]:
    lines, names = [], []
    leftmost = min((value for value, _ in references), default=0.0)
    for place, (value, name) in enumerate(references):
        # Names of lines that lie close would run into each other at one height.
        x, y = scale(value), TOP - 11 + NAME_HEIGHT * place
        lines.append(f'<path class="reference" d="M{x:.1f} {y:.1f}V{bottom}"/>')
        outward = len(references) > 1 and value == leftmost
        before = outward or x + 4 + _text_width(_shortened(name, 120)) > WIDTH
        names.append(_text(x + (-4 if before else 4), y + 4, name, "end" if before else "start", "name", 120))
    return lines + names


def _interval(row: IntervalRow, scale: Scale, y: float, styles: Styles) -> str:
    value, span, whisker = row.value, "", ""
    if value.low is not None and value.high is not None:
        span = f" ({number(value.low)} to {number(value.high)})"
        whisker = _path([(scale(value.low), y), (scale(value.high), y)], "whisker")
    title = f"{row.label}, {row.stage}: {number(value.value)}{span}"
    mark = _mark(row.label, styles, (scale(value.value), y), hollow=row.stage == RL, title=title)
    return f'<g class="{css_class(row.label, styles)}">{whisker}{mark}</g>'


def _histogram(chart: Histogram, styles: Styles) -> Markup:
    total = max(sum(chart.counts), 1)
    shares = [count / total for count in chart.counts]
    y_scale = linear([0.0, *shares], HEIGHT - BOTTOM, TOP, count=4)
    x_scale = linear(chart.edges, _left(y_scale), WIDTH - RIGHT)
    bars = ""
    for low, high, share in zip(chart.edges, chart.edges[1:], shares, strict=False):
        x, y, width = x_scale(low), y_scale(share), x_scale(high) - x_scale(low)
        title = f"<title>{number(low)} to {number(high)}: {share:.1%} of tokens</title>"
        bars += (
            f'<rect class="bar" x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(width - 1, 0.5):.1f}" '
            f'height="{max(y_scale(0.0) - y, 0):.1f}">{title}</rect>'
        )
    axes = _axes(chart.x, "share of tokens", x_scale, y_scale)
    return _svg(chart.title, [axes, f'<g class="{css_class(chart.label, styles)}">{bars}</g>'])


def _extent(values: Iterable[Value]) -> list[float]:
    return [bound for v in values for bound in (v.value, v.low, v.high) if bound is not None]


def _svg(title: str, parts: list[str], height: float = HEIGHT) -> Markup:
    name = escape(one_line(title))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    )


def _left(y: Scale) -> float:
    """Return where the drawing starts, so that the longest label of the ticks fits before it."""
    return max(LEFT, 12 + LETTER_WIDTH * max(len(_tick(tick)) for tick in y.ticks))


def _axes(x_name: str, y_name: str, x: Scale, y: Scale) -> str:
    left = _left(y)
    rows = "".join(
        f'<path class="grid" d="M{left:.1f} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
        + _text(left - 6, y(tick) + 3.5, _tick(tick), "end", "tick")
        for tick in y.ticks
    )
    return rows + _text(4, 11, y_name, "start", "axis") + _x_axis(x_name, x, HEIGHT - BOTTOM)


def _x_axis(name: str, x: Scale, bottom: float, top: float | None = None) -> str:
    columns = ""
    for tick in x.ticks:
        at = x(tick)
        # A long last label would be cut by the edge.
        last = at > WIDTH - RIGHT - 12 and len(_tick(tick)) > 4
        columns += _text(WIDTH - 2 if last else at, bottom + 15, _tick(tick), "end" if last else "middle", "tick")
        columns += "" if top is None else f'<path class="grid" d="M{at:.1f} {top}V{bottom}"/>'
    return columns + _text((x.start + x.end) / 2, bottom + 30, name, "middle", "axis")


def _tick(value: float) -> str:
    return rate(value) if 0 < value < 0.001 else f"{value:g}".replace("-", "−")


def _text(x: float, y: float, text: str, anchor: str, kind: str, width: float = WIDTH - 20) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(_shortened(text, width))}</text>'
    )


def _shortened(text: str, width: float = 118) -> str:
    """Return as much of a text as fits into a width, by the width that its letters have at most."""
    text = one_line(text)
    if _text_width(text) <= width:
        return text
    shortened, left = "", width - _width("…")
    for character in text:
        left -= _width(character)
        if left < 0:
            return f"{shortened}…"
        shortened += character
    return text


def _text_width(text: str) -> float:
    return sum(map(_width, text))


def _width(character: str) -> float:
    wide = character in "MW@%mw…—" or unicodedata.east_asian_width(character) in "WF"
    return 1.65 * LETTER_WIDTH if wide else LETTER_WIDTH


def _commands(points: list[Point]) -> str:
    """Return the commands of a path through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _path(points: list[Point], kind: str, dash: str = "") -> str:
    """Return a path through points, of a class of the style sheet."""
    dash_array = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="{kind}"{dash_array} d="{_commands(points)}"/>'


def _polygon(corners: int, turn: float, size: float) -> Callable[[float, float], str]:
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    return lambda x, y: _commands([(x + size * math.sin(a), y - size * math.cos(a)) for a in angles]) + "Z"


def _circle(x: float, y: float) -> str:
    return f"M{x - 3.5:.1f} {y:.1f}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z"


MARKS: tuple[Callable[[float, float], str], ...] = (
    _circle,
    _polygon(4, math.pi / 4, 4.4),
    _polygon(3, 0, 4.8),
    _polygon(4, 0, 4.8),
    _polygon(3, math.pi, 4.8),
    _polygon(5, 0, 4.6),
    _polygon(6, 0, 4.4),
    _polygon(3, math.pi / 2, 4.8),
)
"""The outlines of marks, by the number of the style."""


def _mark(label: str, styles: Styles, at: Point, *, hollow: bool = False, title: str = "") -> str:
    """Return the mark of a label, hollow or full, with a title to show where it is pointed at."""
    outline = MARKS[styles.get(label, 0) % len(MARKS)](*at)
    element = f"<title>{escape(one_line(title))}</title>" if title else ""
    return f'<path class="{"mark hollow" if hollow else "mark"}" d="{outline}">{element}</path>'
