"""Verifiers: functions that say how right an answer is, by name. Torch-free."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ballast.errors import BallastError, suggest
from ballast.verifiers.answers import close, first_line, last_number, normalised
from ballast.verifiers.expression import evaluate_expression
from ballast.verifiers.notation import reference
from ballast.verifiers.worker import VerifierTimeout, VerifierUnavailable, judge

SECONDS = 10.0
"""Wall clock of one verdict of a verifier that runs in a worker process."""
MATH = "ballast.verifiers.math:judge"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verifier:
    """A named scoring function.

    Attributes:
        name: as in a recipe.
        score: ``score(completion, row) -> float`` in 0 … 1.
        check: raises `BallastError` for a row that cannot be judged, so that it is found before generating; or None.
    """

    name: str
    score: Callable[[str, Row], float]
    check: Callable[[Row], None] | None = None

    def __call__(self, completion: str, row: Row) -> float:
        return self.score(completion, row)


@dataclass(frozen=True)
class ScoredBatch:
    """Scores in order, and how many of them are 0 because the verifier raised or overran its time."""

    scores: tuple[float, ...]
    errors: int = 0
    timeouts: int = 0
    first_error: str | None = None


def verifier(name: str, *, seconds: float = SECONDS) -> Verifier:
    """Return a verifier: one of `VERIFIERS`, or ``package.module:function``.

    A function of your own runs in a worker process, as math-verify does: an endless loop, a crash or a hunger for
    memory costs one answer. Ballast's own other verifiers run in this process.

    Args:
        seconds: wall clock of one verdict of what runs in a worker.

    Raises:
        BallastError: for an unknown name, or a path that cannot be imported (naming what failed).
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise BallastError(f"verifier {name!r}: seconds = {seconds!r}: must be a finite number above 0")
    if name == "math":
        return replace(VERIFIERS[name], score=partial(_math, seconds=seconds))
    if name in VERIFIERS:
        return VERIFIERS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        hint = suggest(name, list(VERIFIERS))
        raise BallastError(f"unknown verifier {name!r}{hint}; or give one of your own as package.module:function")
    if module_name == "__main__":
        raise BallastError(
            f"verifier {name!r}: the process that verifiers run in cannot import the script that is running; move the "
            "function into a module of its own"
        )
    try:
        function: Any = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise BallastError(f"verifier {name!r}: cannot import module {module_name!r} ({reason})") from error
    for part in attribute.split("."):
        if not hasattr(function, part):
            raise BallastError(f"verifier {name!r}: module {module_name!r} has no {attribute!r}")
        function = getattr(function, part)
    if not callable(function):
        raise BallastError(f"verifier {name!r}: {attribute!r} is a {type(function).__name__}, not a function")
    own = function if isinstance(function, Verifier) else Verifier(name, function, getattr(function, "check", None))
    if module_name.split(".")[0] == __package__.split(".")[0]:
        return own
    return replace(own, score=partial(_in_worker, name, seconds))


def _in_worker(target: str, seconds: float, completion: str, row: Row) -> float:
    return judge(target, completion, row, seconds)


def check_rows(verify: Verifier, rows: Iterable[Row]) -> None:
    """Refuse rows that the verifier cannot judge, which would all score 0 whatever the model answers.

    Raises:
        BallastError: naming the first such row.
    """
    for index, row in enumerate(rows):
        try:
            if verify.check is not None:
                verify.check(row)
        except BallastError as error:
            raise BallastError(f"row {index + 1}: {error}") from error


def score_answers(verify: Verifier, answers: Iterable[tuple[str, Row]]) -> ScoredBatch:
    """Score (completion, row) pairs; an exception, a time-out or a score outside 0 … 1 is a 0, with one warning.

    Raises:
        BallastError: if the verifier has never started, so that every score would be 0.
    """
    scores: list[float] = []
    errors = timeouts = 0
    first_error = None
    for completion, row in answers:
        score = 0.0
        try:
            score = _checked(verify(completion, row))
        except VerifierTimeout as error:
            timeouts += 1
            first_error = first_error or _printable(str(error))
        except VerifierUnavailable:
            raise
        except (Exception, SystemExit) as error:
            errors += 1
            first_error = first_error or _printable(f"{type(error).__name__}: {error}")
        scores.append(score)
    if errors or timeouts:
        warnings.warn(
            f"verifier {verify.name!r}: {errors} exceptions and {timeouts} time-outs in {len(scores)} answers scored "
            f"0; the first: {first_error}",
            stacklevel=2,
        )
    return ScoredBatch(tuple(scores), errors, timeouts, first_error)


def _printable(text: str) -> str:
    # An exception may quote the model's text, with whatever a terminal makes of it.
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _checked(score: Any) -> float:
    if isinstance(score, (str, bytes)):
        raise TypeError(f"the verifier returned {score[:60]!r}, which is no number")
    value = float(score)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"the verifier returned {value}, scores lie in 0 … 1")
    return value


def _answer(row: Row) -> Any:
    if row.get("answer") is None:
        raise BallastError(f"no 'answer' to judge by (columns: {', '.join(map(str, row))}); rename one with `columns`")
    return row["answer"]


def _number(row: Row) -> float:
    answer = _answer(row)
    number = last_number(answer) if isinstance(answer, str) else answer
    # Not by isfinite: it raises for whole numbers beyond any float.
    if (
        isinstance(number, (int, float))
        and not isinstance(number, bool)
        and abs(number) != math.inf
        and number == number
    ):
        return number
    raise BallastError(f"the answer {answer!r} has no number to compare with")


def _needs_answer(row: Row) -> None:
    _answer(row)


def _needs_number(row: Row) -> None:
    _number(row)


def _needs_text(row: Row) -> None:
    if not reference(str(_answer(row))):
        raise BallastError(f"the answer {row['answer']!r} is blank: nothing to compare with")


def _exact(completion: str, row: Row) -> float:
    answer = _answer(row)
    accepted = answer if isinstance(answer, (list, tuple)) else [answer]
    return float(normalised(completion) in {normalised(str(one)) for one in accepted})


def _last_number(completion: str, row: Row) -> float:
    number = last_number(completion)
    return float(number is not None and close(number, _number(row)))


def _expression(completion: str, row: Row) -> float:
    value = evaluate_expression(first_line(completion))
    return float(value is not None and close(value, _number(row)))


def _math(completion: str, row: Row, seconds: float = SECONDS) -> float:
    return judge(MATH, completion, {"answer": str(_answer(row))}, seconds)


VERIFIERS: dict[str, Verifier] = {
    one.name: one
    for one in (
        Verifier("exact", _exact, _needs_answer),
        Verifier("expression", _expression, _needs_number),
        Verifier("last-number", _last_number, _needs_number),
        Verifier("math", _math, _needs_text),
    )
}
