"""Where turns end: the token that says stop is often one that a model finds implausible, so gates drop it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.objectives._selection import in_order

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats

KEEP_END = "whether the token that ends a turn always keeps weight 1"
"""Documentation of the option `keep_end`."""


def turn_ends(stats: TokenStats) -> Tensor:
    """Return for each turn the token that ends it, as a mask ``[N]`` of bool.

    A turn is a run of trained tokens at positions without a gap; without positions a sequence is one turn. The last of
    its tokens at which generation stops ends it (chat templates put a line break after that), or else its last token.
    """
    import torch

    order, segment, place = in_order(stats)
    goes_on = (segment[1:] == segment[:-1]) & (place[1:] == place[:-1] + 1)
    begins = segment == segment
    begins[1:] = ~goes_on
    turn = begins.cumsum(0) - 1
    rank = torch.ones_like(turn).cumsum(0)
    if stats.end is not None:
        rank = rank + len(rank) * stats.end[order]
    highest = rank.new_zeros(len(rank)).scatter_reduce(0, turn, rank, "amax")
    return (rank == highest[turn])[order.argsort()]


def with_ends(weight: Tensor, stats: TokenStats) -> Tensor:
    """Return the weights ``[N]`` with 1 in place of those of `turn_ends`."""
    return weight.masked_fill(turn_ends(stats), 1.0)
