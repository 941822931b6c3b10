"""Comparing a per-token loss with its oracle, in value and gradient; mutants are judged by the same check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ballast import TokenStats, objective
from oracles.losses import loss
from oracles.rows import Rows, random_rows, statistics_of

PerTokenLoss = Callable[[TokenStats], Tensor]
Spoil = Callable[[TokenStats, Tensor], TokenStats]


def check_against_oracle(
    name: str,
    options: dict[str, Any],
    per_token_loss: PerTokenLoss | None = None,
    rows: Rows | None = None,
    spoil: Spoil | None = None,
    **settings: Any,
) -> None:
    """Assert that the per-token loss has the oracle's values and gradient by the live logits.

    ``spoil(stats, logits)`` may change the statistics first, as a mutant of the head would.
    """
    rows = rows or random_rows()
    built = objective(name, **options)
    stats, logits = statistics_of(rows, **settings)
    if spoil is not None:
        stats = spoil(stats, logits)
    losses = (per_token_loss or built.per_token_loss)(stats)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    values, slopes = loss(name, rows, **options)
    torch.testing.assert_close(losses.detach(), torch.tensor(values, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, torch.tensor(slopes, dtype=torch.float64), rtol=1e-9, atol=1e-9)
