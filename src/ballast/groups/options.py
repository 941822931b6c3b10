"""How groups are made up; imports no torch, so that recipes are checked without it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ballast.errors import BallastError, suggest

WHOLE = {"expert": 0, "teacher": 0, "own": 0, "refresh": 1, "max_new_tokens": 1, "batch_tokens": 1}
"""Smallest value of each option that is a whole number."""


@dataclass(frozen=True)
class GroupOptions:
    """What each prompt's group consists of, and how its own part is sampled and judged.

    Attributes:
        verifier: what judges every answer: ``exact``, ``expression``, ``last-number``, ``math`` or
            ``package.module:function``; called with (answer, row).
        expert: 1 to take the row's ``completion`` into the group, 0 to leave it out.
        teacher: how many of the row's ``teachers`` to take, from the first; None takes all.
        own: answers that the model in training samples for each prompt.
        refresh: optimiser steps that one round of sampling serves; 1 is on-policy.
        temperature, top_p: of the samples; temperature 0 is greedy, for one own answer.
        max_new_tokens: tokens after which an own answer is cut off; one that has not ended by then scores 0.
        batch_tokens: rows × (prompt + new tokens) of one batch of sampling.
        seconds: wall clock of one verification by a function of one's own, or by math-verify.
        file: folder of groups sampled beforehand (`ballast sample`); nothing is sampled in training then.

    Raises:
        BallastError: for an unknown name, a value out of range, or a group without any member.
    """

    verifier: str | None = None
    expert: int = 1
    teacher: int | None = None
    own: int = 4
    refresh: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    batch_tokens: int = 16384
    seconds: float = 10.0
    file: str | None = None

    def __post_init__(self) -> None:
        for name in fields(self):
            problem = _problem(name.name, getattr(self, name.name))
            if problem:
                raise BallastError(f"groups.{name.name} {problem}")
        if not self.expert and not self.own and self.teacher == 0:
            raise BallastError("groups: expert, teacher and own are all 0, so every group would be empty; raise one")
        if self.temperature == 0 and self.own > 1:
            raise BallastError(
                f"groups.temperature = 0 with own = {self.own}: greedy answers are all the same, so they would have "
                "no advantage over each other; set a temperature above 0, or own to 1"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GroupOptions:
        """Return the options that a recipe's mapping names.

        Raises:
            BallastError: for a misspelt key or a bad value.
        """
        known = [one.name for one in fields(cls)]
        for key in values:
            if key not in known:
                raise BallastError(f"groups: unknown key {key!r}{suggest(str(key), known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain values."""
        return asdict(self)


def _problem(name: str, value: Any) -> str | None:
    if name in WHOLE:
        if value is None and name == "teacher":
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < WHOLE[name]:
            return f"= {value!r}: must be a whole number of at least {WHOLE[name]}"
        return f"= {value}: a row has one completion; set 1 or 0" if name == "expert" and value > 1 else None
    if name in ("verifier", "file"):
        return None if value is None or (isinstance(value, str) and value) else f"= {value!r}: must be text"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return f"= {value!r}: must be a finite number"
    if name == "top_p" and not 0 < value <= 1:
        return f"= {value}: must lie in (0, 1]"
    if name == "temperature" and value < 0:
        return f"= {value}: must be 0 (greedy) or above"
    return f"= {value}: must be above 0" if name == "seconds" and value <= 0 else None
