"""GFT: groups of expert, teacher and own answers, weighted by advantage and bounded inverse probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, Reduction, option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class GFT(Objective):
    """Imitate the better answers of each prompt's group and unlearn the worse, bounded where they are unlikely.

    ``w_t = A·C_t`` with A the answer's normalised advantage in its group and ``C_t = p_t`` where ``p_t < tau``, else
    1: below tau the gradient is ``A·∇p``, above it ``A·∇log p``.

    Requirements: groups of answers with rewards (`ballast.groups`). Relations: tau = 0 is group-advantage
    cross-entropy; tau > 1 with A = 1 is `dft`; tau = 0 on own answers alone is GRPO's first step.
    """

    name: ClassVar[str] = "gft"
    source: ClassVar[str] = "GFT, arXiv:2604.14258, Eq. 21"

    tau: float = option(0.7, "probability below which the gradient is bounded; paper's best 0.7, script 0.1", minimum=0)
    aggregation: str = option("token", "mean over tokens, or sum over each group", choices=("token", "sequence"))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "advantage")

    @property
    def reduction(self) -> Reduction:
        return "tokens" if self.aggregation == "token" else "groups"

    def weight(self, stats: TokenStats) -> Tensor:
        p = stats.require("logprob").exp()
        return stats.require("advantage") * p.where(p < self.tau, 1.0)

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        return columns["advantage"] != 0 if "advantage" in columns else None

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        p = stats.require("logprob").exp()
        return {"probability": p, "rectified": (p < self.tau).to(p.dtype)}
