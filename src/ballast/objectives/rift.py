"""RIFT: imitate right answers by the likelihood, unlearn wrong ones by the probability, which has a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class RIFT(Objective):
    """Imitate the answers that were judged right and unlearn the wrong ones, bounded where they are unlikely.

    An answer's value r lies between `wrong` (reward 0) and `right` (reward 1), by its reward. ``loss_t = r·nll_t``
    where r > 0; where r < 0 the gradient is that of ``−r·p_t``, which is ``w_t = r·p_t``.

    Requirements: groups of answers with rewards (`ballast.groups`). Relations: wrong = 0 imitates the right answers
    alone; on right ones it is `sft`; unlearning is that of `gft` with tau > 1, by value instead of advantage.
    """

    name: ClassVar[str] = "rift"
    source: ClassVar[str] = "RIFT, arXiv:2601.09253"

    right: float = option(1.0, "value of an answer with reward 1", minimum=0)
    wrong: float = option(-0.2, "value of an answer with reward 0", maximum=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "reward")

    def _value(self, reward: Tensor) -> Tensor:
        return self.wrong + (self.right - self.wrong) * reward

    def weight(self, stats: TokenStats) -> Tensor:
        value = self._value(stats.require("reward"))
        return value * stats.require("logprob").exp().where(value < 0, 1.0)

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        return {"probability": stats.require("logprob").exp()}
