"""SED-SFT: where the model has several ways to go on, the target is pulled towards a half rather than to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class SEDSFT(Objective):
    """Imitate, but keep room for other tokens where the model sees several.

    ``loss_t = nll_t + strength·1[m_k < threshold]·(p_t − 1/2)²``, m_k being the probability of the k likeliest tokens
    together: where it is small the target is pulled towards 1/2 as well.

    Relations: strength = 0 is `sft`.
    """

    name: ClassVar[str] = "sed-sft"
    source: ClassVar[str] = "SED-SFT, arXiv:2602.07464"

    strength: float = option(1.0, "weight of the pull towards 1/2", minimum=0)
    k: int = option(2, "how many of the likeliest tokens are added up", minimum=1, whole=True)
    threshold: float = option(0.7, "their probability below which the pull acts", minimum=0, maximum=1)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", self._mass)

    @property
    def _mass(self) -> str:
        return f"top_mass@{self.k}"

    def _open(self, stats: TokenStats) -> Tensor:
        mass = stats.require(self._mass)
        return (mass < self.threshold).to(mass.dtype)

    def extra(self, stats: TokenStats) -> Tensor:
        return self.strength * self._open(stats) * (stats.require("logprob").exp() - 0.5).square()

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        return {"open": self._open(stats)}
