"""EKSFT: spare the tokens that are uncertain or that would move the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._selection import count_in_segment, segments, top_fraction
from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats

MOVED = 1e-6
"""Nats of KL below which a token has not moved: before the first step every KL is 0 and nothing is selected by it."""


@dataclass(frozen=True)
class EKSFT(Objective):
    """Do not imitate tokens of high entropy or high KL; raise the entropy of the first, lower the KL of the second.

    ``mean_{t∉M} nll − lambda_h·mean_{t∈M_H} H + lambda_kl·mean_{t∈M_KL} KL(p‖q)``, where M_H and M_KL are the
    ⌊rho·n⌋ tokens of highest entropy and KL and M their union or intersection, selected anew at every step on
    detached values. Each mean is spread over its tokens so that a sequence keeps its weight of n tokens.

    Requirements: a live reference (a second model, or the adapter switched off). Relations: rho = 0 is `sft`.
    """

    name: ClassVar[str] = "eksft"
    source: ClassVar[str] = "EKSFT, arXiv:2605.29303"

    rho: float = option(0.2, "share of tokens selected by each criterion", minimum=0, maximum=1)
    lambda_h: float = option(0.05, "weight of the entropy bonus", minimum=0)
    lambda_kl: float = option(0.05, "weight of the KL penalty", minimum=0)
    select: str = option("union", "which selected tokens are not imitated", choices=("union", "intersection"))
    scope: str = option("sequence", "what n and the ranking range over", choices=("sequence", "batch"))  # type: ignore[assignment]
    extreme: str = option("largest", "which end of the ranking is selected", choices=("largest", "smallest"))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "entropy", "kl")

    def selections(self, stats: TokenStats) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens selected by entropy, those selected by KL, and those not imitated: masks ``[N]``."""
        segment, sign = segments(stats, self.scope), 1 if self.extreme == "largest" else -1
        entropy, kl = stats.require("entropy").detach(), stats.require("kl").detach()
        by_entropy = top_fraction(sign * entropy, segment, self.rho, stats)
        moved = kl > MOVED
        by_kl = moved & top_fraction((sign * kl).masked_fill(~moved, -float("inf")), segment, self.rho, stats)
        return by_entropy, by_kl, by_entropy | by_kl if self.select == "union" else by_entropy & by_kl

    def _spread(self, mask: Tensor, stats: TokenStats) -> Tensor:
        segment = segments(stats, self.scope)
        # The counts take the statistics' dtype first: integers divide in float32, too coarse beside float64 losses.
        size = count_in_segment(mask | ~mask, segment).to(stats.require("logprob").dtype)
        return mask * size / count_in_segment(mask, segment).clamp(min=1)

    def weight(self, stats: TokenStats) -> Tensor:
        return self._spread(~self.selections(stats)[2], stats)

    def extra(self, stats: TokenStats) -> Tensor:
        by_entropy, by_kl, _ = self.selections(stats)
        bonus = self._spread(by_entropy, stats) * stats.require("entropy")
        penalty = self._spread(by_kl, stats) * stats.require("kl")
        return self.lambda_kl * penalty - self.lambda_h * bonus
