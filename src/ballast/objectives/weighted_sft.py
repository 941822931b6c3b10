"""Weighted fine-tuning: a weight for each row, turn or token, from a column of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class WeightedSFT(Objective):
    """Imitate each token by a weight that comes with the data.

    ``w_t`` is the column's number for the row, for the turn, or for the token. The divisor counts all trained tokens,
    whatever their weights. Tokens of weight 0 are not projected. A weight below 0 unlearns without bound.

    Requirements: the column. Relations: a weight of 1 everywhere is `sft`.
    """

    name: ClassVar[str] = "weighted-sft"
    source: ClassVar[str] = "weighted cross-entropy"

    column: str = option("weight", "column of the data that holds the weights")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "weight")

    @property
    def columns(self) -> Mapping[str, str]:
        return {"weight": self.column}

    def weight(self, stats: TokenStats) -> Tensor:
        return stats.require("weight")

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        return columns["weight"] != 0 if "weight" in columns else None
