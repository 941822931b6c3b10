"""ballast: supervised fine-tuning that leaves a language model ready for reinforcement learning."""

import importlib
from typing import TYPE_CHECKING, Any

from ballast.lazy import on_use

__version__ = "0.1.0"

_HOME = {
    "BallastError": "ballast.errors",
    "Objective": "ballast.objectives",
    "TokenStats": "ballast.stats",
    "Trainer": "ballast.training",
    "TrainingConfig": "ballast.training",
    "fused_loss": "ballast.head",
    "list_objectives": "ballast.objectives",
    "objective": "ballast.objectives",
    "token_stats": "ballast.head",
}

_PARTS = ("data", "errors", "evaluation", "head", "lab", "objectives", "reference", "stats", "training")

if TYPE_CHECKING:
    from ballast.errors import BallastError
    from ballast.head import fused_loss, token_stats
    from ballast.objectives import Objective, list_objectives, objective
    from ballast.stats import TokenStats
    from ballast.training import Trainer, TrainingConfig

__all__ = [
    "BallastError",
    "Objective",
    "TokenStats",
    "Trainer",
    "TrainingConfig",
    "fused_loss",
    "list_objectives",
    "objective",
    "token_stats",
]


def __getattr__(name: str) -> Any:
    # Names load their module when first used, so that listing objectives or showing help loads no torch.
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    return on_use(__name__, _HOME, name)
