"""What drawings are made of: text, paths, marks, axes and titles as SVG, coloured by the style sheet's classes.

Labels differ by colour, by the shape of their marks and by their dashes, so that no reader depends on colour. Text is
escaped; a mark has a title with its value, which browsers show on hovering and screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ballast.compare.figures import Value
from ballast.compare.numbers import interval, number, rate
from ballast.records.folder import BASE
from ballast.report.charts.labels import LETTER, Point, shortened, text_width
from ballast.report.charts.scales import Scale
from ballast.report.text import one_line

WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 36
STYLES = 8
"""Number of colours and of marks; the ninth label takes the first ones with other dashes."""
DASHES = ("", "6 3", "2 2", "8 3 2 3", "10 4")
MARK_SIZE = 5.5
"""Half of the side of the square that a mark fills, with its outline."""

Styles = Mapping[str, int]
"""From a label to its number among the styles."""


@dataclass(frozen=True)
class Scales:
    """Where values of a chart lie, and how its labels are styled."""

    x: Scale
    y: Scale
    styles: Styles

    def at(self, x: float, y: float) -> Point:
        """Return a place, at the edge for a value outside a scale."""
        return self.x.nearest(x), self.y.nearest(y)


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
    return DASHES[styles[label] // STYLES % len(DASHES)]


def svg(title: str, parts: Iterable[str], height: float = HEIGHT) -> Markup:
    """Return a drawing that scales with its box, under a name for screen readers."""
    name = escape(one_line(title))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    )


def group(kind: str, parts: str, title: str = "") -> str:
    """Return parts under a class, with a title to show where one of them is pointed at."""
    return f'<g class="{kind}">{titled(title)}{parts}</g>'


def titled(text: str) -> str:
    """Return a title, nothing for no text."""
    return f"<title>{escape(one_line(text))}</title>" if text else ""


def figures(value: Value) -> str:
    """Return a value with its interval, as hover text shows it: ``0.894 (0.859 to 0.929)``."""
    span = interval(value.low, value.high)
    return f"{number(value.value)}{f' ({span})' if span else ''}"


def said(*parts: str) -> str:
    """Return the parts of a hover text that there are, with commas between."""
    return ", ".join(part for part in parts if part)


def text(x: float, y: float, words: str, anchor: str, kind: str, width: float = WIDTH - 20) -> str:
    """Return a text that is cut to a width; its anchor is ``start``, ``middle`` or ``end``."""
    shown = escape(shortened(words, width))
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{shown}</text>'


def path(points: Sequence[Point], kind: str, dash: str = "") -> str:
    """Return a path through points, of a class of the style sheet."""
    dash_array = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="{kind}"{dash_array} d="{commands(points)}"/>'


def commands(points: Iterable[Point]) -> str:
    """Return the commands of a path through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def tick(value: float) -> str:
    """Return the text of a tick."""
    return rate(value) if 0 < value < 0.001 else f"{value:g}".replace("-", "−")


def left_of(y: Scale) -> float:
    """Return where the drawing starts, so that the longest label of the ticks fits before it."""
    return max(LEFT, 12 + LETTER * max(len(tick(one)) for one in y.ticks))


def axes(
    x_name: str,
    y_name: str,
    x: Scale,
    y: Scale,
    right: float,
    height: float = HEIGHT,
    show: Callable[[float], str] = tick,
) -> str:
    """Return both axes with their names; lines of the grid go to `right`, and `show` writes the ticks of x."""
    left = left_of(y)
    rows = "".join(
        f'<path class="grid" d="M{left:.1f} {y(one):.1f}H{right:.1f}"/>'
        + text(left - 6, y(one) + 3.5, tick(one), "end", "tick")
        for one in y.ticks
    )
    return rows + text(4, 11, y_name, "start", "axis") + x_axis(x_name, x, height - BOTTOM, show=show)


def x_axis(name: str, x: Scale, bottom: float, top: float | None = None, show: Callable[[float], str] = tick) -> str:
    """Return the axis below a drawing; with `top`, lines of the grid go up to there."""
    columns = ""
    for one in x.ticks:
        at, words = x(one), show(one)
        # A long last label would be cut by the edge.
        last = at + text_width(words) / 2 > WIDTH - 2
        columns += text(WIDTH - 2 if last else at, bottom + 15, words, "end" if last else "middle", "tick")
        columns += "" if top is None else f'<path class="grid" d="M{at:.1f} {top:.1f}V{bottom:.1f}"/>'
    middle = (x.start + x.end) / 2
    # A long name is centred in the drawing, where it has room on both sides.
    middle = middle if text_width(one_line(name)) / 2 < min(middle, WIDTH - middle) else WIDTH / 2
    return columns + text(middle, bottom + 30, name, "middle", "axis")


def arrow(at: Point, across: int, down: int = 0) -> str:
    """Return an arrowhead at the edge of a drawing that points out of it: what it stands for lies beyond."""
    x, y = at
    if across:
        corners = [(x, y), (x - 6 * across, y - 3.5), (x - 6 * across, y + 3.5)]
    else:
        corners = [(x, y), (x - 3.5, y - 6 * down), (x + 3.5, y - 6 * down)]
    return f'<path class="beyond" d="{commands(corners)}Z"/>'


def _polygon(corners: int, turn: float, size: float) -> Callable[[float, float], str]:
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    return lambda x, y: commands([(x + size * math.sin(a), y - size * math.cos(a)) for a in angles]) + "Z"


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


def mark(label: str, styles: Styles, at: Point, *, hollow: bool = False, title: str = "") -> str:
    """Return the mark of a label, hollow or full, with a title to show where it is pointed at."""
    outline = MARKS[styles.get(label, 0) % len(MARKS)](*at)
    return f'<path class="{"mark hollow" if hollow else "mark"}" d="{outline}">{titled(title)}</path>'
