"""Everything of vocabulary size ends here: hidden states and an LM head become one number per trained token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ballast.head.attached import Formed
from ballast.head.chunked import chunked
from ballast.head.dense import dense
from ballast.head.fused import fused_loss, fused_pass
from ballast.head.greedy import greedy
from ballast.head.inputs import as_head, check, frozen, vocabulary_asked
from ballast.head.lm_head import (
    LMHead,
    backbone,
    backbone_hidden,
    check_adapted_head,
    lm_head,
    trained_positions,
    unwrapped,
)
from ballast.head.opened import at_head, open_head
from ballast.head.projection import chunk_rows
from ballast.head.two_phase import two_phase
from ballast.stats import TokenStats

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Formed",
    "LMHead",
    "at_head",
    "backbone",
    "backbone_hidden",
    "check_adapted_head",
    "fused_loss",
    "fused_pass",
    "greedy",
    "lm_head",
    "open_head",
    "token_stats",
    "trained_positions",
    "two_phase",
    "unwrapped",
]

Backend = Literal["auto", "dense", "chunked"]

DENSE_LIMIT = 2**22
"""Logits (16 MiB in float32) up to which holding them all is cheaper than computing them twice."""


def token_stats(
    hidden: Tensor,
    weight: Tensor | LMHead,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    fields: tuple[str, ...] = ("logprob",),
    reference: tuple[Tensor, Tensor | LMHead] | None = None,
    backend: Backend = "auto",
    chunk: int | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    vocab_size: int | None = None,
) -> TokenStats:
    """Return statistics of the target tokens under the model and, if given, under a reference.

    Args:
        hidden: last hidden states at the positions that predict the targets, ``[N, H]``.
        weight: the LM head's weight ``[V, H]``, or an `LMHead`, which brings bias, cap and scale along.
        targets: token ids, ``[N]``.
        bias: the LM head's bias ``[V]``.
        fields: names of the `TokenStats` fields to compute, and of `ballast.statistics`; the others are None.
        reference: hidden states ``[N, Hr]`` and LM head ``[Vr, Hr]`` of the reference, for ``kl``, ``kl_forward``
            and the ``ref_`` fields; never differentiated.
        backend: ``dense`` holds all logits and lets autograd work, ``chunked`` holds ``chunk`` rows and computes them
            again in the backward (once differentiable); ``auto`` decides by size.
        chunk: rows of logits held at a time by ``chunked``.
        softcap: bound that the model puts on its logits (Gemma).
        scale: factor that the model puts on its logits (Cohere, Granite).
        vocab_size: number of leading vocabulary rows that are tokens; the KL fields are taken over these alone,
            normalised anew. Needed where V ≠ Vr, the rest being padding of either.

    Returns:
        `TokenStats` with the fields asked for, ``[N]``, in nats, float32 (float64 for a float64 head).

    Raises:
        ValueError: for an unknown or collator's field, shapes that do not fit, targets outside the vocabulary, a
            field that needs a reference without one, or V ≠ Vr without `vocab_size`.

    >>> import torch
    >>> hidden, weight = torch.eye(2), torch.zeros(4, 2)
    >>> token_stats(hidden, weight, torch.tensor([0, 3]), fields=("entropy",)).entropy.exp()
    tensor([4.0000, 4.0000])
    """
    head = as_head(weight, bias, softcap, scale)
    fixed = None if reference is None else frozen(*reference)
    size, fields = vocabulary_asked(head, fields)
    check(hidden, head, targets, fields, fixed, vocab_size)
    if backend == "auto":
        backend = "dense" if len(targets) * len(head.weight) <= DENSE_LIMIT else "chunked"
    if backend == "dense":
        return TokenStats.of(dense(hidden, head, targets, fields, fixed, vocab_size), vocabulary=size)
    if backend != "chunked":
        raise ValueError(f"unknown backend {backend!r}: auto, dense or chunked")
    rows = chunk_rows(hidden.device.type, head) if chunk is None else chunk
    if rows < 1:
        raise ValueError(f"chunk must be at least 1 row, got {rows}")
    return TokenStats.of(chunked(hidden, head, targets, fields, fixed, vocab_size, rows), vocabulary=size)
