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
    """Return the sequence of each trained token and its index among all tokens of that sequence, both ``[N]`` integers.

    Sequences are the rows of a padded batch, or what ``seq_idx`` says of a packed one.
    """
    mask, _ = trained_positions(batch["labels"])
    sequence, before = mask.nonzero(as_tuple=True)
    if "seq_idx" not in batch:
        return sequence, before + 1
    index_BT = batch["seq_idx"].contiguous()
    # Sequences are numbered in their order, so where each begins is found by bisection.
    first_BT = torch.searchsorted(index_BT, index_BT)
    return index_BT[:, 1:][mask].long(), before + 1 - first_BT[:, 1:][mask]


def _tokens(batch: Batch) -> Tensor:
    return trained_positions(batch["labels"])[0].sum()


def _sequences(batch: Batch) -> Tensor:
    sequence, _ = token_layout(batch)
    # Tokens come in the order of their sequences.
    return (sequence[1:] != sequence[:-1]).sum() + (len(sequence) > 0)


def _groups(batch: Batch) -> Tensor:
    if "group" not in batch:
        raise BallastError("cannot count 'groups': the batch has none; train with `groups`")
    group = batch["group"]
    return torch.tensor(len(group[~group.isnan()].unique()), device=group.device)


COUNTS: dict[str, Callable[[Batch], Tensor]] = {"tokens": _tokens, "sequences": _sequences, "groups": _groups}


def count(reduction: str, batches: Sequence[Batch]) -> Tensor:
    """Return how many tokens, sequences or groups these micro-batches train, as a scalar.

    Raises:
        BallastError: if nothing can count what the objective declares.
    """
    if reduction not in COUNTS:
        raise BallastError(f"cannot count {reduction!r}: known reductions are {', '.join(COUNTS)}")
    return torch.stack([COUNTS[reduction](batch) for batch in batches]).sum()
