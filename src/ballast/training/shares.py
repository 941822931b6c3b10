"""What an origin's answers weigh in an optimiser step where every origin's mean counts the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ballast.head import trained_positions
from ballast.stats import GROUP_FIELDS, ORIGINS

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.objectives import Objective

SHARE, ORIGIN = "share", "origin"


def fill_shares(
    batches: Sequence[dict[str, Any]], objective: Objective, summed: Callable[[Tensor], Tensor], device: torch.device
) -> None:
    """Write ``share`` into the micro-batches of one optimiser step, where the objective reads it.

    Of the tokens that can have a loss (`Objective.active`) each origin has its number over all micro-batches and
    ranks; an origin that has none leaves its part to the others.

    Args:
        summed: sums a tensor over ranks.
        device: where `summed` wants its tensors.
    """
    if SHARE not in objective.needs:
        return
    counts = torch.zeros(1 + len(ORIGINS), dtype=torch.float64)
    for batch in batches:
        mask, _ = trained_positions(batch["labels"])
        columns = {name: batch[name][:, 1:][mask] for name in GROUP_FIELDS if name in batch}
        active, origin = objective.active(columns), columns[ORIGIN].long()
        counted = origin if active is None else origin[active]
        counts[0] += len(origin)
        counts[1:] += counted.bincount(minlength=len(ORIGINS)).to(counts)
    tokens, *by_origin = summed(counts.to(device)).tolist()
    present = sum(count > 0 for count in by_origin)
    shares = [tokens / (present * count) if count else 0.0 for count in by_origin]
    for batch in batches:
        origin = batch[ORIGIN]
        batch[SHARE] = origin.new_tensor(shares)[origin.nan_to_num().long()]
