"""LUFFY: demonstrations among the model's own answers in a group, with a gradient shaped towards unlikely tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, option
from ballast.stats import ORIGINS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class LUFFY(Objective):
    """Learn from own answers by GRPO and, in the same groups, from an expert's with a shaped gradient.

    Own answers have ``w_t = A``, the answer's advantage in its group. Those of expert and teacher have the gradient of
    ``−A·f(p_t)`` with ``f(p) = p/(p + gamma)``, which is ``w_t = A·gamma·p_t/(p_t + gamma)²``, largest at p = gamma.

    Requirements: groups of answers with rewards (`ballast.groups`), sampled at every step. Relations: on own answers
    alone it is `gft` with tau 0; as gamma → ∞, gamma times the weight of an expert's token is that of `gft` with
    tau > 1.
    """

    name: ClassVar[str] = "luffy"
    source: ClassVar[str] = "LUFFY, arXiv:2504.14945"

    gamma: float = option(0.1, "probability at which an expert's tokens weigh most", minimum=1e-6)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "advantage", "origin")

    def weight(self, stats: TokenStats) -> Tensor:
        own = stats.require("origin") == ORIGINS.index("own")
        # p/(p + gamma) is a logistic function of log p, and the slope of that is s·(1 − s).
        share = (stats.require("logprob") - math.log(self.gamma)).sigmoid()
        return stats.require("advantage") * (share * (1 - share)).masked_fill(own, 1.0)

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        return columns["advantage"] != 0 if "advantage" in columns else None

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        return {"probability": stats.require("logprob").exp()}
