"""Cross-entropies to the model's own distribution at another temperature, which is a target: no gradient goes into it.

With r ∝ p^(1/β): ``tempered_ce@β`` is −Σ r·log p, with the gradient p − r by the logits; ``tempered_gap@β`` is
Σ r·h·(log p − log p(target)) with h = sigmoid(0.01·(log p − log p(target))), with the gradient r·h less Σ r·h at the
target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ballast.statistics.base import Statistic

if TYPE_CHECKING:
    from torch import Tensor

SLOPE = 0.01
"""Of the sigmoid, as in the authors' code."""


class TemperedCrossEntropy(Statistic):
    """The cross-entropy of the model to itself at temperature β, in nats (GEM, arXiv:2408.16673)."""

    name: ClassVar[str] = "tempered_ce"
    differentiable: ClassVar[bool] = True
    minimum: ClassVar[float] = 0.01

    def dense(self, logp_NV: Tensor, targets_N: Tensor, logq_NV: Tensor | None) -> Tensor:
        r_NV = (logp_NV / self.parameter).softmax(-1).detach()
        return -(r_NV * logp_NV.masked_fill(r_NV == 0, 0)).sum(-1)

    def fold(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None) -> Tensor:
        return -_tempered(logp_BV, self.parameter).mul_(logp_BV).sum(-1)

    def gradient(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None, value_B: Tensor) -> Tensor:
        return logp_BV.exp().sub_(_tempered(logp_BV, self.parameter))


class TemperedGap(Statistic):
    """How far the tokens drawn at temperature β are above the target, weighed by a sigmoid of it, in nats (GEM)."""

    name: ClassVar[str] = "tempered_gap"
    differentiable: ClassVar[bool] = True
    minimum: ClassVar[float] = 0.01

    def dense(self, logp_NV: Tensor, targets_N: Tensor, logq_NV: Tensor | None) -> Tensor:
        gap_NV = logp_NV - logp_NV.gather(1, targets_N[:, None])
        r_NV = (logp_NV / self.parameter).softmax(-1) * (SLOPE * gap_NV).sigmoid()
        return (r_NV.detach() * gap_NV.masked_fill(r_NV == 0, 0)).sum(-1)

    def fold(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None) -> Tensor:
        gap_BV = logp_BV - logp_BV.gather(1, targets_B[:, None])
        return self._weights(gap_BV).mul_(gap_BV).sum(-1)

    def gradient(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None, value_B: Tensor) -> Tensor:
        weights_BV = self._weights(logp_BV - logp_BV.gather(1, targets_B[:, None]))
        return weights_BV.scatter_add_(1, targets_B[:, None], -weights_BV.sum(-1, keepdim=True))

    def _weights(self, gap_BV: Tensor) -> Tensor:
        # The gap differs from log p by a number for each row, which a softmax does not see.
        return _tempered(gap_BV, self.parameter).mul_((SLOPE * gap_BV).sigmoid_())


def _tempered(logits_BV: Tensor, temperature: float) -> Tensor:
    return (logits_BV / temperature).softmax(-1)
