"""What a sum of per-token losses is divided by: counted over labels, so that no model has to report it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ballast.errors import BallastError
from ballast.head import trained_positions

if TYPE_CHECKING:
    from torch import Tensor

    Batch = Mapping[str, Any]


def token_layout(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the sequence of each trained token and its place in it, both ``[N]`` integers.

    Sequences are the rows of a padded batch, or what ``seq_idx`` says of a packed one; places count trained tokens.
    """
    mask, targets = trained_positions(batch["labels"])
    sequence = batch["seq_idx"][:, 1:][mask].long() if "seq_idx" in batch else mask.nonzero()[:, 0]
    # Tokens come in order of their sequences, so the first of each is found by bisection.
    first = torch.searchsorted(sequence, sequence)
    return sequence, torch.arange(len(targets), device=targets.device) - first


def _tokens(batch: Batch) -> Tensor:
    return trained_positions(batch["labels"])[0].sum()


def _sequences(batch: Batch) -> Tensor:
    _, position = token_layout(batch)
    return (position == 0).sum()


def _groups(batch: Batch) -> Tensor:
    if "group" not in batch:
        raise BallastError("cannot count 'groups': the batch has none; train with `groups`")
    return batch["group"].unique().new_tensor(len(batch["group"].unique()))


COUNTS: dict[str, Callable[[Batch], Tensor]] = {"tokens": _tokens, "sequences": _sequences, "groups": _groups}


def count(reduction: str, batches: Sequence[Batch]) -> Tensor:
    """Return how many tokens, sequences or groups these micro-batches train, as a scalar.

    Raises:
        BallastError: if nothing can count what the objective declares.
    """
    if reduction not in COUNTS:
        raise BallastError(f"cannot count {reduction!r}: known reductions are {', '.join(COUNTS)}")
    return torch.stack([COUNTS[reduction](batch) for batch in batches]).sum()
