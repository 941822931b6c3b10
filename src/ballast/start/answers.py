"""Which verifier can judge answers to these rows, and what a row's right answer is. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ballast.errors import BallastError
from ballast.verifiers.answers import NUMBER, last_box
from ballast.verifiers.registry import Verifier, check_rows, score_answers, verifier

Row = Mapping[str, Any]
SHORT = 60
"""Characters of the longest demonstration that is an answer as a whole."""
ENOUGH = 0.5
"""Share of the rows that a verifier must be able to judge to be chosen."""
JUDGED = 100
"""Rows that verifiers are tried on."""
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*?)\s*$")
_AT_THE_END = re.compile(rf"({NUMBER.pattern})[.!]?\s*$", re.ASCII)


def _of_column(row: Row, text: str) -> str | None:
    value = row.get("answer")
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def _behind_hashes(row: Row, text: str) -> str | None:
    found = _HASHES.search(text)
    return found[1].replace(",", "") if found else None


def _boxed(row: Row, text: str) -> str | None:
    return last_box(text) or None


def _whole(row: Row, text: str) -> str | None:
    text = text.strip()
    return text if text and len(text) <= SHORT and "\n" not in text else None


def _number_at_the_end(row: Row, text: str) -> str | None:
    found = _AT_THE_END.search(text)
    return found[1].replace(",", "") if found else None


@dataclass(frozen=True)
class Judge:
    """A verifier, and where the right answer of a row is found.

    Attributes:
        read: returns it of a row and its demonstration's text, None where there is none.
        said: where that is, in words.
    """

    verifier: str
    read: Callable[[Row, str], str | None]
    said: str


JUDGES = (
    (
        Judge("last-number", _of_column, "the column answer"),
        Judge("exact", _of_column, "the column answer"),
        Judge("math", _of_column, "the column answer"),
    ),
    (
        Judge("last-number", _behind_hashes, "what follows ####"),
        Judge("math", _boxed, r"what stands in \boxed"),
    ),
    (
        Judge("last-number", _number_at_the_end, "the number that an answer ends with"),
        Judge("exact", _whole, "the whole of a short answer"),
    ),
)
"""Answers that rows name come before those that are marked, and these before those that are guessed."""


@dataclass(frozen=True)
class Chosen:
    """The judge of these rows, and the share of them that it finds right with their own demonstration."""

    judge: Judge
    share: float


def choose(rows: Sequence[Row], texts: Sequence[str]) -> Chosen | None:
    """Return the first kind's judge under which most demonstrations are right; None where fewer than `ENOUGH` are.

    Args:
        rows: rows of demonstrations; `JUDGED` of them are tried, drawn from all: files are often laid end to end.
        texts: the demonstration of each.
    """
    tried = sorted(Random(0).sample(range(len(rows)), min(JUDGED, len(rows))))
    rows, texts = [rows[place] for place in tried], [texts[place] for place in tried]
    for alike in JUDGES:
        shares = [(sum(one is not None for one in judged(judge, rows, texts)) / len(rows), judge) for judge in alike]
        share, judge = max(shares, key=lambda found: found[0])
        if share >= ENOUGH:
            return Chosen(judge, share)
    return None


def judged(judge: Judge, rows: Sequence[Row], texts: Sequence[str]) -> list[str | None]:
    """Return the right answer of each row, None where the row's own demonstration is not found right by it."""
    answers = [judge.read(row, text) for row, text in zip(rows, texts, strict=True)]
    verify = verifier(judge.verifier)
    able = [place for place, answer in enumerate(answers) if answer is not None and _can_judge(verify, answer)]
    scored = score_answers(verify, [(texts[place], {"answer": answers[place]}) for place in able])
    right = {place for place, score in zip(able, scored.scores, strict=True) if score == 1}
    return [answer if place in right else None for place, answer in enumerate(answers)]


def _can_judge(verify: Verifier, answer: str) -> bool:
    try:
        check_rows(verify, [{"answer": answer}])
    except BallastError:
        return False
    return True
