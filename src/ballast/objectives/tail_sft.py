"""TailSFT: what the model has come to fit best since the start is left out, so that the rest is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._selection import segments
from ballast.objectives._sequences import sequence_means
from ballast.objectives.base import Objective, Scope, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class TailSFT(Objective):
    """Imitate the sequences of a step, but for those whose loss has fallen most since the start.

    Of the step's S sequences the ``round(f·S)`` with the largest ``mean_t (log p_t − log q_t)`` have the weight 0;
    where that is the same to 1e-4 nats, those with the lower loss go first, and one at least is kept. The others have
    the weight ``N / (tokens kept)``: the loss is a mean over these. f is `fraction`, to which ``ramp`` grows from 0.

    Requirements: a reference (the model as it starts), live or cached, and a further forward of each row, without
    gradient. Relations: fraction 0 is `sft`.
    """

    name: ClassVar[str] = "tail-sft"
    source: ClassVar[str] = "TailSFT, arXiv:2608.25756, Algorithm 1"

    fraction: float = option(0.25, "share of a step's sequences that are left out", minimum=0, maximum=1)
    schedule: str = option("static", "how the share moves over the training", choices=("static", "ramp"))

    scope: ClassVar[Scope] = "step"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "ref_logprob", *(("progress",) if self.schedule == "ramp" else ()))

    def weight(self, stats: TokenStats) -> Tensor:
        logprob = stats.require("logprob")
        if not len(logprob):
            return logprob
        # Rounded, and equal ones by their loss: at the first step differences are rounding errors, which vary with the
        # micro-batches.
        fallen = sequence_means(logprob - stats.require("ref_logprob"), stats).round(decimals=4)
        order = sequence_means(logprob, stats).argsort(descending=True)
        order = order[fallen[order].argsort(descending=True, stable=True)]
        done = float(stats.require("progress")[0]) if self.schedule == "ramp" else 1.0
        count = min(round(self.fraction * done * len(order)), len(order) - 1)
        kept = fallen.new_ones(len(order)).index_fill(0, order[:count], 0)[segments(stats, "sequence")]
        return kept * (len(kept) / kept.sum())
