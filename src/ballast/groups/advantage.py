"""How much better than its group each answer was judged."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

EPSILON = 1e-6


def advantages(rewards: Sequence[float]) -> list[float]:
    """Return ``(R − mean R) / (std R + 1e-6)`` of each reward, with the unbiased standard deviation.

    A group of one has mean 0 and deviation 1, so its advantage is its reward; equal rewards give exactly 0.

    Source: GFT, arXiv:2604.14258, and its released code for groups of one.

    Raises:
        ValueError: for an empty group.

    >>> advantages([1.0, 0.0])
    [0.7071057811866894, -0.7071057811866894]
    """
    if not rewards:
        raise ValueError("a group without answers has no advantages")
    if len(rewards) == 1:
        return [float(rewards[0])]
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / (deviation + EPSILON) for reward in rewards]
