"""What an answer is worth: the verifier's score, ReFT's third value for answers that are wrong, or a model's score."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ballast.errors import BallastError
from ballast.evaluation.generation import Completion
from ballast.rl.options import RLOptions
from ballast.verifiers.program import TOLERANCE
from ballast.verifiers.registry import SECONDS, ScoredBatch, Verifier, score_answers, verifier

Row = Mapping[str, Any]
Score = Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[float]]
"""Returns the scores of sampled ids behind the prompts of the rows at these places."""

WRONG = 0.1
"""Reward of an answer that is there and wrong. Source: ReFT, arXiv:2401.08967, section 3.2."""


def reward_verifier(
    name: str,
    reward: str = "verifier",
    *,
    seconds: float = SECONDS,
    tolerance: float = TOLERANCE,
    allow_code_execution: bool = False,
) -> Verifier:
    """Return what rewards answers, itself a verifier: exceptions, time-outs and scores are treated as a verifier's.

    Args:
        name: of a verifier, as `ballast.evaluation.verifier` takes it.
        reward: ``verifier`` for its score; ``reft`` for 1 where the score is 1, else 0.1 where an answer could be read
            off, else 0.
        seconds: wall clock of one verdict of what runs in a worker.
        tolerance, allow_code_execution: of verifier ``program``.

    Raises:
        BallastError: if there is no such verifier, or with ``reft`` it does not say what an answer is.
    """
    verify = verifier(name, seconds=seconds, tolerance=tolerance, allow_code_execution=allow_code_execution)
    if reward == "verifier":
        return verify
    answered = _answered(verify, name, seconds)

    def score(completion: str, row: Row) -> float:
        value = float(verify(completion, row))
        if not 0 <= value < 1:  # right, or a score that is refused as such
            return value
        return WRONG if answered(completion, row) else 0.0

    return replace(verify, score=score)


def options_reward(options: RLOptions) -> Verifier | None:
    """Return what judges answers as the options say, None for nobody; raises as `reward_verifier` does."""
    if options.reward == "model" and options.verifier is None:
        return None
    return reward_verifier(
        str(options.verifier),
        "reft" if options.reward == "reft" else "verifier",
        seconds=options.seconds,
        tolerance=options.tolerance,
        allow_code_execution=options.allow_code_execution,
    )


def _answered(verify: Verifier, name: str, seconds: float) -> Callable[[str, Row], bool]:
    """Return whether there is an answer in a completion: as ``name.answered`` says, else where one is read off it."""
    try:
        own = verifier(f"{name}.answered", seconds=seconds)
    except BallastError as error:
        if (read := verify.read) is not None:
            return lambda completion, row: read(completion, row) is not None
        raise BallastError(
            f"reward reft gives {WRONG} for a wrong answer and 0 for none, and verifier {name!r} does not say which is "
            "which: give the function an attribute `answered` or `read`, itself a function of (completion, row), or "
            "take reward: verifier"
        ) from error
    return lambda completion, row: bool(own(completion, row))


@dataclass(frozen=True)
class Judged:
    """Rewards of one round of answers, in order, and what went wrong.

    Attributes:
        rewards: of a verifier, 0 for an answer that has not ended; or a model's scores.
        correct: answers that the verifier gives 1; None without one.
        cut_off: answers that had not ended after ``max_new_tokens``.
        errors, timeouts: answers that the verifier gives 0 because it failed or overran its time.
        seconds: wall clock of judging.
    """

    rewards: tuple[float, ...]
    correct: int | None
    cut_off: int
    errors: int
    timeouts: int
    seconds: float


COUNTS = ("cut_off", "errors", "timeouts")


class Rewards:
    """Judges sampled answers, and counts over a run what went wrong.

    Attributes:
        answers: how many were judged.
        counts: how many of them were cut off, raised in the verifier, or overran its time.
    """

    def __init__(
        self,
        verify: Verifier | None,
        rows: Sequence[Row],
        read: Callable[[int, Sequence[int]], Completion],
        score: Score | None = None,
    ) -> None:
        """
        Args:
            verify: says what an answer is worth, or with `score` whether it is right.
            rows: as the verifier reads them.
            read: returns the answer that sampled ids spell behind the prompt of a row.
            score: says what answers are worth, in place of the verifier.
        """
        assert verify is not None or score is not None
        self.verify, self.rows, self.read, self.score = verify, rows, read, score
        self.answers = 0
        self.counts = dict.fromkeys(COUNTS, 0)

    def state(self) -> dict[str, int]:
        """Return the counts, for a checkpoint."""
        return {"answers": self.answers, **self.counts}

    def restore(self, state: Mapping[str, int]) -> None:
        """Count on from a checkpoint."""
        self.answers = state["answers"]
        self.counts = {name: state[name] for name in self.counts}

    def judge(self, places: Sequence[int], ids: Sequence[Sequence[int]]) -> Judged:
        """Return the rewards of answers, each to the row at its place, given as token ids."""
        started = time.monotonic()
        answers = [(place, self.read(place, sampled)) for place, sampled in zip(places, ids, strict=True)]
        ended = [(answer.text, self.rows[place]) for place, answer in answers if answer.ended]
        scored = ScoredBatch(()) if self.verify is None else score_answers(self.verify, ended)
        scores = iter(scored.scores)
        verdicts = () if self.verify is None else tuple(next(scores) if one.ended else 0.0 for _, one in answers)
        found = Judged(
            verdicts if self.score is None else tuple(self.score(places, ids)),
            correct=None if self.verify is None else sum(verdict >= 1 for verdict in verdicts),
            cut_off=len(answers) - len(ended),
            errors=scored.errors,
            timeouts=scored.timeouts,
            seconds=time.monotonic() - started,
        )
        self.answers += len(answers)
        self.counts = {name: count + getattr(found, name) for name, count in self.counts.items()}
        return found
