"""Pairs of answers to one prompt: each that is given, the expert's or a teacher's, with each of the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ballast.stats import ORIGINS

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class Pairs:
    """``N`` tokens, ``A`` answers, ``P`` pairs, ``G`` groups.

    Attributes:
        answer, group: indices of the answer and of the group that each token belongs to, ``[N]``.
        of: index of each pair's group, ``[P]``.
        given, own: indices of the pairs' answers, ``[P]``.
    """

    answer: Tensor
    group: Tensor
    of: Tensor
    given: Tensor
    own: Tensor

    def differences(self, value: Tensor) -> Tensor:
        """Return the sum over the given answer's tokens less that over the own answer's, ``[N]`` → ``[P]``."""
        total = _summed(value, self.answer)
        return total[self.given] - total[self.own]

    def means(self, value: Tensor) -> Tensor:
        """Return for each token the mean over its group's pairs, ``[P]`` → ``[N]``; 0 where there is none."""
        size = len(self.group)
        return (_summed(value, self.of, size) / _counts(value, self.of, size).clamp(min=1))[self.group]

    def spread(self, value: Tensor) -> Tensor:
        """Return each token's equal part of the mean over its group's pairs, ``[P]`` → ``[N]``."""
        return self.means(value) / _counts(value, self.group)[self.group]

    def signed(self, value: Tensor) -> Tensor:
        """Return the mean of what the pairs add to given answers and take from own ones, ``[P]`` → ``[N]``."""
        share = value / _counts(value, self.of, len(self.group))[self.of]
        size = len(self.answer)
        return (_summed(share, self.given, size) - _summed(share, self.own, size))[self.answer]


def pairs(stats: TokenStats) -> Pairs:
    """Return the pairs of a micro-batch's answers; without sequences all tokens are one answer."""
    origin, group = (stats.require(name).long() for name in ("origin", "group"))
    sequence = group.new_zeros(len(group)) if stats.sequence is None else stats.sequence
    answer, index = (one.unique(return_inverse=True)[1] for one in (sequence, group))
    size = int(answer.max()) + 1 if len(answer) else 0
    is_own = origin.new_zeros(size).index_copy(0, answer, (origin == ORIGINS.index("own")).long()).bool()
    of = index.new_zeros(size).index_copy(0, answer, index)
    given, own = ((of[:, None] == of) & ~is_own[:, None] & is_own).nonzero(as_tuple=True)
    return Pairs(answer, index, of[given], given, own)


def _summed(value: Tensor, index: Tensor, size: int | None = None) -> Tensor:
    return value.new_zeros(len(index) if size is None else size).index_add(0, index, value)


def _counts(value: Tensor, index: Tensor, size: int | None = None) -> Tensor:
    return _summed(value.new_ones(len(index)), index, size)
