"""Several processes: rows that only fill up their last batch, and what a batch holds without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

ROW_ENDS = "row_ends"
"""Tensor ``[rows]`` of a padding-free batch: where each of the rows in it ends."""


def rows_left(accelerator: Accelerator, rows: int) -> int:
    """Return how many of this rank's `rows` in the batch at hand are there for the first time in the epoch.

    accelerate fills up the last batch of several ranks with rows from the start, so that all have as many.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader:
        return rows
    last = state.remainder if state.remainder > 0 else _resumed_remainder(state, rows * accelerator.num_processes)
    return min(rows, max(0, last - accelerator.process_index * rows)) if last else rows


def _resumed_remainder(state: Any, size: int) -> int:
    """Return the rows of the last batch of all ranks, of `size`, in an epoch that is gone on with; else 0.

    accelerate does not know it there: the batches that are skipped are, by a sampler that names no size.
    """
    from accelerate.data_loader import SkipBatchSampler

    loader = state.active_dataloader
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, SkipBatchSampler) or getattr(sampler.batch_sampler, "drop_last", False):
        return 0
    return len(loader.dataset) % size


def without_repeats(batch: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Return a batch in which no token of a repeated row is trained or measured: its labels are -100."""
    ends = batch.get(ROW_ENDS)
    rows = len(batch["labels"] if ends is None else ends)
    left = rows_left(accelerator, rows)
    if left == rows:
        return batch
    labels_BT = batch["labels"].clone()
    if ends is None:
        labels_BT[left:] = -100
        return {**batch, "labels": labels_BT}
    labels_BT[:, int(ends[left - 1]) if left else 0 :] = -100
    return {**batch, "labels": labels_BT, ROW_ENDS: ends[:left]}


def tokens_seen(batch: Mapping[str, Any]) -> Tensor | int:
    """Return how many tokens of the demonstrations a batch holds, without padding and repeated rows."""
    if ROW_ENDS in batch:
        return batch[ROW_ENDS][-1] if len(batch[ROW_ENDS]) else 0
    kept_B1 = (batch["labels"] != -100).any(dim=1, keepdim=True)
    return (kept_B1 * batch.get("attention_mask", torch.ones_like(batch["labels"]))).sum()
