"""EAFT: the entropy of the likeliest tokens as the weight, so that what the model is sure of is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class EAFT(Objective):
    """Weigh each token by how uncertain the model in training is there.

    ``w_t = sg((H_k / scale)^alpha)``, H_k being the entropy in nats of the k likeliest tokens, normalised among
    themselves. A token where the model is sure, right or wrong, hardly counts.

    Relations: alpha = 0 is `sft`; `reweight` with rule entropy is a gate the other way round.
    """

    name: ClassVar[str] = "eaft"
    source: ClassVar[str] = "EAFT, arXiv:2601.02151"

    alpha: float = option(1.0, "exponent of the entropy", minimum=0)
    k: int = option(20, "how many of the likeliest tokens the entropy is of", minimum=2, whole=True)
    scale: float = option(3.0, "what the entropy is divided by; about ln 20", minimum=1e-6)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", self._entropy)

    @property
    def _entropy(self) -> str:
        return f"top_entropy@{self.k}"

    def weight(self, stats: TokenStats) -> Tensor:
        return (stats.require(self._entropy).clamp(min=0) / self.scale) ** self.alpha
