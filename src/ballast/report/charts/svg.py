"""Charts as SVG: no script, no font, no colour of their own; the style sheet gives them light and dark.

A label is told by colour, by the shape of its marks and by its dashes, so that no reader depends on colour. Text is
escaped; a mark says what it is in its title, which browsers show on hovering and screen readers read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from markupsafe import Markup, escape

from ballast.report.charts.data import BASE, RL, SFT, Chart, DotChart, Histogram, IntervalChart, Line, LineChart, Value
from ballast.report.charts.scales import Scale, linear, logarithmic
from ballast.report.marks import Styles, along, css_class, dashes, mark, path
from ballast.report.text import number, one_line, rate

WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 36
NAME = 13
"""Height of the name of a line."""
LETTER = 7.2
"""Width of a wide digit in the labels."""

FEW = 4
"""Lines up to which shades are told apart."""

MARKS_UP_TO = 24
"""Points of a line up to which each is marked."""


def labels_in(charts: Iterable[Chart]) -> list[str]:
    """Return the labels that charts show, for a legend; the base last."""
    found: dict[str, None] = {}
    for chart in charts:
        found |= dict.fromkeys(LABELS[type(chart)](chart))
    return sorted(found, key=lambda label: label == BASE)


def draw(chart: Chart, styles: Styles) -> Markup:
    """Return a chart as an SVG element that scales with its box."""
    return DRAWN[type(chart)](chart, styles)


def stages_in(charts: Iterable[Chart]) -> list[str]:
    """Return the stages whose marks charts show, where there are two to be told apart."""
    found = {row[1] for chart in charts if isinstance(chart, IntervalChart) for row in chart.rows}
    found |= {dot.stage for chart in charts if isinstance(chart, DotChart) for dot in chart.dots}
    return [SFT, RL] if {SFT, RL} <= found else []


def _lines(chart: LineChart, styles: Styles) -> Markup:
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points if y is not None]
    ys += [bound for line in chart.lines for _, *bounds in line.band for bound in bounds]
    y_scale = linear(ys, HEIGHT - BOTTOM, TOP)
    ends = (_left(y_scale) + 4, WIDTH - RIGHT - 4)
    whole = all(x == int(x) for x in xs)
    x_scale = logarithmic(chart.places, *ends) if chart.places else linear(xs, *ends, whole=whole)
    parts = [_axes(chart.x, chart.y, x_scale, y_scale)]
    bands = "".join(_band(line, styles, x_scale, y_scale) for line in chart.lines if line.band)
    # Shades lie on each other: of many lines each is fainter.
    parts.append(f'<g class="many">{bands}</g>' if len(chart.lines) > FEW else bands)
    parts += [_line(line, styles, x_scale, y_scale) for line in chart.lines]
    return _svg(chart.title, parts)


def _band(line: Line, styles: Styles, x: Scale, y: Scale) -> str:
    upper = [(x(at), y(high)) for at, _, high in line.band]
    lower = [(x(at), y(low)) for at, low, _ in reversed(line.band)]
    return f'<g class="{css_class(line.label, styles)}"><path class="band" d="{along([*upper, *lower])}Z"/></g>'


def _line(line: Line, styles: Styles, x: Scale, y: Scale) -> str:
    pieces: list[list[tuple[float, float]]] = [[]]
    for at, value in line.points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((x(at), y(value)))
    drawn = "".join(path(piece, "line", dashes(line.label, styles)) for piece in pieces if len(piece) > 1)
    lone = {piece[0] for piece in pieces if len(piece) == 1}
    few = len(line.points) <= MARKS_UP_TO
    marks = "".join(
        mark(line.label, styles, x(at), y(value), False, f"{line.label}: {number(value)} at {at:g}")
        for at, value in line.points
        if value is not None and (few or (x(at), y(value)) in lone)
    )
    title = f"<title>{escape(one_line(line.label))}</title>"
    return f'<g class="{css_class(line.label, styles)}">{title}{drawn}{marks}</g>'


def _dots(chart: DotChart, styles: Styles) -> Markup:
    marked = [chart.mark] if chart.mark else []
    xs, ys = _extent(dot.x for dot in chart.dots), _extent(dot.y for dot in chart.dots)
    y_scale = linear([*ys, *(y for _, y in marked)], HEIGHT - BOTTOM, TOP)
    x_scale = linear([*xs, *(x for x, _ in marked)], _left(y_scale), WIDTH - RIGHT, count=4)
    parts = [_axes(chart.x, chart.y, x_scale, y_scale)]
    if chart.mark:
        at = (x_scale(chart.mark[0]), y_scale(chart.mark[1]))
        parts.append(f'<g class="s-base">{mark(BASE, styles, *at, False, BASE)}</g>')
    for label in dict.fromkeys(dot.label for dot in chart.dots):
        own = [dot for dot in chart.dots if dot.label == label]
        places = [(x_scale(dot.x.value), y_scale(dot.y.value)) for dot in own]
        if label == BASE and chart.mark:
            places.insert(0, (x_scale(chart.mark[0]), y_scale(chart.mark[1])))
        joined = path(places, "join", "") if len(places) > 1 else ""
        marks = "".join(_dot(dot, styles, x_scale, y_scale) for dot in own)
        parts.append(f'<g class="{css_class(label, styles)}">{joined}{marks}</g>')
    return _svg(chart.title, parts)


def _dot(dot: Any, styles: Styles, x_scale: Scale, y_scale: Scale) -> str:
    x, y = x_scale(dot.x.value), y_scale(dot.y.value)
    whiskers = ""
    if dot.x.low is not None:
        whiskers += path([(x_scale(dot.x.low), y), (x_scale(dot.x.high), y)], "whisker", "")
    if dot.y.low is not None:
        whiskers += path([(x, y_scale(dot.y.low)), (x, y_scale(dot.y.high))], "whisker", "")
    told = f"{dot.label}, {dot.stage}: {number(dot.y.value)} at {number(dot.x.value)}"
    return whiskers + mark(dot.label, styles, x, y, dot.stage == RL, told)


def _intervals(chart: IntervalChart, styles: Styles) -> Markup:
    row = 20.0
    left = 14 + max((sum(map(_width, _short(label))) for label, _, _ in chart.rows), default=0)
    top: float = TOP + NAME * max(len(chart.lines) - 1, 0)
    bottom = top + row * len(chart.rows) + 6
    values = [*_extent(value for _, _, value in chart.rows), *(value for value, _ in chart.lines)]
    scale = linear(values, left, WIDTH - RIGHT, count=4)
    parts = [_x_axis(chart.x, scale, bottom, top - 8)]
    first = min((value for value, _ in chart.lines), default=0.0)
    names = []
    for place, (at, name) in enumerate(chart.lines):
        # Names of lines that lie close would run into each other on one height.
        x, y = scale(at), TOP - 11 + NAME * place
        parts.append(f'<path class="reference" d="M{x:.1f} {y:.1f}V{bottom}"/>')
        outward = len(chart.lines) > 1 and at == first
        before = outward or x + 4 + sum(map(_width, _short(name, 120))) > WIDTH
        names.append(_text(x + (-4 if before else 4), y + 4, name, "end" if before else "start", "name", 120))
    parts += names
    named: set[str] = set()
    for place, (label, stage, value) in enumerate(chart.rows):
        y = top + row * place + 10
        if label not in named:
            parts.append(_text(left - 8, y + 4, _short(label), "end", "label"))
        named.add(label)
        parts.append(_interval(label, stage, value, scale, y, styles))
    return _svg(chart.title, parts, bottom + BOTTOM)


def _interval(label: str, stage: str, value: Value, scale: Scale, y: float, styles: Styles) -> str:
    span = "" if value.low is None else f" ({number(value.low)} to {number(value.high)})"
    whisker = "" if value.low is None else path([(scale(value.low), y), (scale(value.high), y)], "whisker", "")
    told = f"{label}, {stage}: {number(value.value)}{span}"
    drawn = mark(label, styles, scale(value.value), y, stage == RL, told)
    return f'<g class="{css_class(label, styles)}">{whisker}{drawn}</g>'


def _histogram(chart: Histogram, styles: Styles) -> Markup:
    total = max(sum(chart.counts), 1)
    shares = [count / total for count in chart.counts]
    y_scale = linear([0.0, *shares], HEIGHT - BOTTOM, TOP, count=4)
    x_scale = linear(chart.edges, _left(y_scale), WIDTH - RIGHT)
    bars = ""
    for low, high, share in zip(chart.edges, chart.edges[1:], shares, strict=False):
        x, y, width = x_scale(low), y_scale(share), x_scale(high) - x_scale(low)
        told = f"<title>{number(low)} to {number(high)}: {share:.1%} of tokens</title>"
        bars += (
            f'<rect class="bar" x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(width - 1, 0.5):.1f}" '
            f'height="{max(y_scale(0.0) - y, 0):.1f}">{told}</rect>'
        )
    axes = _axes(chart.x, "share of tokens", x_scale, y_scale)
    return _svg(chart.title, [axes, f'<g class="{css_class(chart.label, styles)}">{bars}</g>'])


DRAWN: dict[type, Callable[[Any, Styles], Markup]] = {
    LineChart: _lines,
    DotChart: _dots,
    IntervalChart: _intervals,
    Histogram: _histogram,
}

LABELS: dict[type, Callable[[Any], list[str]]] = {
    LineChart: lambda chart: [line.label for line in chart.lines],
    DotChart: lambda chart: [*(dot.label for dot in chart.dots), *([BASE] if chart.mark else [])],
    IntervalChart: lambda chart: [label for label, _, _ in chart.rows],
    Histogram: lambda chart: [chart.label],
}


def _extent(values: Iterable[Value]) -> list[float]:
    return [bound for v in values for bound in (v.value, v.low, v.high) if bound is not None]


def _svg(title: str, parts: list[str], height: float = HEIGHT) -> Markup:
    name = escape(one_line(title))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    )


def _left(y: Scale) -> float:
    """Return where the drawing starts, so that the longest label of the ticks has room before it."""
    return max(LEFT, 12 + LETTER * max(len(_tick(tick)) for tick in y.ticks))


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
        # The last label would be cut by the edge where it is long.
        last = at > WIDTH - RIGHT - 12 and len(_tick(tick)) > 4
        columns += _text(WIDTH - 2 if last else at, bottom + 15, _tick(tick), "end" if last else "middle", "tick")
        columns += "" if top is None else f'<path class="grid" d="M{at:.1f} {top}V{bottom}"/>'
    return columns + _text((x.start + x.end) / 2, bottom + 30, name, "middle", "axis")


def _tick(value: float) -> str:
    return rate(value) if 0 < value < 0.001 else f"{value:g}".replace("-", "−")


def _text(x: float, y: float, text: str, anchor: str, kind: str, room: float = WIDTH - 20) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(_short(text, room))}</text>'


def _short(text: str, room: float = 118) -> str:
    """Return as much of a text as has room, by the width that its letters have at most."""
    text = one_line(text)
    if sum(map(_width, text)) <= room:
        return text
    kept, left = "", room - _width("…")
    for character in text:
        left -= _width(character)
        if left < 0:
            return f"{kept}…"
        kept += character
    return text


def _width(character: str) -> float:
    wide = character in "MW@%mw…—" or unicodedata.east_asian_width(character) in "WF"
    return 1.65 * LETTER if wide else LETTER
