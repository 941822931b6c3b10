"""HPT: GRPO on a prompt's own answers where enough of them are right, imitation of the expert where not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._own import is_own, own_outcomes
from ballast.objectives.base import Objective, Scope, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class HPT(Objective):
    """Imitate the expert on prompts that the model fails, reinforce its own answers on the others.

    With k the own answers of a prompt's group that are right (reward 1): where ``k ≤ gate`` given answers have
    ``w_t = imitation`` and own ones 0; where ``k > gate`` own answers have ``w_t = A``, their advantage among the own
    answers, and given ones 0.

    Requirements: groups with an expert's answer and own ones, sampled at every step. Relations: a gate no group
    passes is `sft` on given answers; a gate below 0 is GRPO's first step on own ones.
    """

    name: ClassVar[str] = "hpt"
    source: ClassVar[str] = "HPT, arXiv:2509.04419"
    origins: ClassVar[tuple[str, ...]] = ("expert", "own")
    scope: ClassVar[Scope] = "group"

    gate: float = option(0, "right own answers up to which the expert is imitated; -1 never", minimum=-1)
    imitation: float = option(1.0, "weight of given answers where they are imitated", minimum=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "origin", "group", "reward")

    def weight(self, stats: TokenStats) -> Tensor:
        right, advantage = own_outcomes(stats)
        given = advantage.new_full((len(advantage),), self.imitation)
        failed, own = right <= self.gate, is_own(stats)
        weight = given.where(~own, advantage).where(failed != own, 0.0)
        return weight.to(stats.require("logprob").dtype)

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        return {"imitated": (own_outcomes(stats)[0] <= self.gate).to(stats.require("logprob").dtype)}
