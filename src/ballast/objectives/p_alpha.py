"""Powers of the probability as objectives, from its logarithm to the probability itself, and their thresholded kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, check_read, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class PAlpha(Objective):
    """Raise a power of each token's probability in place of its logarithm.

    ``loss_t = (1 − p_t^alpha) / alpha``, whose gradient is that of ``sg(p_t^alpha)·nll_t``; alpha 0 is its limit,
    ``nll_t``. ``keep: top`` trains only tokens with ``p_t ≥ threshold``, ``bottom`` those with ``p_t ≤ threshold``. The
    sum is divided by all trained tokens, not by the kept ones.

    Relations: alpha = 0 is `sft`; alpha = 1 has the gradient of `dft`; keep all has the gradient of `reweight` with
    rule power and signal live; alpha = 0 with top or bottom is `profit` with higher or lower.
    """

    name: ClassVar[str] = "p-alpha"
    source: ClassVar[str] = "Beyond Log Likelihood, arXiv:2510.00526"

    alpha: float = option(1.0, "the power; 0 stands for the logarithm", minimum=0)
    keep: str = option("all", "which tokens are trained", choices=("all", "top", "bottom"))
    threshold: float | None = option(None, "bound of top and bottom", minimum=0, maximum=1, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_read(self, "keep", {"top": ("threshold",), "bottom": ("threshold",)})

    def _kept(self, logprob: Tensor) -> Tensor:
        if self.threshold is None:
            return logprob == logprob
        # Rounding makes a probability of 1 a little more than that.
        p = logprob.exp().clamp(max=1)
        return p >= self.threshold if self.keep == "top" else p <= self.threshold

    def weight(self, stats: TokenStats) -> Tensor:
        logprob = stats.require("logprob")
        return (self.alpha * logprob).exp() * self._kept(logprob)

    def extra(self, stats: TokenStats) -> Tensor:
        """Return what the value is more than weight times nll; a constant, the gradient is the weight's alone."""
        logprob = stats.require("logprob").detach()
        value = -(self.alpha * logprob).expm1() / self.alpha if self.alpha else -logprob
        return value * self._kept(logprob) + logprob * self.weight(stats).detach()
