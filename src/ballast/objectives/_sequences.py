"""Quantities of a whole sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.objectives._propagation import lengths
from ballast.objectives._selection import segments

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


def sequence_mean(values: Tensor, stats: TokenStats) -> Tensor:
    """Return for each token the mean of the values ``[N]`` over the trained tokens of its sequence, ``[N]``."""
    segment = segments(stats, "sequence")
    return values.new_zeros(len(values)).index_add(0, segment, values)[segment] / lengths(stats)


def sequence_means(values: Tensor, stats: TokenStats) -> Tensor:
    """Return the mean of the values ``[N]`` over the trained tokens of each sequence, ``[S]``."""
    segment = segments(stats, "sequence")
    count = int(segment.max()) + 1 if len(segment) else 0
    size = values.new_zeros(count).index_add(0, segment, values * 0 + 1)
    return values.new_zeros(count).index_add(0, segment, values) / size
