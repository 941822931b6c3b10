"""PEAR: tokens weighed by how likely the model in training is to go on as the policy that wrote the data did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._propagation import lengths
from ballast.objectives._sequences import after_blocks, sequence_mean
from ballast.objectives.base import Objective, Scope, check_read, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class PEAR(Objective):
    """Weigh each token by the importance ratio of what follows it, the data's own policy being the denominator.

    ``w_t = sg(exp(clip(Σ_{j>t} (δ_j + log gamma), −10, 5)))`` with ``δ = clip(log p − log b, low, high)`` and b the
    probability under the policy that wrote the data. By ``block`` j runs over what follows the token's block of `block`
    tokens, by ``sequence`` over the whole sequence, without gamma.

    Requirements: log b, from a reference (that policy, or its cache) or from a column. Relations: low = high = 0 with
    gamma = 1 is `sft`.
    """

    name: ClassVar[str] = "pear"
    source: ClassVar[str] = "PEAR, arXiv:2602.01058"

    by: str = option("token", "what a weight is of", choices=("token", "block", "sequence"))
    block: int = option(4, "tokens of a block, with `block` alone", minimum=1, whole=True)
    gamma: float = option(0.999, "discount for each token that follows", minimum=1e-6, maximum=1)
    low: float = option(-0.08, "smallest log-ratio of a token", maximum=0)
    high: float = option(0.3, "largest log-ratio of a token", minimum=0)
    behaviour: str = option("reference", "where log b comes from", choices=("reference", "column"))
    column: str = option("behaviour_logprob", "column of log b, with `column` alone")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_read(self, "by", {"token": ("gamma",), "block": ("gamma", "block")})
        check_read(self, "behaviour", {"column": ("column",)})

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "ref_logprob" if self.behaviour == "reference" else "behaviour_logprob")

    @property
    def columns(self) -> Mapping[str, str]:
        return {"behaviour_logprob": self.column} if self.behaviour == "column" else {}

    scope: ClassVar[Scope] = "sequence"

    def weight(self, stats: TokenStats) -> Tensor:
        delta = (stats.require("logprob") - stats.require(self.needs[1])).clamp(self.low, self.high)
        if self.by == "sequence":
            total = sequence_mean(delta, stats) * lengths(stats)
        else:
            total = after_blocks(delta + math.log(self.gamma), stats, self.block if self.by == "block" else 1)
        return total.clamp(-10, 5).exp()
