"""An explicit reward: a sequence classifier that scores demonstrations above the model's own answers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
