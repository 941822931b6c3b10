"""Read an answer off a text: its last number, its last box, what it states, its words."""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction

NUMBER = re.compile(
    r"(?:(?<![\w.)])[-−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?!\w))?", re.ASCII
)
TAIL = 100
"""Characters at the end of a text in which its last number is looked for first."""
EXACT_DIGITS = 300
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BOX_CHARACTERS = 2_000
"""Length of what can stand in a box; a longer one is no answer."""
STATED = re.compile(r"\banswer\b[^\n.:=]{0,40}?(?:\bis\b|[:=])\s*:?|####", re.IGNORECASE)
"""What an answer follows that is not in a box."""
FORMULA = re.compile(
    r"(?:\\(?:text|mbox|mathrm)\s*\{[^{}]*\}|\\[a-zA-Z]+|\\[,!;%$ ]|[a-zA-Z](?![a-zA-Z])"
    r"|[-−–+*/^_()\[\]{}.,!|=<>%$°π√∞×·÷\d ])+"
)
FORMULA_CHARACTERS = 200
LATEX = re.compile(r"\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
JOINED_BEFORE = re.compile(r"[$)\]]\s*(?:,|,?\s*(?:and|or))\s*$")
JOINED_BEHIND = re.compile(r"\s*(?:\\?%|,?\s*(?:and|or)\b|,\s*[$\\])")
STATEMENT_CHARACTERS = 2_000


def normalised(text: str) -> str:
    """Return text without differences of case, width, white space and closing full stop."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".").rstrip()


def first_line(text: str) -> str:
    """Return the first line that is not blank, without the ``=`` that it may begin with."""
    return text.lstrip().partition("\n")[0].partition("\r")[0].rstrip().removeprefix("=")


def last_number(text: str) -> float | None:
    """Return the last number of a text (thousands separators and exponents allowed), or None; whole ones are exact.

    >>> last_number("16-3 eggs make $1,234.50.")
    1234.5
    >>> last_number("about 2e-7")
    2e-07
    """
    end = text.rfind(" ", 0, max(0, len(text) - TAIL)) + 1  # no number has a space inside
    numbers = NUMBER.findall(text, end) or NUMBER.findall(text)
    return number(numbers[-1]) if numbers else None


def number(text: str) -> float:
    """Return the value of what `NUMBER` has matched."""
    text = text.replace(",", "").replace("−", "-")
    return int(text) if text.lstrip("-").isdigit() and len(text) <= EXACT_DIGITS else float(text)


def close(left: float | Fraction, right: float | Fraction) -> bool:
    """Whether two numbers are equal: whole ones exactly, others to about six digits however small they are."""
    try:
        if math.isclose(left, right, rel_tol=1e-6):
            return left % 1 != 0 or right % 1 != 0 or left == right
        # A float may be what a difference has left over.
        return not (left and right) and abs(float(left)) + abs(float(right)) < 1e-12
    except OverflowError:  # beyond any float
        return left == right


def last_box(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{…}`` that is closed, or None.

    >>> last_box(r"first \boxed{3}, no: \boxed{\frac{1}{2}} is right")
    '\\frac{1}{2}'
    """
    for box in reversed(list(BOX.finditer(text))[-8:]):
        depth = 1
        for place in range(box.end(), min(len(text), box.end() + BOX_CHARACTERS)):
            if text[place - 1] != "\\":
                depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[box.end() : place].strip()
    return None


def final_formula(text: str) -> str | None:
    """Return what is marked as the answer, or None.

    That is what stands in the last box, else all of what the text states as its answer if it is a formula, else the
    LaTeX that the statement begins with or the text ends with.
    """
    if (box := last_box(text)) is not None:
        return box
    end = text[-FORMULA_CHARACTERS:].rstrip().rstrip("*").rstrip()
    stated = list(STATED.finditer(end))
    rest = (end[stated[-1].end() :] if stated else end).strip().lstrip("*").strip()
    if (stated or len(text) <= FORMULA_CHARACTERS) and FORMULA.fullmatch(rest):
        return rest
    found = LATEX.match(rest) if stated else next(reversed(list(LATEX.finditer(rest))), None)
    if found is None or not (stated or rest[found.end() :].strip(" .,;") == ""):
        return None
    # "$3$ and $4$" are one answer, which math-verify puts together.
    joined = JOINED_BEFORE.search(rest[: found.start()]) or JOINED_BEHIND.match(rest, found.end())
    return None if joined else "".join(found.groups(default=""))


def statement(text: str) -> str:
    """Return the words that a text gives as its answer: those after ``answer is``, its last LaTeX, or its last line."""
    text = text[-STATEMENT_CHARACTERS:].rstrip()
    stated = list(STATED.finditer(text))
    if stated and (rest := text[stated[-1].end() :].strip()):
        return re.split(r"[\r\n]", rest)[0].strip()
    if set_in_latex := LATEX.findall(text):
        return "".join(set_in_latex[-1]).rpartition("=")[2].strip()
    return re.split(r"[\r\n]", text)[-1].strip()
