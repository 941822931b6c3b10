"""Write an answer so that math-verify reads all of it, and as what it says.

A formula that math-verify's grammar does not know is searched for numbers instead, and the last one is taken for the
answer: ``1+e^-1`` and ``1-e^-1`` are both 1 then, ``0.\\overline{3}`` is 0, ``2 1/3`` is 1, ``1.5e3`` is 4.5 times e.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from ballast.verifiers.answers import NUMBER, last_box

SIGNS = str.maketrans(
    {
        **dict.fromkeys("−－﹣–‐‑", "-"),
        **dict.fromkeys("\n\r", " "),
        "π": "\\pi ",
        "∞": "\\infty ",
        "×": "\\times ",
        "·": "\\cdot ",
        "÷": "/",
        "°": "^\\circ ",
        "≤": "\\le ",
        "≥": "\\ge ",
        "≠": "\\ne ",
        "∪": "\\cup ",
    }
)


def _repeating(found: re.Match[str]) -> str:
    whole, fixed, period = found.groups(default="")
    scale, nines = 10 ** len(fixed), 10 ** len(period) - 1
    value = Fraction(int(whole + fixed or "0"), scale) + Fraction(int(period), scale * nines)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


REWRITES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\?[$€£]", ""),
        (r"(?:(?<!\\)[.,;:\s]|\\+\s*)+$", ""),
        (r"\\(?:mathrm|operatorname)\s*\{\s*([A-Za-z])\s*\}", r"\1"),
        (r"(?<=\d)(?:,\\!|\{,\})(?=\d{3}(?!\d))", ","),
        (r"(?<=\d)(?:\\[,!;: ]|~)(?=\d{3}(?!\d))", ""),
        (r"\*\*", "^"),
        (r"\^\s*([-+]\s*(?:\d+(?:\.\d+)?|[A-Za-z]))", r"^{\1}"),
        (r"(?<![\w.])(\d+\.\d+|1)[eE]([-+]?\d+)(?!\w)", r"\1\\times 10^{\2}"),
        (r"(?<![\w.])(\d+)[eE](\d+)(?!\w)", r"\1\\times 10^{\2}"),
        (r"(?<![\w./^}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w./])", r"\1\\frac{\2}{\3}"),
        (r"(\d*)\.(\d*)\\(?:overline|bar)\s*\{?(\d+)\}?", _repeating),
        (r"√\s*(\d+|\([^()]*\))", r"\\sqrt{\1}"),
    )
)
PLAIN = re.compile(r"([-+]?)(?:(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?|(\.\d+))(?:/(\d+))?", re.ASCII)
FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", re.ASCII)
BASED = re.compile(r"(\w+)_\{?(\d+)\}?", re.ASCII)
PROSE = re.compile(r"[^\\^_{}=*/+<>|]*")


def tidy(answer: str) -> str:
    """Return an answer in LaTeX that is read whole, without dollar signs and closing marks."""
    answer = answer.translate(SIGNS).strip()
    for pattern, replacement in REWRITES:
        answer = pattern.sub(replacement, answer)
    return answer.strip()


def reference(answer: str) -> str:
    """Return the answer of a row, tidied: what follows ``####`` (GSM8K), or stands in the last box."""
    answer = answer.rsplit("####", 1)[-1]
    box = last_box(answer)
    return tidy(answer if box is None else box)


def fraction(text: str) -> Fraction | None:
    """Return the exact value of a plain number, fraction or quotient of whole numbers, or None for anything else."""
    if (found := PLAIN.fullmatch(text)) is not None:
        sign, whole, decimals, bare, below = found.groups(default="")
        above = Fraction((whole.replace(",", "") + decimals) or bare)
    elif (found := FRACTION.fullmatch(text)) is not None:
        sign, above, below = found.group(1), Fraction(found.group(2)), found.group(3)
    else:
        return None
    if below and int(below) == 0:
        return None
    return (-1 if sign == "-" else 1) * above / int(below or "1")


def lone_number(text: str) -> str | None:
    """Return the one number of a text in words, such as ``18 (eighteen)``; None for other texts."""
    numbers = NUMBER.findall(text) if PROSE.fullmatch(text) else []
    return numbers[0] if len(numbers) == 1 else None
