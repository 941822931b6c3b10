"""EKSFT: spare the tokens that are uncertain or that would move the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._regularisers import ENTROPY, PENALTY
from ballast.objectives._selection import EXTREMES, segments, spread, top_fraction
from ballast.objectives._turns import KEEP_END, turn_ends
from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats

MOVED = 1e-6
"""Nats of KL up to which a token has not moved, as before the first step."""


@dataclass(frozen=True)
class EKSFT(Objective):
    """Do not imitate tokens of high entropy or high KL; raise the entropy of the first, lower the KL of the second.

    ``mean_{t∉M} nll − lambda_h·mean_{t∈M_H} H + lambda_kl·mean_{t∈M_KL} KL(p‖q)``, where M_H and M_KL are the
    ⌊rho·n⌋ tokens of highest entropy and KL and M their union or intersection, selected anew at every step on
    detached values. Each mean is spread over its tokens so that a sequence keeps its weight of n tokens. The authors'
    code has ``H / ln V`` for H (normalised) and ``Σ p·(p − log q)`` for the KL (released).

    Requirements: a live reference (a second model, or the adapter switched off). Relations: rho = 0 is `sft`.
    """

    name: ClassVar[str] = "eksft"
    source: ClassVar[str] = "EKSFT, arXiv:2605.29303"

    rho: float = option(0.2, "share of tokens selected by each criterion", minimum=0, maximum=1)
    lambda_h: float = option(0.05, "weight of the entropy bonus", minimum=0)
    lambda_kl: float = option(0.05, "weight of the KL penalty", minimum=0)
    select: str = option("union", "which selected tokens are not imitated", choices=("union", "intersection"))
    scope: str = option("sequence", "what n and the ranking range over", choices=("sequence", "batch"))  # type: ignore[assignment]
    extreme: str = option("largest", "which end of the ranking is selected", choices=tuple(EXTREMES))
    extreme_kl: str | None = option(None, "the same by KL, if another", choices=tuple(EXTREMES), optional=True)
    entropy: str = option("nats", "H of the bonus in nats, or H / ln V", choices=tuple(ENTROPY))
    keep_end: bool = option(False, KEEP_END)
    penalty: str = option("kl", "the KL, or Σ p·(p − log q) in its place", choices=tuple(PENALTY))

    @property
    def needs(self) -> tuple[str, ...]:
        further = {"collision": self.penalty == "released", "vocabulary": self.entropy == "normalised"}
        return ("logprob", "entropy", "kl", *(name for name, is_read in further.items() if is_read))

    def selections(self, stats: TokenStats) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens selected by entropy, those selected by KL, and those not imitated: masks ``[N]``."""
        segment = segments(stats, self.scope)
        entropy, kl = stats.require("entropy").detach(), stats.require("kl").detach()
        by_entropy = top_fraction(EXTREMES[self.extreme] * entropy, segment, self.rho, stats)
        moved, sign = kl > MOVED, EXTREMES[self.extreme_kl or self.extreme]
        by_kl = moved & top_fraction((sign * kl).masked_fill(~moved, -float("inf")), segment, self.rho, stats)
        return by_entropy, by_kl, by_entropy | by_kl if self.select == "union" else by_entropy & by_kl

    def weight(self, stats: TokenStats) -> Tensor:
        imitated = ~self.selections(stats)[2]
        return spread(imitated | turn_ends(stats) if self.keep_end else imitated, stats, self.scope)

    def extra(self, stats: TokenStats) -> Tensor:
        by_entropy, by_kl, _ = self.selections(stats)
        bonus = spread(by_entropy, stats, self.scope) * ENTROPY[self.entropy](stats)
        penalty = spread(by_kl, stats, self.scope) * PENALTY[self.penalty](stats)
        return self.lambda_kl * penalty - self.lambda_h * bonus
