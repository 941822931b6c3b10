"""How far losses reach back in a sequence, vectorised over sequences of any length and order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.objectives._selection import count_in_segment, in_order, segments

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


def lengths(stats: TokenStats) -> Tensor:
    """Return for each token how many tokens its sequence has, ``[N]`` floats: integers divide in float32."""
    segment = segments(stats, "sequence")
    return count_in_segment(segment == segment, segment).to(stats.require("logprob").dtype)


def propagated(stats: TokenStats, gamma: float) -> Tensor:
    """Return ``c_t = Σ_{i≥t} gamma^(i−t)·nll_i`` over the sequence of each token, ``[N]``, differentiable.

    ``i − t`` counts positions: untrained tokens between two trained ones add nothing, but discount what follows them.
    """
    import torch

    order, segment, place = in_order(stats)
    total = -stats.require("logprob")[order]
    reach = 1
    # Each round doubles how many tokens a sum covers; a power that has become 0 adds nothing any more.
    while reach < len(total) and gamma**reach > 0:
        # No gap within a sequence is smaller; those to another one would give powers without bound.
        gap = (place[reach:] - place[:-reach]).clamp(min=reach)
        # The power of a number is exact to the last bit, that of a tensor is not.
        discount = torch.where(gap == reach, gamma**reach, gamma ** gap.to(total.dtype))
        later = (discount * total[reach:]).where(segment[reach:] == segment[:-reach], 0.0)
        total = torch.cat([total[:-reach] + later, total[-reach:]])
        reach *= 2
    return total[order.argsort()]


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
    """Return how many trained tokens a sequence has up to each: that many sums of later losses hold the token's own."""
    import torch

    order, segment, _ = in_order(stats)
    place = torch.arange(1, len(segment) + 1, device=segment.device) - torch.searchsorted(segment, segment)
    return place[order.argsort()].to(stats.require("logprob").dtype)


VARIANTS = {
    "normalised": _normalised,
    "algorithm1": propagated,
    "equation21": _ramp,
}
"""A token's weight within its sequence, by variant: ``(stats, gamma) -> [N]``."""
