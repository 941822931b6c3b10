"""IFT: inputs mixed with the model's own greedy tokens, and tokens weighed by the loss that follows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._mixing import SCHEDULES, mixed
from ballast.objectives._propagation import VARIANTS, lengths
from ballast.objectives.base import Objective, OptionError, Reduction, Scope, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats

GAMMA, LAM_START = 0.95, 0.0


@dataclass(frozen=True)
class IFT(Objective):
    """Imitate from inputs mixed with the model's own greedy tokens; weigh each token by the loss from it onwards.

    ``loss_t = w_t·nll_t / n`` over the n tokens of a sequence, ``w_t = c_t·n / Σ_s c_s`` with gradient,
    ``c_t = Σ_{i≥t} gamma^(i−t)·nll_i``, t and i being positions in the sequence. The model reads
    ``(1 − lam)·E(gold) + lam·E(greedy)`` at trained positions.

    Requirements: a model that accepts input embeddings; a second forward. Relations: lam = gamma = 0 is `sft` averaged
    per sequence.
    """

    name: ClassVar[str] = "ift"
    source: ClassVar[str] = "IFT, arXiv:2405.11870"

    variant: str = option("normalised", "w_t as above, c_t alone, or the place t + 1", choices=tuple(VARIANTS))
    lam: float = option(0.2, "share of the greedy token in the inputs", minimum=0, maximum=1)
    gamma: float = option(GAMMA, "discount of later losses; not for equation21", minimum=0, maximum=1)
    schedule: str = option("constant", "how lam changes; noisy is lam·(1 + N(0, 1)/2)", choices=tuple(SCHEDULES))
    lam_start: float = option(LAM_START, "lam at the start of the linear schedule", minimum=0, maximum=1)
    average: str = option("sequence", "mean per sequence first, or over all tokens", choices=("sequence", "token"))
    embeddings: str = option("detached", "whether the inputs carry gradient", choices=("detached", "attached"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "equation21" and self.gamma != GAMMA:
            raise OptionError(self.name, "gamma", "variant 'equation21' has no 'gamma', it would be ignored")
        if self.schedule != "linear" and self.lam_start != LAM_START:
            message = "'lam_start' is ignored by all schedules but 'linear': name it, or leave it"
            raise OptionError(self.name, "lam_start", message)

    scope: ClassVar[Scope] = "sequence"

    @property
    def reduction(self) -> Reduction:
        return "sequences" if self.average == "sequence" else "tokens"

    def weight(self, stats: TokenStats) -> Tensor:
        return VARIANTS[self.variant](stats, self.gamma)

    def per_token_loss(self, stats: TokenStats) -> Tensor:
        losses = -stats.require("logprob") * self.weight(stats)
        return losses / lengths(stats) if self.average == "sequence" else losses

    def prepare_inputs(
        self, embeddings: Tensor, arg_max: Tensor, labels: Tensor, *, progress: float = 0.0, noise: float = 0.0
    ) -> Tensor:
        share = SCHEDULES[self.schedule](self.lam, self.lam_start, progress, noise)
        inputs = mixed(embeddings, arg_max, labels, share)
        return inputs.detach() if self.embeddings == "detached" else inputs
