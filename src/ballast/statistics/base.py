"""What a statistic of a token's distribution is: a formula, its fold over rows of log-probabilities, its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Statistic:
    """One number for each token, made of the whole distribution there, such as ``top_entropy@20``.

    A subclass sets `name` and what differs of the other class variables, and has `dense`, `fold` and, where it is
    differentiable, `gradient`. All three read log-probabilities ``[B, V]`` in nats and leave them as they are; a `pair`
    also reads the reference's, over the same tokens. −1e30 stands for log 0.

    Attributes:
        parameter: the number behind the ``@`` of its name.
        differentiable: whether a loss may have a gradient through it.
        pair: whether it is made of the model's distribution and the reference's.
        whole: whether the parameter is a whole number.
        minimum, maximum: bounds of the parameter, both allowed.
        of_tokens: whether the parameter counts tokens, so that it cannot exceed the vocabulary.
    """

    parameter: float

    name: ClassVar[str]
    differentiable: ClassVar[bool] = False
    pair: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    minimum: ClassVar[float] = 0.0
    maximum: ClassVar[float] = math.inf
    of_tokens: ClassVar[bool] = False

    def dense(self, logp_NV: Tensor, targets_N: Tensor, logq_NV: Tensor | None) -> Tensor:
        """Return the statistic ``[N]`` by the formula as it stands in the literature; autograd differentiates it."""
        raise NotImplementedError

    def fold(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None) -> Tensor:
        """Return the statistic ``[B]`` of some rows, without gradient."""
        raise NotImplementedError

    def gradient(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None, value_B: Tensor) -> Tensor:
        """Return the gradient of the statistic by the logits, ``[B, V]`` in memory of its own.

        `value_B` is what `fold` found.
        """
        raise NotImplementedError

    @classmethod
    def problem(cls, parameter: float, vocabulary: int | None = None) -> str | None:
        """Return what is wrong with a parameter, for a vocabulary of this size where it is known; None for nothing."""
        if not math.isfinite(parameter):
            return f"must be finite; got {parameter:g}"
        if cls.whole and parameter != int(parameter):
            return f"must be a whole number; got {parameter:g}"
        if not cls.minimum <= parameter <= cls.maximum:
            return f"must lie in [{cls.minimum:g}, {'∞' if cls.maximum == math.inf else f'{cls.maximum:g}'}]"
        if cls.of_tokens and vocabulary is not None and parameter > vocabulary:
            return f"exceeds the vocabulary of {vocabulary:,} tokens"
        return None
