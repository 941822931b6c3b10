"""TALR: tokens weighed down by their loss, on the scale of the optimiser step's middle sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._sequences import sequence_means
from ballast.objectives.base import Objective, Scope, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class TALR(Objective):
    """Weigh tokens down as their loss grows, measured by the median loss of the step's sequences.

    ``w_t ∝ max(p_t^(1/τ), floor)``, τ being the median over the sequences of the optimiser step of their mean negative
    log-likelihood, in nats. The weights are divided by their mean over the step, or left as they are.

    Requirements: a further forward of each row, without gradient. Relations: floor = 1 is `sft`.
    """

    name: ClassVar[str] = "talr"
    source: ClassVar[str] = "TALR, arXiv:2509.20758"

    floor: float = option(0.01, "smallest weight before the division", minimum=0, maximum=1)
    normalise: bool = option(True, "whether the weights of a step have the mean 1")

    scope: ClassVar[Scope] = "step"

    def weight(self, stats: TokenStats) -> Tensor:
        logprob = stats.require("logprob")
        if not len(logprob):
            return logprob
        middle = sequence_means(-logprob, stats).quantile(0.5).clamp(min=1e-9)
        weight = (logprob / middle).exp().clamp(min=self.floor)
        return weight / weight.mean() if self.normalise else weight
