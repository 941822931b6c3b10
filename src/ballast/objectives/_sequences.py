"""Means over sequences of any length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.objectives._selection import segments

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


def sequence_means(values: Tensor, stats: TokenStats) -> Tensor:
    """Return the mean of the tokens' values ``[N]`` over each sequence, ``[S]``."""
    segment = segments(stats, "sequence")
    count = int(segment.max()) + 1
    size = values.new_zeros(count).index_add_(0, segment, values * 0 + 1)
    return values.new_zeros(count).index_add_(0, segment, values) / size
