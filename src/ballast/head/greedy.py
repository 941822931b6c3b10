"""The token that a model finds likeliest at each position, without holding all logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ballast.head.projection import chunk_rows

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.head.lm_head import LMHead


def greedy(hidden_NH: Tensor, head: LMHead, *, chunk: int | None = None) -> Tensor:
    """Return the likeliest token at each position, ``[N]``, as a decoder without sampling would choose it.

    With `chunk` rows of logits alive at a time. Of equally likely tokens the first is taken. The soft-cap is left out:
    it keeps the order, but where it saturates it makes ties of tokens that differ.

    Args:
        hidden_NH: last hidden states, ``[N, H]``.
        head: the LM head that reads them.
        chunk: rows of logits held at a time; None takes as many as `token_stats` does.

    Raises:
        ValueError: if `chunk` is less than 1.
    """
    rows = chunk_rows(hidden_NH.device.type, head) if chunk is None else chunk
    if rows < 1:
        raise ValueError(f"chunk must be at least 1 row, got {rows}")
    chunks = hidden_NH.split(rows)
    return torch.cat([_likeliest(hidden_CH, head) for hidden_CH in chunks])


def _likeliest(hidden_CH: Tensor, head: LMHead) -> Tensor:
    # The projection is the head's own, in its own dtype: elsewhere other tokens would tie.
    if not torch.is_autocast_enabled(hidden_CH.device.type):
        hidden_CH = hidden_CH.to(head.weight.dtype)
    logits_CV = functional.linear(hidden_CH, head.weight, head.bias)
    # A factor below 0 turns the order round.
    return logits_CV.argmin(-1) if head.scale < 0 else logits_CV.argmax(-1)
