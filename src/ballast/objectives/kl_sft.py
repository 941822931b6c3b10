"""Plain fine-tuning with a KL penalty against the frozen reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats

DIRECTIONS = {"forward": "kl_forward", "reverse": "kl"}


@dataclass(frozen=True)
class KLSFT(Objective):
    """Imitate every token, and hold the whole distribution near the frozen reference's.

    ``loss_t = nll_t + lambda_kl·KL(q‖p)`` with the KL over the full vocabulary; ``direction: reverse`` takes KL(p‖q).

    Requirements: a live reference (a second model, or the adapter switched off). Relations: lambda_kl = 0 is `sft`;
    with the weights of `dft` it is `asft`; forward, it has the gradient of ``1 + lambda_kl`` times a cross-entropy to
    ``(y + lambda_kl·q) / (1 + lambda_kl)``, as if labels were smoothed towards the reference.
    """

    name: ClassVar[str] = "kl-sft"
    source: ClassVar[str] = "the baseline `sft+kl` of ASFT, arXiv:2509.23753"

    lambda_kl: float = option(0.1, "weight of the KL penalty", minimum=0)
    direction: str = option("forward", "KL(q‖p), or KL(p‖q)", choices=tuple(DIRECTIONS))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", DIRECTIONS[self.direction])

    def extra(self, stats: TokenStats) -> Tensor:
        return self.lambda_kl * stats.require(DIRECTIONS[self.direction])
