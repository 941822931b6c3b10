"""How groups are made up; imports no torch, so that recipes are checked without it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from ballast.options import Options, OptionsError, Path, Sources, Text
from ballast.stats import GROUP_FIELDS, PAIR_FIELDS, REFERENCE_FIELDS
from ballast.verifiers.options import conflicts
from ballast.verifiers.program import TOLERANCE

ROUND = "round"
"""The reference that is the model as it was when the round of answers was sampled."""


def round_problem(objective: str, needs: Iterable[str]) -> str | None:
    """Return why an objective cannot have `ROUND` for its reference, or None."""
    needed = set(needs)
    if not needed & set(GROUP_FIELDS):
        return (
            f"'round' is the model as it was when a round of answers was sampled, and objective {objective} trains on "
            "demonstrations, so there would be none; use 'model'"
        )
    lacking = sorted(needed & {*PAIR_FIELDS, *REFERENCE_FIELDS} - {"ref_logprob"})
    if lacking:
        return (
            f"objective {objective} needs {lacking[0]!r}, and of 'round' log-probabilities of the answers are kept "
            "alone; use 'model'"
        )
    return None


class GroupOptions(Options):
    """What each prompt's group consists of, and how its own part is sampled and judged."""

    owner: ClassVar[str] = "groups."

    verifier: Text | None = None
    """What judges every answer: `exact`, `math`, `expression`, `last-number`, `program` or `package.module:function`,
    called with (answer, row). Needed where the objective reads rewards or advantages, unless `file` has judged
    answers."""
    expert: int = Field(1, ge=0, le=1, json_schema_extra={"reason": "a row has one completion"})
    """1 to take the row's `completion` into the group, 0 to leave it out."""
    teacher: int | None = Field(None, ge=0)
    """How many of the row's `teachers` to take, from the first; none given takes all."""
    own: int = Field(4, ge=0)
    """Answers that the model in training samples for each prompt."""
    refresh: int = Field(1, ge=1)
    """Optimiser steps that one round of sampling serves; 1 is on-policy, more samples in larger batches from a model
    that is up to `refresh` − 1 steps old."""
    temperature: float = Field(1.0, ge=0)
    """Of the samples; 0 is greedy, for one own answer."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Samples come from the most likely tokens up to this mass."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens after which an own answer is cut off; one that has not ended by then scores 0, see `judge_cut_off`."""
    judge_cut_off: bool = False
    """Judge the text of own answers that are cut off, as GFT's released code does, so that they may have a reward
    without ever ending."""
    batch_tokens: int = Field(16384, ge=1)
    """Rows × (prompt + new tokens) of one batch of sampling."""
    seconds: float = Field(10.0, gt=0)
    """Wall clock of one verdict of a function of your own, of math-verify or of a program, in seconds."""
    tolerance: float = Field(TOLERANCE, ge=0)
    """How far a number that a program returns may be from the row's `answer`; verifier `program` alone reads it."""
    allow_code_execution: bool = False
    """Run what the model wrote on this machine; verifier `program` needs it."""
    file: Sources = ()
    """Groups sampled beforehand: a folder of `ballast sample`, or a file, or a list, trained on together; nothing is
    sampled in training then."""

    @field_validator("file", mode="before")
    @classmethod
    def _none_is_no_file(cls, value: Any) -> Any:
        return () if value is None else value

    @field_validator("file")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := next((one for place, one in enumerate(value) if one in value[:place]), None):
            raise ValueError(f"{twice} is named twice, so its answers would count double; name it once")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> GroupOptions:
        if not self.expert and not self.own and self.teacher == 0:
            raise ValueError("expert, teacher and own are all 0, so every group would be empty; raise one")
        if self.temperature == 0 and self.own > 1:
            message = (
                f"0 with own = {self.own}: greedy answers are all the same, so they would have no advantage over each "
                "other; set a temperature above 0, or own to 1"
            )
            raise OptionsError([(("temperature",), message)])
        if problems := list(conflicts(self)):
            raise OptionsError(problems)
        return self

    def lacking(self, objective: str, origins: Iterable[str], *, judged: bool) -> tuple[str, str] | None:
        """Return the option under which groups would lack what an objective reads, and why; None where none would.

        Args:
            objective: its name.
            origins: what every group must have an answer of.
            judged: whether it reads what a verifier says.
        """
        if self.file:
            return None
        if missing := next((origin for origin in origins if getattr(self, origin) == 0), None):
            return missing, (
                f"0, and objective {objective} compares given answers with the model's own: nothing would be trained; "
                "set it to 1"
            )
        if judged and self.verifier is None:
            return "verifier", (
                "is required and missing: without one no answer has a reward; name one, such as math, exact or "
                "your_module:function"
            )
        if self.judge_cut_off and self.verifier is None:
            return "judge_cut_off", "true without groups.verifier: there is no judge; name one, or leave it out"
        return None


class RowsOptions(Options):
    """The right own answers as demonstrations, which `ballast sample` writes beside the groups; a bare string is the
    ``file``."""

    owner: ClassVar[str] = "rows."

    file: Path
    """A new JSONL file: of every prompt its right own answers, no text twice, and the expert's row last."""
    most: int = Field(10, ge=1)
    """Own answers of one prompt, from the first."""
