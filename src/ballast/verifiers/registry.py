"""Verifiers: functions that say how right an answer is, by name. Torch-free."""

from __future__ import annotations

import importlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import islice
from typing import Any

from ballast.errors import BallastError, suggest
from ballast.ranks import ALONE, Ranks, in_order
from ballast.verifiers import program, worker
from ballast.verifiers.answers import close, first_line, last_number, normalised
from ballast.verifiers.code import CodeLimits
from ballast.verifiers.expression import evaluate_expression
from ballast.verifiers.notation import reference
from ballast.verifiers.worker import VerifierTimeout, VerifierUnavailable

SECONDS = 10.0
"""Wall clock of one verdict of a verifier that runs in a worker process."""
MATH, READ_MATH = "ballast.verifiers.math:judge", "ballast.verifiers.math:read"
PROGRAM = "program"
PROGRAMS_KEPT = 4096
"""Programs whose value is kept, so that an answer that is scored and read runs once; as many are prepared at a time."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verifier:
    """A named scoring function.

    Attributes:
        name: as in a recipe.
        score: ``score(completion, row) -> float`` in 0 … 1.
        check: raises `BallastError` for a row that cannot be judged, so that it is found before generating; or None.
        read: ``read(completion, row) -> str | None``, the answer that is read off a completion, right or wrong, in one
            notation, so that equal texts are equal answers; None where the verifier does not say.
        prepare: called with many answers before they are scored or read one by one, for what can be done side by
            side; or None.
    """

    name: str
    score: Callable[[str, Row], float]
    check: Callable[[Row], None] | None = None
    read: Callable[[str, Row], str | None] | None = None
    prepare: Callable[[Sequence[tuple[str, Row]]], None] | None = None

    def __call__(self, completion: str, row: Row) -> float:
        return self.score(completion, row)


@dataclass(frozen=True)
class ScoredBatch:
    """Scores in order, and how many of them are 0 because the verifier raised or overran its time."""

    scores: tuple[float, ...]
    errors: int = 0
    timeouts: int = 0
    first_error: str | None = None


def verifier(
    name: str,
    *,
    seconds: float = SECONDS,
    tolerance: float = program.TOLERANCE,
    allow_code_execution: bool = False,
) -> Verifier:
    """Return a verifier: one of `VERIFIERS`, or ``package.module:function``.

    A function of your own runs in a worker process, as math-verify does: an endless loop, a crash or a hunger for
    memory costs one answer; an attribute ``read`` of it is `Verifier.read`. ``program`` runs what the model wrote in a
    limited process for each answer. Ballast's own other verifiers run in this process.

    Args:
        seconds: wall clock of one verdict of what runs in a worker, or of one program.
        tolerance: how far a number that a program returns may be from the row's.
        allow_code_execution: needed by ``program``.

    Raises:
        BallastError: for an unknown name, a path that cannot be imported (naming what failed), or ``program`` without
            permission.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise BallastError(f"verifier {name!r}: seconds = {seconds!r}: must be a finite number above 0")
    if name in WITH_SETTINGS:
        return WITH_SETTINGS[name](seconds, tolerance, allow_code_execution)
    if name in VERIFIERS:
        return VERIFIERS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        hint = suggest(name, list(dict.fromkeys((*VERIFIERS, *WITH_SETTINGS))))
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
    made = isinstance(function, Verifier)
    check, read = (getattr(function, part, None) for part in ("check", "read"))
    own = function if made else Verifier(name, function, check, read=read)
    if module_name.split(".")[0] == __package__.split(".")[0]:
        return own
    read = None if own.read is None else partial(_in_worker, worker.read, f"{name}.read", seconds)
    return replace(own, score=partial(_in_worker, worker.judge, name, seconds), read=read)


def _in_worker(ask: Callable[..., Any], target: str, seconds: float, completion: str, row: Row) -> Any:
    return ask(target, completion, row, seconds)


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


def score_answers(verify: Verifier, answers: Iterable[tuple[str, Row]], ranks: Ranks = ALONE) -> ScoredBatch:
    """Score (completion, row) pairs; an exception, a time-out or a score outside 0 … 1 is a 0, with one warning.

    Args:
        ranks: who shares the answers; all have the same ones, and all get all scores.

    Raises:
        BallastError: if the verifier has never started, so that every score would be 0.
    """
    shares = ranks.gather(_score_all(verify, ranks.share(list(answers))))
    scores = in_order([share.scores for share in shares])
    errors, timeouts = sum(share.errors for share in shares), sum(share.timeouts for share in shares)
    first_error = next((share.first_error for share in shares if share.first_error), None)
    if errors or timeouts:
        warnings.warn(
            f"verifier {verify.name!r}: {errors} exceptions and {timeouts} time-outs in {len(scores)} answers scored "
            f"0; the first: {first_error}",
            stacklevel=2,
        )
    return ScoredBatch(tuple(scores), errors, timeouts, first_error)


