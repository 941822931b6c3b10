"""Online self-training: imitate demonstrations and the model's own right answers, half and half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective
from ballast.stats import ORIGINS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ballast.stats import TokenStats

OWN = ORIGINS.index("own")


def _counted(origin: Tensor, reward: Tensor) -> Tensor:
    return (origin != OWN) | (reward >= 1)


@dataclass(frozen=True)
class SelfTrain(Objective):
    """Imitate given answers and the right ones among the model's own, the mean of each origin weighing the same.

    ``w_t = share_t`` for given answers and for own ones with reward 1, else 0: with expert and own answers the loss of
    an optimiser step is ``½·mean nll(expert) + ½·mean nll(own, right)``, the means over tokens. An origin without a
    right answer in a step leaves its half to the other.

    Requirements: groups of answers with rewards (`ballast.groups`). Relations: without own answers, or with none that
    is right, it is `sft` on the given ones; on own answers alone it is rejection sampling as the model goes.
    """

    name: ClassVar[str] = "self-train"
    source: ClassVar[str] = "ReFT, arXiv:2401.08967, online self-training"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "origin", "reward", "share")

    def weight(self, stats: TokenStats) -> Tensor:
        share = stats.require("share")
        return share.where(_counted(stats.require("origin"), stats.require("reward")), 0.0)

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        known = "origin" in columns and "reward" in columns
        return _counted(columns["origin"], columns["reward"]) if known else None
