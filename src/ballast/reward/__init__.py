"""An explicit reward: a sequence classifier that scores demonstrations above the model's own answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ballast.lazy import on_use

if TYPE_CHECKING:
    from ballast.reward.options import RewardOptions
    from ballast.reward.pairs import Pair, pairs_of
    from ballast.reward.scores import Scorer, load_scorer

__all__ = ["Pair", "RewardOptions", "Scorer", "load_scorer", "pairs_of"]

_HOMES = {
    "Pair": "ballast.reward.pairs",
    "RewardOptions": "ballast.reward.options",
    "Scorer": "ballast.reward.scores",
    "load_scorer": "ballast.reward.scores",
    "pairs_of": "ballast.reward.pairs",
}


def __getattr__(name: str) -> Any:
    # The recipe reads the options without loading torch.
    return on_use(__name__, _HOMES, name)
