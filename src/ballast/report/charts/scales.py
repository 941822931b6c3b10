"""From values to positions in a drawing, and the ticks between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


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


def linear(values: Sequence[float], start: float, end: float, *, count: int = 5, whole: bool = False) -> Scale:
    """Return a scale that holds all values, its bounds being ticks of round numbers (`whole`: of whole ones).

    Raises:
        ValueError: if there is no value.
    """
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        # A single value has no range: it is put in the middle of one.
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = _step((high - low) / count)
    step = max(math.ceil(step), 1) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{multiple * step:.12g}") for multiple in range(first, last + 1))
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


def _step(least: float) -> float:
    scale = 10 ** math.floor(math.log10(least))
    return next(step * scale for step in STEPS if step * scale >= least * (1 - 1e-9))
