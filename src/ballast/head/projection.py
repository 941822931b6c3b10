"""From hidden states to rows of logits, in memory that is used again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.head.lm_head import LMHead

CHUNK_LIMIT = 2**25
"""Logits of one chunk (128 MiB in float32), unless the caller says how many rows."""

CPU_CHUNK_LIMIT = 2**23
"""The same on a CPU (32 MiB): larger ones cost time in page faults, smaller ones starve the projection."""

CPU_STRIP = 1024
"""Vocabulary rows that a product in float32 goes over at a time on a CPU, for each thread: they stay in its cache."""


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype that autocast projects in on this type of device, None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def chunk_rows(device: str, head: LMHead) -> int:
    """Return how many rows of a head's logits one chunk holds on this type of device."""
    limit = min(CHUNK_LIMIT, CPU_CHUNK_LIMIT) if device == "cpu" else CHUNK_LIMIT
    return max(1, limit // len(head.weight))


class Projection:
    """Logits of some rows at a time, in the head's own dtype as `LMHead.logits`, in memory of its own."""

    def __init__(self, head: LMHead, rows: int, low: torch.dtype | None) -> None:
        # Autocast leaves float64 as it is.
        dtype = head.weight.dtype if low is None or head.weight.dtype == torch.float64 else low
        self.weight = head.weight.detach().to(dtype)
        self.bias = None if head.bias is None else head.bias.detach().to(dtype)
        self.softcap, self.scale, self.dtype = head.softcap, head.scale, dtype
        self._projected_CV = self.weight.new_empty(rows, len(self.weight))
        self.wide = torch.promote_types(dtype, torch.float32)
        self._logits_CV = self._projected_CV
        if self.wide != dtype:
            self._logits_CV = torch.empty_like(self._projected_CV, dtype=self.wide)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """Return the logits ``[C, V]`` in float32 or better; the next call overwrites them."""
        projected_CV = self._projected_CV[: len(hidden_CH)]
        self._project(hidden_CH.to(self.dtype), projected_CV)
        logits_CV = self._logits_CV[: len(hidden_CH)]
        if logits_CV.dtype != projected_CV.dtype:
            logits_CV.copy_(projected_CV)
        if self.scale != 1.0:
            logits_CV.mul_(self.scale)
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_CV

    def _project(self, hidden_CH: Tensor, out_CV: Tensor) -> None:
        vocab = len(self.weight)
        in_strips = self.dtype == torch.float32 and out_CV.device.type == "cpu"
        width = CPU_STRIP * torch.get_num_threads() if in_strips else vocab
        for start in range(0, vocab, width):
            strip = slice(start, start + width)
            if self.bias is None:
                torch.mm(hidden_CH, self.weight[strip].T, out=out_CV[:, strip])
            else:
                torch.addmm(self.bias[strip], hidden_CH, self.weight[strip].T, out=out_CV[:, strip])

    def operand(self, grad_CV: Tensor) -> Tensor:
        """Return a gradient of these logits in the dtype that its products are taken in.

        That is the projection's own, but float32 for float16: a probability below 6e-8 is 0 there.
        """
        if grad_CV.dtype == self.dtype or self.dtype == torch.float16:
            return grad_CV
        return self._projected_CV[: len(grad_CV)].copy_(grad_CV)
