"""Statistics of the likeliest tokens, without gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ballast.statistics.base import Statistic

if TYPE_CHECKING:
    from torch import Tensor


class TopEntropy(Statistic):
    """The entropy of the k likeliest tokens, their probabilities normalised to 1, in nats (EAFT, arXiv:2601.02151)."""

    name: ClassVar[str] = "top_entropy"
    whole: ClassVar[bool] = True
    minimum: ClassVar[float] = 1
    of_tokens: ClassVar[bool] = True

    def dense(self, logp_NV: Tensor, targets_N: Tensor, logq_NV: Tensor | None) -> Tensor:
        top_NK = logp_NV.detach().sort(descending=True).values[:, : int(self.parameter)].exp()
        share_NK = top_NK / top_NK.sum(-1, keepdim=True)
        return -(share_NK * share_NK.log().masked_fill(share_NK == 0, 0)).sum(-1)

    def fold(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None) -> Tensor:
        logr_BK = logp_BV.topk(int(self.parameter), sorted=False).values.log_softmax(-1)
        return -(logr_BK.exp() * logr_BK).sum(-1)


class TopMass(Statistic):
    """The probability of the k likeliest tokens together (SED-SFT, arXiv:2602.07464)."""

    name: ClassVar[str] = "top_mass"
    whole: ClassVar[bool] = True
    minimum: ClassVar[float] = 1
    of_tokens: ClassVar[bool] = True

    def dense(self, logp_NV: Tensor, targets_N: Tensor, logq_NV: Tensor | None) -> Tensor:
        return logp_NV.detach().exp().sort(descending=True).values[:, : int(self.parameter)].sum(-1)

    def fold(self, logp_BV: Tensor, targets_B: Tensor, logq_BV: Tensor | None) -> Tensor:
        return logp_BV.topk(int(self.parameter), sorted=False).values.exp().sum(-1)
