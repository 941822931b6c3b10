"""ASFT: dynamic fine-tuning, anchored to the frozen reference by a KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.kl_sft import KLSFT

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class ASFT(KLSFT):
    """Weigh each token by its live probability, and hold the whole distribution near the frozen reference's.

    ``loss_t = sg(p_t)·nll_t + lambda_kl·KL(q‖p)`` with the KL over the full vocabulary; ``direction: reverse`` takes
    KL(p‖q).

    Requirements: a live reference (a second model, or the adapter switched off). Relations: lambda_kl = 0 is `dft`;
    with weights of 1 it is `kl-sft`.
    """

    name: ClassVar[str] = "asft"
    source: ClassVar[str] = "ASFT, arXiv:2509.23753"

    def weight(self, stats: TokenStats) -> Tensor:
        return stats.require("logprob").exp()
