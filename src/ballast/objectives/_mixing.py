"""Input embeddings between the demonstrated tokens and the model's own greedy ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SCHEDULES: dict[str, Callable[[float, float, float, float], float]] = {
    "constant": lambda share, start, progress, noise: share,
    "linear": lambda share, start, progress, noise: start + (share - start) * progress,
    "noisy": lambda share, start, progress, noise: min(max(share * (1 + 0.5 * noise), 0.0), 1.0),
}
"""The share of the greedy token: ``(share, share at the start, progress, noise) -> share now``."""


def mixed(embeddings: Tensor, arg_max: Tensor, labels: Tensor, share: float) -> Tensor:
    """Return ``(1 − share)·embeddings + share·arg_max`` at trained positions, else ``embeddings``: ``[B, T, H]``."""
    trained = labels != -100
    # Nothing predicts the first position of a row, so it has no greedy token.
    trained[:, 0] = False
    return ((1 - share) * embeddings + share * arg_max).where(trained[..., None], embeddings)
