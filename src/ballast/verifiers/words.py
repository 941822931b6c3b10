r"""Answers that are words, letters or options: compared as text, since a mathematics parser sorts their letters."""

from __future__ import annotations

import re

from ballast.verifiers.answers import normalised

MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mbox|operatorname|bf|rm)\b\s*|[{}$*]|\\[,!;: ]"
)
IN_TEXT = re.compile(r"\\(?:text|mbox|textrm|textbf)\s*\{[^{}]*[A-Za-z][^{}]*\}")
OPTION = re.compile(r"\(?([A-Za-z])(?:\)|[.:](?=\s|$)|$)")
TWO_LETTERS = re.compile(r"am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|on|or|so|to|up|us|we")
"""Words of two letters; others, such as ``ab``, are products."""
CONSTANTS = ("e", "i")
ANOTHER_OPTION = re.compile(r"\([A-Za-z]\)|\b(?:or|and)\b")
CLAUSE = re.compile(r"[.;!?]|,?\s*\b(?:because|since|as)\b")


def plain(text: str) -> str:
    """Return text without the LaTeX that only sets it."""
    return MARKUP.sub(" ", text).strip().strip("\"'“”‘’").strip()


def are_words(answer: str) -> bool:
    r"""Whether an answer is a word, several, one letter, or all inside ``\text{…}``, and so no formula.

    >>> [are_words(one) for one in ("east", r"\text{(B)}", "A", "No", "ab", r"\cot x", "5 apples", "e")]
    [True, True, True, True, False, False, False, False]
    """
    if IN_TEXT.fullmatch(answer.strip()):
        return True
    words = re.findall(r"[^\W\d_]+", text := plain(answer))
    if not words or re.search(r"[^\w\s.,;:!?'’()/-]|[\d_]", text):
        return False
    if len(words) == 1 and len(words[0]) == 1:
        return words[0] not in CONSTANTS and OPTION.fullmatch(text) is not None
    return any(map(_is_word, words))


def _is_word(letters: str) -> bool:
    letters = letters.lower()
    if not letters.isascii() or len(letters) < 3:
        return len(letters) > 1 and (not letters.isascii() or TWO_LETTERS.fullmatch(letters) is not None)
    return not set("aeiou").isdisjoint(letters)


def same_words(answer: str, given: str) -> bool:
    """Whether `given` is the answer up to case, markup and closing marks; an option may be followed by its text."""
    answer, given = plain(answer), plain(given)
    wanted = _letters(answer)
    option = OPTION.match(given)
    if len(wanted) == 1 and option is not None:
        return option.group(1).lower() == wanted and not ANOTHER_OPTION.search(given, option.end())
    clause = CLAUSE.split(given, maxsplit=1)[0]
    return wanted in (_letters(given), _letters(clause))


def _letters(text: str) -> str:
    return normalised(text).strip("()[].!?,;:").replace(" ", "")
