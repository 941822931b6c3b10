"""GIFT: imitate the reference's distribution, raised at the demonstrated token by a finite amount."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class GIFT(Objective):
    """Imitate the reference's own distribution with the demonstrated token made likelier by a finite factor.

    ``loss_t = −Σ_v π*_v log p_v`` with ``π*_v ∝ q_v·e^(beta·1[v = y])``. With ``r = q_y·(e^beta − 1)`` this is
    ``[r·nll_t + KL(q‖p) + H(q)] / (1 + r)``: a share of imitation that grows with how likely the reference finds the
    token, and for the rest distillation from the reference.

    Requirements: a live reference (a second model, or the adapter switched off). Relations: beta → ∞ is `sft`;
    beta = 0 distils the reference and ignores the demonstrations.
    """

    name: ClassVar[str] = "gift"
    source: ClassVar[str] = "GIFT, arXiv:2601.09233, Algorithm 1"

    beta: float = option(20.0, "nats by which the demonstrated token is raised", minimum=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "ref_logprob", "ref_entropy", "kl_forward")

    def _raised(self, stats: TokenStats) -> Tensor:
        """Return ``log r``: in logarithms no exponential of beta overflows, nor does a likelihood become 0."""
        gain = self.beta + math.log(-math.expm1(-self.beta)) if self.beta else -math.inf
        return stats.require("ref_logprob") + gain

    def weight(self, stats: TokenStats) -> Tensor:
        return self._raised(stats).sigmoid()

    def extra(self, stats: TokenStats) -> Tensor:
        return (-self._raised(stats)).sigmoid() * (stats.require("kl_forward") + stats.require("ref_entropy"))

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        return {"imitated": self.weight(stats)}
