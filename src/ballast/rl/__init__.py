"""Reinforcement learning from a checkpoint: GRPO or RLOO by TRL's trainers, rewarded by the verifiers of evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ballast.lazy import on_use

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
    return on_use(__name__, _HOMES, name)
