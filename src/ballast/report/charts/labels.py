"""Where the labels of a drawing go: how wide a text is, and places for texts that do not lie on each other."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ballast.report.text import one_line

LETTER = 7.2
"""Width of a digit in the labels, with room for fonts that are wider."""
LINE = 12.0
"""Height of a line of a label."""
WIDE, NARROW = 1.65, 0.7
"""Widths of wide and narrow letters, in digits."""
RINGS = (7.0, 14.0, 24.0, 36.0, 50.0, 66.0)
"""Distances from its point at which a label is tried, the nearest first."""
DIRECTIONS = (0, 180, 270, 90, 330, 30, 210, 150, 315, 45, 225, 135, 300, 60, 240, 120)
"""Degrees at each distance, in the order in which they are tried; 90 is below the point."""
HEAD = 0.6
"""Share of a shortened text that its beginning takes."""
LEADER_FROM = 12.0
"""Distance from which on a thin line joins a label to its point."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether two rectangles share more than an edge."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def inside(self, other: Box) -> bool:
        """Whether this rectangle lies within another."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )

    def nearest(self, point: Point) -> Point:
        """Return the place of the rectangle that is nearest to a point."""
        x, y = point
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def crossed(self, start: Point, end: Point) -> bool:
        """Whether a line from one point to another passes through the rectangle."""
        steps = 24
        line = (
            (start[0] + (end[0] - start[0]) * n / steps, start[1] + (end[1] - start[1]) * n / steps)
            for n in range(1, steps)
        )
        return any(self.left < x < self.right and self.top < y < self.bottom for x, y in line)


@dataclass(frozen=True)
class Spot:
    """Where a label lies, and whether a line has to join it to its point."""

    box: Box
    leader: bool


def text_width(text: str) -> float:
    """Return the width that a text has at most, in the units of a drawing."""
    return sum(map(_width, text))


def shortened(text: str, width: float) -> str:
    """Return as much of a text as fits into a width, by the width that its letters have at most.

    What is left out is in the middle: long labels differ at their ends, such as by a rate.
    """
    text = one_line(text)
    if text_width(text) <= width:
        return text
    room = width - _width("…")
    start = _fitting(text, room * HEAD)
    end = _fitting(text[len(start) :][::-1], room - text_width(start))[::-1]
    return f"{start}…{end}"


def _fitting(text: str, width: float) -> str:
    """Return the first letters that fit into a width."""
    for count, character in enumerate(text):
        width -= _width(character)
        if width < 0:
            return text[:count]
    return text


def _width(character: str) -> float:
    if character in "MW@%mw…—" or unicodedata.east_asian_width(character) in "WF":
        return WIDE * LETTER
    return NARROW * LETTER if character in "iIjlftr.,:;|'!()[]- " else LETTER


def around(point: Point, size: float) -> Box:
    """Return the square of a mark around its point."""
    return Box(point[0] - size, point[1] - size, point[0] + size, point[1] + size)


def place(points: Sequence[Point], widths: Sequence[float], area: Box, marks: Sequence[Box] = ()) -> list[Spot | None]:
    """Return a place for the label of each point: the nearest that lies within the area, on no mark and on no label.

    Args:
        points: one for each label.
        widths: of the labels.
        area: where labels may lie.
        marks: what they must not cover.

    Returns:
        One place for each label, None where there is no room for it near its point.
    """
    taken: list[Box] = []
    found: list[Spot | None] = []
    for point, width in zip(points, widths, strict=True):
        spot = next((one for one in _candidates(point, width) if _free(one, point, area, marks, taken)), None)
        found.append(spot)
        taken += [spot.box] if spot else []
    return found


def _candidates(point: Point, width: float) -> Iterator[Spot]:
    for ring in RINGS:
        for degrees in DIRECTIONS:
            across, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            # The side of the label that faces the point lies on the ring.
            left = point[0] + ring * across - width * (1 - across) / 2
            top = point[1] + ring * down - LINE * (1 - down) / 2
            yield Spot(Box(left, top, left + width, top + LINE), ring >= LEADER_FROM)


def _free(spot: Spot, point: Point, area: Box, marks: Sequence[Box], taken: Sequence[Box]) -> bool:
    if not spot.box.inside(area) or any(spot.box.overlaps(box) for box in (*marks, *taken)):
        return False
    return not spot.leader or not any(box.crossed(point, spot.box.nearest(point)) for box in taken)


def spread(wanted: Sequence[float], low: float, high: float, gap: float = LINE) -> list[float] | None:
    """Return heights that are at least a gap apart and as near to those wanted as can be, in the order given.

    The sum of squared distances is the least (isotonic regression by pooling neighbours), then all are moved into
    [low, high]; None where they do not fit into it.
    """
    room = (len(wanted) - 1) * gap
    if room > high - low:
        return None
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    # Without the gaps, heights that may not fall: blocks of those that would, at their mean.
    blocks: list[tuple[float, int]] = []
    for place_in_order, index in enumerate(order):
        mean, count = wanted[index] - place_in_order * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        blocks.append((mean, count))
    heights = [min(max(mean, low), high - room) for mean, count in blocks for _ in range(count)]
    found = dict(zip(order, (height + number * gap for number, height in enumerate(heights)), strict=True))
    return [found[index] for index in range(len(wanted))]
