"""Text from data as text: nothing in it acts on a page, a terminal or the direction of the text beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from ballast.text import inert

ROUNDING = 1e-12
"""What sums of the same numbers in another order may differ by, so no difference."""

MARKDOWN = re.compile(
    r"""[\\`*{}\[\]<>|~$&]      # markup anywhere
    |(?<![^\W_])_|_(?![^\W_])  # emphasis, but not within a word
    |^(?:[#=]|[+-](?=[\s+-]|$)|\d+(?=[.)](?:\s|$)))  # what starts a heading or a list
    |:(?=//)|(?<=\bwww)\.      # addresses that would become links
    """,
    re.VERBOSE | re.IGNORECASE,
)


def one_line(text: object) -> str:
    """Return inert text in one line: breaks and runs of white space become a space."""
    return inert(" ".join(str(text).split()))


def markdown(text: object) -> str:
    """Return text that Markdown shows as it is: no markup, no link, no table cell of its own."""
    return MARKDOWN.sub(_escaped, one_line(text))


def _escaped(markup: re.Match[str]) -> str:
    # A backslash goes before punctuation only; the number of a list gets a word joiner behind it.
    text = markup[0]
    return f"{text}\u2060" if text.isdigit() else f"\\{text}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure for a table: ``digits`` decimals where it lies near 1, fewer above and below."""
    if value is None or not math.isfinite(value):
        return "–"
    size = 0.0 if abs(value) < ROUNDING else abs(value)
    if size == 0:
        text = f"{size:.{digits}f}"
    elif size < 0.001:
        text = f"{size:.{digits - 1}g}"
    else:
        text = f"{size:,.{digits if size < 10 else digits - 1 if size < 100 else 0}f}"
    return f"−{text}" if value < 0 and size else text


def figure(value: float | None, *, share: bool) -> str:
    """Return a figure of a metric: a share has three decimals however small it is."""
    return f"{value:.3f}" if share and value is not None and 0 <= value <= 1 else number(value)


def signed(value: float | None, digits: int = 3) -> str:
    """Return a difference: `number` with its sign."""
    text = number(value, digits)
    return f"+{text}" if value is not None and value > ROUNDING else text


def interval(low: float | None, high: float | None, *, show: Callable[[float], str] = number) -> str:
    """Return ``low to high``, or nothing where there is no interval."""
    return "" if low is None or high is None else f"{show(low)} to {show(high)}"


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
