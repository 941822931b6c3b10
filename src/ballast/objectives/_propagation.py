"""How far losses reach back in a sequence, vectorised over sequences of any length and order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.objectives._selection import count_in_segment, segments

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


def lengths(stats: TokenStats) -> Tensor:
    """Return for each token how many tokens its sequence has, ``[N]`` floats: integers divide in float32."""
    segment = segments(stats, "sequence")
    return count_in_segment(segment == segment, segment).to(stats.require("logprob").dtype)


def propagated(stats: TokenStats, gamma: float) -> Tensor:
    """Return ``c_t = Σ_{i≥t} gamma^(i−t)·nll_i`` over the sequence of each token, ``[N]``, differentiable."""
    import torch

    order, segment = _in_order(stats)
    total = -stats.require("logprob")[order]
    reach = 1
    # Each round doubles how many tokens a sum covers; a power that has become 0 adds nothing any more.
    while reach < len(total) and gamma**reach > 0:
        later = total[reach:].where(segment[reach:] == segment[:-reach], 0.0)
        total = torch.cat([total[:-reach] + gamma**reach * later, total[-reach:]])
        reach *= 2
    return total[order.argsort()]


def _in_order(stats: TokenStats) -> tuple[Tensor, Tensor]:
    """Return the tokens by sequence and place, ``[N]`` indices, and the segment of each in that order."""
    segment = segments(stats, "sequence")
    order = segment.new_ones(len(segment)).cumsum(0) - 1
    for key in (stats.position, segment):
        order = order if key is None else order[key[order].argsort(stable=True)]
    return order, segment[order]


def _normalised(stats: TokenStats, gamma: float) -> Tensor:
    reach = propagated(stats, gamma)
    if gamma == 0:
        # By the formula a weight would be the token's own loss over their mean; the method leaves it at 1.
        return reach.new_ones(len(reach))
    segment = segments(stats, "sequence")
    sums = reach.new_zeros(len(reach)).index_add(0, segment, reach)[segment]
    known = sums > 0
    # Both sides of a choice are differentiated, so the divisor must not be 0 on the side that is not taken.
    return (reach * lengths(stats) / sums.where(known, 1.0)).where(known, 1.0)


def _ramp(stats: TokenStats, gamma: float) -> Tensor:
    import torch

    order, segment = _in_order(stats)
    place = torch.arange(1, len(segment) + 1, device=segment.device) - torch.searchsorted(segment, segment)
    return place[order.argsort()].to(stats.require("logprob").dtype)


VARIANTS = {
    "normalised": _normalised,
    "algorithm1": propagated,
    "equation21": _ramp,
}
"""A token's weight within its sequence, by variant: ``(stats, gamma) -> [N]``."""
