"""From values to positions in a drawing, the ticks between, and the range that is worth drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
FEWEST, ONE_OF, STRETCH = 4, 6, 3.0
"""An axis leaves values out from this number on, one of so many, where they would stretch it by more than this."""
NEAR = 1.5
"""What stretches an axis by less than this is not left out."""

Extent = tuple[float, float, float]
"""A value between the bounds of its interval: (low, value, high)."""


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] to [start, end]; with `log` of the values' logarithms."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, x = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (x - low) / (high - low) * (self.end - self.start)

    def side(self, value: float) -> int:
        """Return -1 for a value below the scale, 1 for one above it, 0 within but for rounding."""
        margin = 1e-9 * (self.high - self.low)
        return (value > self.high + margin) - (value < self.low - margin)

    def nearest(self, value: float) -> float:
        """Return the position of a value, at the edge for one that lies outside."""
        return self(min(max(value, self.low), self.high))


def linear(
    values: Sequence[float], start: float, end: float, *, count: int = 5, whole: bool = False, tight: bool = False
) -> Scale:
    """Return a scale that holds all values, its bounds being ticks of round numbers (`whole`: of whole ones).

    With `tight` it ends at the values, and has the ticks between.

    Raises:
        ValueError: if there is no value.
    """
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        # A single value has no range: it is put in the middle of one.
        margin = abs(low) * 0.1
        low, high = (low - margin, high + margin) if margin else (0.0, 1.0)
    step = _step((high - low) / count)
    step = max(math.ceil(step), 1) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{multiple * step:.12g}") for multiple in range(first, last + 1))
    if tight:
        return Scale(low, high, start, end, tuple(one for one in ticks if low <= one <= high))
    return Scale(ticks[0], ticks[-1], start, end, ticks)


def logarithmic(values: Sequence[float], start: float, end: float) -> Scale:
    """Return a scale by logarithm with its ticks at the values given.

    Raises:
        ValueError: if there is none, or one is not positive.
    """
    ticks = tuple(sorted(set(values)))
    if not ticks or ticks[0] <= 0:
        raise ValueError("a scale by logarithm needs positive values")
    low, high = (ticks[0], ticks[-1]) if len(ticks) > 1 else (ticks[0] / 2, ticks[0] * 2)
    return Scale(low, high, start, end, ticks, log=True)


def robust(extents: Sequence[Extent], keep: Sequence[float] = ()) -> tuple[float, float]:
    """Return the range to draw: of all values with their intervals, but for few that would squash the others.

    Of four values or more up to one in six is left out, the fewest that will do, where the range of the rest is at most
    a third; then, in the same way, the widest intervals, whose values stay.

    Args:
        extents: values with the bounds of their intervals, the value itself where there is none; not empty.
        keep: what the range holds in any case.
    """
    shown = _without_far_values(sorted(extents, key=lambda extent: extent[1]), keep)
    inside = [*keep, *(value for _, value, _ in shown)]
    by_width = sorted(shown, key=lambda extent: extent[2] - extent[0])
    whole = _range(shown, inside)
    for dropped in range(1, _most(shown) + 1):
        narrow = _range(by_width[:-dropped], inside)
        if _squashed(narrow, whole):
            return narrow
    return whole


def _without_far_values(ordered: Sequence[Extent], keep: Sequence[float]) -> Sequence[Extent]:
    """Return the extents without the fewest at their ends that squash the others."""
    whole = _range(ordered, keep)
    for dropped in range(1, _most(ordered) + 1):
        parts = (ordered[first : len(ordered) - dropped + first] for first in range(dropped + 1))
        low, high = min((_range(part, keep) for part in parts), key=lambda one: one[1] - one[0])
        # What lies near the others is not left out with what is far.
        near = [one for one in ordered if max(high, one[2]) - min(low, one[0]) <= NEAR * (high - low)]
        if near and _squashed(_range(near, keep), whole):
            return near
    return ordered


def _most(extents: Sequence[Extent]) -> int:
    return max(len(extents) // ONE_OF, 1) if len(extents) >= FEWEST else 0


def _squashed(part: tuple[float, float], whole: tuple[float, float]) -> bool:
    """Whether a range is a third of another, or less; equal values have none that others could squash."""
    width, full = part[1] - part[0], whole[1] - whole[0]
    return width > 1e-9 * max(map(abs, part)) and full >= STRETCH * width


def _range(extents: Sequence[Extent], keep: Sequence[float]) -> tuple[float, float]:
    return min([*keep, *(low for low, _, _ in extents)]), max([*keep, *(high for _, _, high in extents)])


def _step(least: float) -> float:
    scale = 10 ** math.floor(math.log10(least))
    return next(step * scale for step in STEPS if step * scale >= least * (1 - 1e-9))
