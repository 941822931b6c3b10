"""GEM: the target against what the model itself would draw at a lower temperature, so that diversity is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class GEM(Objective):
    """Raise the target above the tokens that the model draws at temperature beta, and no further.

    ``loss_t = Σ_v r_v·h_v·(log p_v − log p_t)`` with ``r = sg(p^(1/beta))`` normalised and h = 1 (linear) or
    ``sg(sigmoid(0.01·(log p_v − log p_t)))`` (logsigmoid). Linear, the gradient by the logits is r less 1 at the
    target: it vanishes once the tempered model is sure, and the model itself need not be.

    Relations: linear is `sft` less the cross-entropy of the model to itself at temperature beta.
    """

    name: ClassVar[str] = "gem"
    source: ClassVar[str] = "GEM, arXiv:2408.16673"

    beta: float = option(0.7, "temperature of what the target is raised above", minimum=0.01, maximum=100)
    h: str = option("linear", "how a difference counts", choices=("linear", "logsigmoid"))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", self._contrast)

    @property
    def _contrast(self) -> str:
        return f"{'tempered_ce' if self.h == 'linear' else 'tempered_gap'}@{self.beta}"

    def weight(self, stats: TokenStats) -> Tensor:
        one = super().weight(stats)
        return one if self.h == "linear" else 0 * one

    def extra(self, stats: TokenStats) -> Tensor:
        found = stats.require(self._contrast)
        return -found if self.h == "linear" else found
