"""The verifiers of ballast as the reward function of verl, whose PPO has the critic that ReFT trains with.

verl reads ``reward.custom_reward_function``: ``path`` is this file, ``name`` is ``compute_score``, and what stands
under ``reward_kwargs`` is given to every call; see the page on reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ballast.rl.rewards import reward_verifier
from ballast.verifiers.registry import score_answers

_verifier = cache(reward_verifier)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    verifier: str = "math",
    reward: str = "verifier",
    **settings: Any,
) -> float:
    """Return the reward of one answer, 0 where the verifier fails.

    Args:
        data_source: not read: one verifier judges all rows.
        solution_str: the answer.
        ground_truth: the row's ``answer``.
        extra_info: further columns that the verifier reads, such as ``prompt``.
        verifier, reward, settings: as `ballast.rl.reward_verifier` takes them.

    Raises:
        BallastError: if there is no such verifier, or it cannot give such rewards.
    """
    row = {**(extra_info or {}), "answer": ground_truth}
    return score_answers(_verifier(verifier, reward, **settings), [(solution_str, row)]).scores[0]
