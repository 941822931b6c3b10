"""The divergence of the model from a mixture of itself and the reference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from ballast.statistics.base import Statistic

if TYPE_CHECKING:
    from torch import Tensor


class SkewKL(Statistic):
    """KL(p‖m) in nats, m = a·p + (1 − a)·q: the skew divergence; a = 0 is KL(p‖q) (DistiLLM, arXiv:2402.03898).

    The gradient goes through both occurrences of p: by the logits it is p·(g − Σ p·g), g = log(p/m) − a·p/m.
    """

    name: ClassVar[str] = "skew_kl"
    differentiable: ClassVar[bool] = True
    pair: ClassVar[bool] = True
    maximum: ClassVar[float] = 0.999

    def dense(self, logp_NV: Tensor, targets_N: Tensor, logq_NV: Tensor | None) -> Tensor:
        assert logq_NV is not None
        mixture_NV = self.parameter * logp_NV.exp() + (1 - self.parameter) * logq_NV.exp()
        return (logp_NV.exp() * (logp_NV - mixture_NV.log()).masked_fill(logp_NV.exp() == 0, 0)).sum(-1)

    def fold(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None) -> Tensor:
        return self._log_ratio(logp_BV, logq_BV).mul_(logp_BV.exp()).sum(-1)

    def gradient(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None, value_B: Tensor) -> Tensor:
        p_BV, ratio_BV = logp_BV.exp(), self._log_ratio(logp_BV, logq_BV)
        # The share of p in m, which p/q alone would overflow.
        slope_BV = ratio_BV - self.parameter * ratio_BV.exp() if self.parameter else ratio_BV
        return slope_BV.sub_((p_BV * slope_BV).sum(-1, keepdim=True)).mul_(p_BV)

    def _log_ratio(self, logp_BV: Tensor, logq_BV: Tensor | None) -> Tensor:
        """Return log(p/m); where p is 0 the ratio is too, and its logarithm is finite."""
        assert logq_BV is not None
        if not self.parameter:
            return logp_BV - logq_BV
        # log(p/m) = −log(a + (1 − a)·q/p)
        other_BV = (logq_BV - logp_BV).add_(math.log1p(-self.parameter))
        return other_BV.logaddexp(other_BV.new_full((), math.log(self.parameter))).neg_()
