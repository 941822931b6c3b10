"""Reinforcement learning from a checkpoint: GRPO or RLOO by TRL's trainers, rewarded by the verifiers of evaluation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ballast.rl.options import RLOptions
    from ballast.rl.prompts import Prompts
    from ballast.rl.rewards import Rewards, reward_verifier
    from ballast.rl.train import Run

__all__ = ["Prompts", "RLOptions", "Rewards", "Run", "reward_verifier"]

_HOMES = {
    "Prompts": "ballast.rl.prompts",
    "RLOptions": "ballast.rl.options",
    "Rewards": "ballast.rl.rewards",
    "Run": "ballast.rl.train",
    "reward_verifier": "ballast.rl.rewards",
}


def __getattr__(name: str) -> Any:
    # The recipe reads the options without loading torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
