"""The half of CHORD-φ that imitates: tokens that are neither certain nor implausible count most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class ChordPhi(Objective):
    """Weigh each token by how undecided the model in training is about it.

    ``w_t = sg(p_t·(1 − p_t))``, largest (1/4) at a probability of one half. This is the term on demonstrations of a
    method that mixes it with GRPO by a schedule; the mixture is not built.

    Relations: where every p_t is small it is `dft`; always it is `dft` less `reweight` with rule power, signal live and
    alpha 2.
    """

    name: ClassVar[str] = "chord-phi"
    source: ClassVar[str] = "CHORD, arXiv:2508.11408, its term on demonstrations"

    def weight(self, stats: TokenStats) -> Tensor:
        p = stats.require("logprob").exp()
        return p * (1 - p)
