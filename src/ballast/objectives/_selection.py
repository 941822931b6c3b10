"""Selecting and counting tokens by sequence, vectorised over sequences of any length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats

EXTREMES = {"largest": 1, "smallest": -1}


def segments(stats: TokenStats, scope: str) -> Tensor:
    """Return for each token the index of the segment it is selected in, ``[N]``: its sequence or the whole batch."""
    logprob = stats.require("logprob")
    if scope == "batch" or stats.sequence is None:
        return logprob.new_zeros(len(logprob)).long()
    index: Tensor = stats.sequence.unique(return_inverse=True)[1]
    return index


def count_in_segment(mask: Tensor, segment: Tensor) -> Tensor:
    """Return for each token how many tokens of its segment the mask holds, ``[N]`` integers."""
    if not len(segment):
        return segment
    return segment.new_zeros(int(segment.max()) + 1).index_add_(0, segment, mask.long())[segment]


def spread(mask: Tensor, stats: TokenStats, scope: str) -> Tensor:
    """Return n/k for the k tokens of each segment of n that the mask holds, else 0: their sum is a mean times n."""
    segment = segments(stats, scope)
    # The counts take the statistics' dtype first: integers divide in float32, too coarse beside float64 losses.
    size = count_in_segment(mask | ~mask, segment).to(stats.require("logprob").dtype)
    return mask * size / count_in_segment(mask, segment).clamp(min=1)


def in_order(stats: TokenStats) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens by sequence and position, ``[N]`` indices, and segment and position of each in that order."""
    segment, position = segments(stats, "sequence"), stats.position
    count = segment.new_ones(len(segment)).cumsum(0)
    order = count - 1 if position is None else position.argsort(stable=True)
    order = order[segment[order].argsort(stable=True)]
    return order, segment[order], count if position is None else position[order]


def top_fraction(score: Tensor, segment: Tensor, fraction: float, stats: TokenStats) -> Tensor:
    """Return a mask ``[N]`` of the ⌊fraction·n⌋ highest scores of each segment of n tokens.

    Equal scores are taken by sequence and position, as far as these are known, then in the order given.
    """
    import torch

    size = count_in_segment(torch.ones_like(segment, dtype=torch.bool), segment)
    # The small addend undoes binary rounding: 0.29·100 is 28.999… in floating point.
    wanted = (fraction * size.double() + 1e-9).floor().long()
    order = torch.arange(len(score), device=score.device)
    for place_in in (stats.position, stats.sequence):
        order = order if place_in is None else order[place_in[order].argsort(stable=True)]
    order = order[score[order].argsort(descending=True, stable=True)]
    order = order[segment[order].argsort(stable=True)]
    ordered = segment[order]
    place = torch.arange(len(score), device=score.device)
    starts = torch.where(torch.cat([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]]), place, 0)
    rank = torch.empty_like(place)
    rank[order] = place - starts.cummax(0).values
    return rank < wanted
