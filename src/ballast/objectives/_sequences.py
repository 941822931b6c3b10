"""Quantities of a whole sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.objectives._propagation import lengths
from ballast.objectives._selection import in_order, segments

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


def after_blocks(values: Tensor, stats: TokenStats, size: int) -> Tensor:
    """Return for each token the sum of the values ``[N]`` of its sequence that follow its block, ``[N]``.

    A block is `size` trained tokens in a row, counted from the first of a sequence.
    """
    import torch

    order, segment, _ = in_order(stats)
    place = torch.arange(len(segment), device=segment.device)
    first, end = torch.searchsorted(segment, segment), torch.searchsorted(segment, segment, right=True)
    last = torch.minimum(first + ((place - first) // size + 1) * size, end) - 1
    # In double: the sum runs through all sequences, and what is wanted are differences of it.
    upto = values[order].double().cumsum(0)
    return (upto[end - 1] - upto[last]).to(values.dtype)[order.argsort()]
