"""Figures, differences and intervals as text: the same in a terminal, on a page and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable

ROUNDING = 1e-12
"""What sums of the same numbers in another order may differ by, so no difference."""


LARGE = 1e7
"""From here on a figure is written as 1.79e12."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure for a table: ``digits`` decimals where it lies near 1, fewer above and below, powers beyond."""
    if value is None or not math.isfinite(value):
        return "–"
    size = 0.0 if abs(value) < ROUNDING else abs(value)
    if size == 0:
        text = f"{size:.{digits}f}"
    elif size < 0.001:
        text = f"{size:.{digits - 1}g}"
    elif size >= LARGE:
        mantissa, _, exponent = f"{size:.{digits - 1}e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{size:,.{digits if size < 10 else digits - 1 if size < 100 else 0}f}"
    return f"−{text}" if value < 0 and size else text


def figure(value: float | None, *, share: bool) -> str:
    """Return a figure of a metric: a share has three decimals however small it is."""
    return f"{value:.3f}" if share and value is not None and 0 <= value <= 1 else number(value)


def percentage(share: float) -> str:
    """Return a share in percent with one decimal; what is little is not none."""
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def signed(value: float | None, digits: int = 3, *, share: bool = False) -> str:
    """Return a difference: `number` with its sign; of shares with three decimals however small it is."""
    if share and value is not None and math.isfinite(value):
        value = round(value, digits)
    text = number(value, digits)
    return f"+{text}" if value is not None and value > ROUNDING else text


def interval(low: float | None, high: float | None, *, show: Callable[[float], str] = number) -> str:
    """Return ``low to high``, or nothing where there is no interval."""
    return "" if low is None or high is None else f"{show(low)} to {show(high)}"


def half_or_bounds(
    value: float, low: float, high: float, *, digits: int = 3, sign: str = "", spaced: bool = False
) -> str:
    """Return ``±.012`` where a value is in the middle of its interval but for rounding, else ``.310–.362``.

    Args:
        spaced: let narrow columns break the line after the dash.
    """
    below, above = f"{value - low:.{digits}f}", f"{high - value:.{digits}f}"
    if below == above:
        return f"±{_short(below)}"
    return f"{_short(f'{low:{sign}.{digits}f}')}–{' ' if spaced else ''}{_short(f'{high:{sign}.{digits}f}')}"


def _short(text: str) -> str:
    """Return a number without the zero before its point."""
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def rate(value: float | None) -> str:
    """Return a learning rate in the shortest form that is exact: ``3e-4``."""
    if value is None:
        return "–"
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"


def p_value(p: float | None) -> str:
    """Return a p-value: three decimals, or that it is smaller."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def joined(parts: list[str], last: str = "and") -> str:
    """Return ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}" if parts else ""


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return ``1 seed``, ``5 seeds``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
