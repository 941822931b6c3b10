"""What tells labels apart without words: colour, shape of the marks, dashes; and the paths that they are drawn with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from markupsafe import Markup, escape

from ballast.report.charts.data import BASE, RL
from ballast.report.text import one_line

STYLES = 8
"""Different looks; the ninth label takes the first one's colour with other dashes."""

Styles = Mapping[str, int]


def styles_of(labels: Iterable[str]) -> dict[str, int]:
    """Return the look of every label, by its place."""
    return {label: place for place, label in enumerate(dict.fromkeys(labels)) if label != BASE}


def css_class(label: str, styles: Styles) -> str:
    """Return the class that gives a label its colour; the base is grey."""
    return f"s{styles[label] % STYLES}" if label in styles else "s-base"


def dashes(label: str, styles: Styles) -> str:
    """Return a label's dashes, different where colours repeat."""
    if label not in styles:
        return "2 3"
    return ("", "6 3", "2 2", "8 3 2 3")[styles[label] // STYLES % 4]


def key(label: str, styles: Styles) -> Markup:
    """Return a label's line and mark, for a legend."""
    line = path([(2, 7), (26, 7)], "line", dashes(label, styles))
    body = f'<g class="{css_class(label, styles)}">{line}{mark(label, styles, 14, 7, False)}</g>'
    return Markup(f'<svg class="key" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">{body}</svg>')


def stage_key(stage: str) -> Markup:
    """Return the mark of a stage, for a legend: full after fine-tuning, hollow after RL."""
    body = f'<g class="s-base">{mark(BASE, {}, 7, 7, stage == RL)}</g>'
    return Markup(f'<svg class="key" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{body}</svg>')


def along(points: list[tuple[float, float]]) -> str:
    """Return a path's commands through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def path(points: list[tuple[float, float]], kind: str, dash: str) -> str:
    """Return a path through points, of a class of the style sheet."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="{kind}"{dashed} d="{along(points)}"/>'


def _polygon(corners: int, turn: float, size: float) -> Callable[[float, float], str]:
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    return lambda x, y: along([(x + size * math.sin(a), y - size * math.cos(a)) for a in angles]) + "Z"


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


def mark(label: str, styles: Styles, x: float, y: float, hollow: bool, told: str = "") -> str:
    """Return the mark of a label, hollow or full, which says what it is where it is pointed at."""
    shape = MARKS[styles.get(label, 0) % len(MARKS)](x, y)
    title = f"<title>{escape(one_line(told))}</title>" if told else ""
    return f'<path class="{"mark hollow" if hollow else "mark"}" d="{shape}">{title}</path>'
