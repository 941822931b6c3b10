"""IDFT: DFT whose exponent follows from whether a token is likelier or less likely than the model would expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, OptionError, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class IDFT(Objective):
    """Weigh each token by a power of its probability, the higher the less the model expects it.

    ``w_t = p_t^g`` with ``g = sg(clip(exp(−(log p_t + H_t)/beta), low, high))``: log p + H is above 0 for a token that
    is likelier than the model's own draws are on average. Until `warmup` of the training is done g is 1; over the
    `transition` that follows it becomes the formula's.

    Relations: low = high = 1, and warmup = 1, are `dft`; low = high = 0 is `sft`.
    """

    name: ClassVar[str] = "idft"
    source: ClassVar[str] = "IDFT, arXiv:2602.12222"

    beta: float = option(1.0, "nats of log p + H that change the exponent by a factor of e", minimum=1e-6)
    low: float = option(0.1, "smallest exponent", minimum=0)
    high: float = option(2.0, "largest exponent", minimum=0)
    warmup: float = option(0.0, "share of the training with exponent 1", minimum=0, maximum=1)
    transition: float = option(0.0, "share of the training over which the exponent sets in", minimum=0, maximum=1)
    gradient: str = option("detached", "whether the weight carries gradient", choices=("detached", "attached"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            message = f"low {self.low:g} is above high {self.high:g}, so every exponent would be high"
            raise OptionError(self.name, "low", message)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "entropy", *(("progress",) if self.warmup or self.transition else ()))

    def _exponents(self, stats: TokenStats) -> Tensor:
        expected = (stats.require("logprob") + stats.require("entropy")).detach()
        exponent = (-expected / self.beta).exp().clamp(self.low, self.high)
        if "progress" not in self.needs:
            return exponent
        done = stats.require("progress").to(exponent.dtype) - self.warmup
        share = (done / self.transition).clamp(0, 1) if self.transition else (done >= 0).to(done.dtype)
        return 1 + share * (exponent - 1)

    def weight(self, stats: TokenStats) -> Tensor:
        return (self._exponents(stats) * stats.require("logprob")).exp()

    def per_token_loss(self, stats: TokenStats) -> Tensor:
        weight = self.weight(stats)
        return -stats.require("logprob") * (weight if self.gradient == "attached" else weight.detach())

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        return {"exponent": self._exponents(stats)}
