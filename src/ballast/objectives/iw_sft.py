"""iw-SFT: imitation weighed by how much likelier the model has made a demonstration than the reference does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._sequences import sequence_mean
from ballast.objectives.base import Objective, Scope, check_read, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class IwSFT(Objective):
    """Weigh demonstrations by the importance ratio of the model in training to the frozen reference.

    ``w = min(cap, exp(temperature·mean_t log(p_t/q_t)))``, one weight for all tokens of a sequence (per: sequence), or
    ``w_t = clip(p_t/q_t, 1 − clip, 1 + clip)`` (per: token). Weights are constants to the gradient.

    Requirements: a reference, live or cached. Relations: as long as the model is the reference it is `sft`, as it is
    with temperature 0 or clip 0.
    """

    name: ClassVar[str] = "iw-sft"
    source: ClassVar[str] = "iw-SFT, arXiv:2507.12856"

    per: str = option("sequence", "what has one weight", choices=("sequence", "token"))
    temperature: float = option(1.0, "exponent of a sequence's mean ratio", minimum=0)
    cap: float = option(16.0, "largest weight of a sequence", minimum=0)
    clip: float = option(0.8, "how far the weight of a token may lie from 1", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_read(self, "per", {"sequence": ("temperature", "cap"), "token": ("clip",)})

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "ref_logprob")

    @property
    def scope(self) -> Scope:
        return "sequence" if self.per == "sequence" else "token"

    def weight(self, stats: TokenStats) -> Tensor:
        moved = stats.require("logprob") - stats.require("ref_logprob")
        if self.per == "token":
            return moved.exp().clamp(1 - self.clip, 1 + self.clip)
        return (self.temperature * sequence_mean(moved, stats)).exp().clamp(max=self.cap)
