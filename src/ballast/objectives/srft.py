"""The half of SRFT that imitates: demonstrations at which the model is uncertain count less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._sequences import sequence_mean
from ballast.objectives.base import Objective, Scope

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class SRFT(Objective):
    """Weigh each demonstration by how certain the model in training is along it.

    ``w = exp(−mean_t H_t) / 2`` with H the entropy in nats, one weight for all tokens of a sequence. This is the term
    on demonstrations of a method that adds RL on the model's own answers in the same step; that is not built.

    Relations: where the entropy is 0 everywhere it is half of `sft`.
    """

    name: ClassVar[str] = "srft"
    source: ClassVar[str] = "SRFT, arXiv:2506.19767, its term on demonstrations"

    scope: ClassVar[Scope] = "sequence"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "entropy")

    def weight(self, stats: TokenStats) -> Tensor:
        return 0.5 * (-sequence_mean(stats.require("entropy"), stats)).exp()
