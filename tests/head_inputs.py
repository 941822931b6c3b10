"""Small random inputs of the head, one settings dictionary per way that models form logits."""

from __future__ import annotations

from typing import Any

import torch

from ballast.head import LMHead

FIELDS = (
    "logprob", "entropy", "collision", "kl", "kl_forward", "mass", "tied",
    "ref_logprob", "ref_entropy", "ref_mass", "ref_tied",
)  # fmt: skip

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 2.0},
    "scale": {"scale": 0.4},
    "all": {"bias": True, "softcap": 3.0, "scale": 1.7},
}


def inputs(
    rows: int = 5,
    hidden: int = 3,
    vocab: int = 7,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    ref_vocab: int | None = None,
):
    """Return (hidden, LMHead, targets, reference) with a reference of another hidden size; leaves require gradient."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    states, weight = normal(rows, hidden).requires_grad_(), normal(vocab, hidden).requires_grad_()
    shift = normal(vocab).requires_grad_() if bias else None
    targets = torch.randint(0, min(vocab, ref_vocab or vocab), (rows,), generator=draw)
    ref_head = LMHead(
        normal(ref_vocab or vocab, hidden + 1), normal(ref_vocab or vocab) if bias else None, softcap, scale
    )
    return states, LMHead(weight, shift, softcap, scale), targets, (normal(rows, hidden + 1), ref_head)


def leaves(states, head):
    """Return the tensors that gradients are taken by."""
    return [states, head.weight] if head.bias is None else [states, head.weight, head.bias]