def _score_all(verify: Verifier, answers: Sequence[tuple[str, Row]]) -> ScoredBatch:
    scores: list[float] = []
    errors = timeouts = 0
    first_error = None
    for completion, row in _prepared(verify, answers):
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
    return ScoredBatch(tuple(scores), errors, timeouts, first_error)


def read_answers(verify: Verifier, answers: Iterable[tuple[str, Row]]) -> list[str | None]:
    """Return the answer read off each completion of (completion, row) pairs; one that cannot be read is None.

    Raises:
        ValueError: if the verifier does not say what an answer is.
        BallastError: if it has never started.
    """
    if verify.read is None:
        raise ValueError(f"verifier {verify.name!r} does not read answers off completions")
    found: list[str | None] = []
    for completion, row in _prepared(verify, answers):
        try:
            found.append(verify.read(completion, row))
        except VerifierUnavailable:
            raise
        except (Exception, SystemExit):  # `score_answers` counts them
            found.append(None)
    return found


def _prepared(verify: Verifier, answers: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Yield the answers, each after its block was prepared; a block is no larger than what is kept of it."""
    left = iter(answers)
    while block := list(islice(left, PROGRAMS_KEPT)):
        if verify.prepare is not None:
            verify.prepare(block)
        yield from block


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
    return worker.judge(MATH, completion, {"answer": str(_answer(row))}, seconds)


def _read_math(completion: str, row: Row, seconds: float = SECONDS) -> str | None:
    return worker.read(READ_MATH, completion, {"answer": str(_answer(row))}, seconds)


def _shown(value: float | Fraction | None) -> str | None:
    """Return a number in one notation, whole ones without a decimal point."""
    if value is None:
        return None
    return str(int(value)) if value % 1 == 0 else str(value) if isinstance(value, Fraction) else f"{value:.12g}"


def _timed_math(seconds: float, tolerance: float, allow_code_execution: bool) -> Verifier:
    return replace(VERIFIERS["math"], score=partial(_math, seconds=seconds), read=partial(_read_math, seconds=seconds))


def _program(seconds: float, tolerance: float, allow_code_execution: bool) -> Verifier:
    if allow_code_execution is not True:
        raise BallastError(
            "verifier 'program' runs what the model writes on this machine with your rights; the limits around it are "
            "no sandbox. Set allow_code_execution to true to run it, best inside a container"
        )
    if isinstance(tolerance, bool) or not 0 <= tolerance < math.inf:
        raise BallastError(f"verifier 'program': tolerance = {tolerance!r}: must be a finite number of 0 or more")
    limits = CodeLimits(seconds=seconds)

    @lru_cache(PROGRAMS_KEPT)
    def run(completion: str, prompt: Any) -> float | None:
        return program.value(completion, {"prompt": prompt}, limits)

    def value(completion: str, row: Row) -> float | None:
        prompt = row.get("prompt")
        return run(completion, prompt if isinstance(prompt, str) else None)

    def score(completion: str, row: Row) -> float:
        found = value(completion, row)
        return float(found is not None and abs(found - _number(row)) <= tolerance)

    def prepare(answers: Sequence[tuple[str, Row]]) -> None:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(value, *zip(*answers, strict=True)) if answers else ())

    return Verifier(PROGRAM, score, _needs_number, lambda text, row: _shown(value(text, row)), prepare)


VERIFIERS: dict[str, Verifier] = {
    one.name: one
    for one in (
        # The whole text is the answer.
        Verifier("exact", _exact, _needs_answer, lambda completion, _: normalised(completion) or None),
        Verifier(
            "expression", _expression, _needs_number, lambda text, _: _shown(evaluate_expression(first_line(text)))
        ),
        Verifier("last-number", _last_number, _needs_number, lambda completion, _: _shown(last_number(completion))),
        Verifier("math", _math, _needs_text, _read_math),
    )
}
WITH_SETTINGS: dict[str, Callable[[float, float, bool], Verifier]] = {"math": _timed_math, PROGRAM: _program}
"""Verifiers that a recipe's settings change: seconds, tolerance, permission to run code."""
