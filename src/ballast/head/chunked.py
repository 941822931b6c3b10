"""The same statistics with never more than one chunk of rows of logits alive, recomputed in the backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ballast.head.folds import SMALLEST_LOG, Scratch, divergences, gradient_of_logprobs, marginal, value_of
from ballast.head.lm_head import LMHead
from ballast.head.projection import Projection, autocast_dtype
from ballast.statistics import find, is_differentiable, is_pair, reads_reference

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.head.folds import Leave


@dataclass(frozen=True)
class _Plan:
    """What to compute: everything about a call but its tensors with gradient."""

    fields: tuple[str, ...]
    chunk: int
    ref_head: LMHead | None
    vocab_size: int | None
    autocast: torch.dtype | None
    """The dtype that autocast projects in; kept because the backward runs outside of autocast's context."""

    @property
    def kept(self) -> dict[str, str]:
        """Which statistics the gradient is made of, each under the name that it knows them by."""
        further = {name: value_of(name) for name in self.fields if find(name) is not None}
        return {"entropy": "H", "collision": "S", "kl": "KL", "top": "top", "normaliser": "normaliser", **further}

    def projection(self, head: LMHead, rows: int) -> Projection:
        return Projection(head, min(self.chunk, rows), self.autocast)

    def reference(self, rows: int) -> Projection | None:
        return None if self.ref_head is None else self.projection(self.ref_head, rows)


def chunked(
    hidden_NH: Tensor,
    head: LMHead,
    targets_N: Tensor,
    fields: tuple[str, ...],
    reference: tuple[Tensor, LMHead] | None,
    vocab_size: int | None,
    chunk: int,
) -> dict[str, Tensor]:
    """Return the fields, each ``[N]``, from ``chunk`` rows of logits at a time."""
    device = hidden_NH.device.type
    in_use = any(map(reads_reference, fields))
    ref_hidden, ref_head = reference if reference is not None and in_use else (None, None)
    plan = _Plan(fields, chunk, ref_head, vocab_size, autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        outputs = _Statistics.apply(  # type: ignore[no-untyped-call]  # of torch
            hidden_NH, head.weight, head.bias, targets_N, ref_hidden, head.softcap, head.scale, plan
        )
    return dict(zip(fields, outputs, strict=True))


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ref: Tensor | None,
        softcap: float | None,
        scale: float,
        plan: _Plan,
    ) -> tuple[Tensor, ...]:
        head = LMHead(weight, bias, softcap, scale)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        values = {name: hidden.new_empty(len(hidden), dtype=dtype) for name in (*plan.fields, "top", "normaliser")}
        scratch, own, other = Scratch(), plan.projection(head, len(hidden)), plan.reference(len(hidden))
        for part in chunks(len(hidden), plan.chunk):
            logits_CV = own.logits(hidden[part])
            ref_CV = None if other is None or ref is None else other.logits(ref[part])
            tile = _forward_chunk(logits_CV, ref_CV, targets[part], plan, scratch)
            for name, value in values.items():
                value[part] = tile[name]
        ctx.save_for_backward(hidden, weight, bias, targets, ref, *map(values.get, plan.kept))
        ctx.plan, ctx.softcap, ctx.scale = plan, softcap, scale
        ctx.mark_non_differentiable(*(values[name] for name in plan.fields if not is_differentiable(name)))
        ctx.set_materialize_grads(False)
        return tuple(values[name] for name in plan.fields)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, ref, *kept = ctx.saved_tensors
        plan: _Plan = ctx.plan
        head = LMHead(weight, bias, ctx.softcap, ctx.scale)
        incoming = {name: grad * ctx.scale for name, grad in zip(plan.fields, grads, strict=True) if grad is not None}
        known = incoming | dict(zip(plan.kept.values(), kept, strict=True))
        # Chunks are summed in float32: a sum of chunks in bfloat16 loses the small ones.
        sums = torch.promote_types(weight.dtype, torch.float32)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=sums) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=sums) if wants_bias else None
        scratch, own = Scratch(), plan.projection(head, len(hidden))
        other = plan.reference(len(hidden)) if any(map(is_pair, incoming)) else None
        for part in chunks(len(hidden), plan.chunk):
            here = {name: value[part] for name, value in known.items() if value is not None}
            grad_CV, ref_CV = own.logits(hidden[part]), None if other is None else other.logits(ref[part])
            _backward_chunk(grad_CV, ref_CV, targets[part], plan, head.softcap, here, scratch)
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0)
            grad_CV = own.operand(grad_CV)
            if grad_hidden is not None:
                grad_hidden[part] = grad_CV @ weight.to(grad_CV.dtype)
            if grad_weight is not None:
                add_product(grad_weight, grad_CV.T, hidden[part].to(grad_CV.dtype))
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def chunks(rows: int, chunk: int) -> list[slice]:
    """Return the slices of ``chunk`` rows each that make up all rows."""
    return [slice(start, start + chunk) for start in range(0, rows, chunk)]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to a sum of the same or higher precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _forward_chunk(
    logits_CV: Tensor, ref_CV: Tensor | None, targets_C: Tensor, plan: _Plan, scratch: Scratch
) -> dict[str, Tensor]:
    leave: Leave = "logprobs" if any(map(is_pair, plan.fields)) else "anything"
    values = marginal(logits_CV, targets_C, plan.fields, "", leave, scratch)
    if ref_CV is None:
        return values
    values |= marginal(ref_CV, targets_C, plan.fields, "ref_", leave, scratch)
    if leave == "anything":
        return values
    rest_C = values["ref_rest"] - values["rest"]
    return values | divergences(logits_CV, ref_CV, plan.fields, plan.vocab_size, scratch, rest_C, targets_C)


def _backward_chunk(
    logits_CV: Tensor,
    ref_CV: Tensor | None,
    targets_C: Tensor,
    plan: _Plan,
    softcap: float | None,
    known: dict[str, Tensor],
    scratch: Scratch,
) -> None:
    """Turn logits into the gradient of the projection ``h Wᵀ + b``, given what `gradient_of_logprobs` knows."""
    # In two steps, as in the forward: the sum of both would be rounded at the size of the logits.
    logits_CV.sub_(known["top"][:, None]).sub_(known["normaliser"][:, None])
    if any(name == "entropy" or is_pair(name) or find(name) is not None for name in known):
        logits_CV.clamp_(min=SMALLEST_LOG)
    logq_CV = None if ref_CV is None else ref_CV.log_softmax(-1).clamp_(min=SMALLEST_LOG)
    gradient_of_logprobs(logits_CV, logq_CV, targets_C, known, plan.vocab_size, softcap, scratch)
