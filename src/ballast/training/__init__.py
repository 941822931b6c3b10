"""Training: TRL's trainer with an objective, one reduction, and columns that stay aligned with their tokens."""

from ballast.training.config import TrainingConfig
from ballast.training.trainer import Trainer

__all__ = ["Trainer", "TrainingConfig"]
