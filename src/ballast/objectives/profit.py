"""ProFit: imitate the tokens whose live probability lies on one side of a threshold, or between two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, OptionError, check_read, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class ProFit(Objective):
    """Imitate only tokens that the model in training finds likely enough.

    ``w_t = 1[p_t ≥ threshold]`` (keep: higher), ``1[p_t ≤ threshold]`` (lower), or
    ``1[threshold ≤ p_t ≤ upper]`` (middle). The sum is divided by all trained tokens, not by the kept ones.

    Relations: threshold 0 is `sft`; higher is `reweight` with rule threshold and signal live; `p-alpha` with alpha 0
    has higher and lower too.
    """

    name: ClassVar[str] = "profit"
    source: ClassVar[str] = "ProFit, arXiv:2601.09195"

    keep: str = option("higher", "which tokens are imitated", choices=("higher", "lower", "middle"))
    threshold: float = option(0.1, "the probability, or the lower of two", minimum=0, maximum=1)
    upper: float | None = option(None, "the upper probability of middle", minimum=0, maximum=1, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_read(self, "keep", {"middle": ("upper",)})
        if self.upper is not None and self.upper < self.threshold:
            message = f"upper {self.upper:g} is below threshold {self.threshold:g}, so no token would be kept"
            raise OptionError(self.name, "upper", message)

    def weight(self, stats: TokenStats) -> Tensor:
        low = 0.0 if self.keep == "lower" else self.threshold
        high = self.threshold if self.keep == "lower" else 1.0 if self.upper is None else self.upper
        # Rounding makes a probability of 1 a little more than that.
        p = stats.require("logprob").exp().clamp(max=1)
        return ((p >= low) & (p <= high)).to(p.dtype)
