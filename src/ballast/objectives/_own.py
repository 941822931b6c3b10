"""What became of a group's own answers: how many are right, and how much better each is than the others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ballast.stats import ORIGINS

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats

EPSILON = 1e-6


def is_own(stats: TokenStats) -> Tensor:
    """Return whether each token belongs to an answer of the model itself, ``[N]`` of bool."""
    return stats.require("origin") == ORIGINS.index("own")


def own_outcomes(stats: TokenStats) -> tuple[Tensor, Tensor]:
    """Return for each token how many own answers of its group are right, and its answer's advantage among them.

    Right is a reward of 1. The advantage is ``(R − mean R) / (std R + 1e-6)`` over the group's own answers with the
    unbiased deviation: 0 where they are judged the same, R where there is one. Of other answers it means nothing.
    """
    reward = stats.require("reward")
    sequence = reward.new_zeros(len(reward)) if stats.sequence is None else stats.sequence
    answer, group = (one.unique(return_inverse=True)[1] for one in (sequence, stats.require("group")))
    # There are no more answers, and no more groups, than tokens; what is left over belongs to no own answer.
    size = len(reward)
    of = group.new_zeros(size).index_copy(0, answer, group)
    judged = reward.new_zeros(size).index_copy(0, answer, reward)
    own = reward.new_zeros(size).index_copy(0, answer, is_own(stats).to(reward.dtype))

    def summed(value: Tensor) -> Tensor:
        return value.new_zeros(size).index_add(0, of, own * value)[of]

    def extreme(which: str, none: float) -> Tensor:
        return judged.new_full((size,), none).scatter_reduce(0, of, judged.where(own > 0, none), which)[of]

    count = summed(own)
    away = judged - summed(judged) / count.clamp(min=1)
    deviation = (summed(away**2) / (count - 1).clamp(min=1)).sqrt()
    # Rounding in the mean of equal rewards must not pass for a difference.
    differ = extreme("amax", -math.inf) > extreme("amin", math.inf)
    advantage = (away / (deviation + EPSILON)).where(differ, 0.0).where(count > 1, judged)
    return summed((judged >= 1).to(own.dtype))[answer], advantage[answer]
