"""PSFT: fine-tuning within a trust region, the clipped ratio of PPO with an advantage of 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class PSFT(Objective):
    """Imitate until a token is likelier than a few steps ago by a factor, and no further.

    ``loss_t = −min(r_t, 1 + clip)`` with ``r_t = p_t / p_old,t``: the gradient is ``r_t·∇nll`` up to the bound and 0
    beyond. The old model is this model as it was at the last scoring, every `refresh` steps. With every advantage 1
    PPO's lower bound never acts.

    Requirements: a further forward of each row, without gradient. Relations: clip → ∞ and refresh = 1 has the gradient
    of `sft`.
    """

    name: ClassVar[str] = "psft"
    source: ClassVar[str] = "PSFT, arXiv:2508.17784"

    clip: float = option(0.28, "by how much of itself a probability may grow between two scorings", minimum=0)
    refresh: int = option(8, "optimiser steps that one scoring by the old model serves", minimum=1, whole=True)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "old_logprob")

    def _log_ratio(self, stats: TokenStats) -> Tensor:
        return stats.require("logprob") - stats.require("old_logprob")

    def weight(self, stats: TokenStats) -> Tensor:
        ratio = self._log_ratio(stats)
        return ratio.exp().where(ratio <= math.log1p(self.clip), 0.0)

    def per_token_loss(self, stats: TokenStats) -> Tensor:
        # Clamped before the power: beyond the bound that may overflow, and its slope is multiplied by 0.
        return -self._log_ratio(stats).clamp(max=math.log1p(self.clip)).exp()

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        ratio = self._log_ratio(stats)
        return {"clipped": (ratio > math.log1p(self.clip)).to(ratio.dtype), "old_log_ratio": ratio}
