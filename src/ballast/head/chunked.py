"""The same statistics with never more than one chunk of rows of logits alive, recomputed in the backward.

Within a chunk of C rows: p = softmax(logits), H = −Σ p log p, q the reference's distribution. With incoming
gradients a, b, c, d of log-prob, entropy, KL(p‖q) and KL(q‖p), the gradient of the logits is

    a·(1[v = y] − p) − b·p·(log p + H) + c·p·(log p − log q − KL(p‖q)) + d·(p − q).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ballast.head.lm_head import LMHead
from ballast.stats import DIFFERENTIABLE_FIELDS

if TYPE_CHECKING:
    from torch import Tensor

CPU_BLOCK_LOGITS = 2**19
"""Logits (2 MiB in float32) that passes go over together on a CPU."""

SMALLEST_LOG = -1e30
"""Stands for log 0, so that 0·log 0 is 0 and not nan."""


@dataclass(frozen=True)
class _Plan:
    """What to compute: everything about a call but its tensors with gradient."""

    fields: tuple[str, ...]
    chunk: int
    ref_head: LMHead | None
    vocab_size: int | None
    autocast: torch.dtype | None
    """The dtype that autocast projects in; kept because the backward runs outside of autocast's context."""

    def wants(self, *names: str) -> bool:
        return any(name in self.fields for name in names)

    def logits(self, head: LMHead, hidden_CH: Tensor) -> Tensor:
        with torch.autocast(hidden_CH.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return head.logits(hidden_CH)


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
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    ref_hidden, ref_head = reference if reference is not None else (None, None)
    plan = _Plan(fields, chunk, ref_head, vocab_size, autocast)
    with torch.autocast(device, enabled=False):
        outputs = _Statistics.apply(  # type: ignore[no-untyped-call]
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
        for part in _chunks(len(hidden), plan):
            tile = _forward_chunk(head, hidden[part], targets[part], None if ref is None else ref[part], plan)
            for name, value in values.items():
                value[part] = tile[name]
        kept = (values.get("entropy"), values.get("kl"), values["top"], values["normaliser"])
        ctx.save_for_backward(hidden, weight, bias, targets, ref, *kept)
        ctx.plan, ctx.softcap, ctx.scale = plan, softcap, scale
        ctx.mark_non_differentiable(*(values[name] for name in plan.fields if name not in DIFFERENTIABLE_FIELDS))
        ctx.set_materialize_grads(False)
        return tuple(values[name] for name in plan.fields)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, ref, entropy, kl, top, normaliser = ctx.saved_tensors
        plan: _Plan = ctx.plan
        head = LMHead(weight, bias, ctx.softcap, ctx.scale)
        incoming = {name: grad for name, grad in zip(plan.fields, grads, strict=True) if grad is not None}
        known = incoming | {"H": entropy, "KL": kl, "top": top, "normaliser": normaliser}
        # Chunks are summed in float32: a sum of chunks in bfloat16 loses the small ones.
        sums = torch.promote_types(weight.dtype, torch.float32)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=sums) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=sums) if wants_bias else None
        for part in _chunks(len(hidden), plan):
            here = {name: value[part] for name, value in known.items() if value is not None}
            ref_part = None if ref is None else ref[part]
            grad_CV = _backward_chunk(head, hidden[part], targets[part], ref_part, plan, here)
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0)
            grad_CV = grad_CV.to(plan.autocast or weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_CV @ weight.to(grad_CV.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, grad_CV.T, hidden[part].to(grad_CV.dtype))
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _chunks(rows: int, plan: _Plan) -> list[slice]:
    return [slice(start, start + plan.chunk) for start in range(0, rows, plan.chunk)]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _forward_chunk(head: LMHead, hidden: Tensor, targets: Tensor, ref: Tensor | None, plan: _Plan) -> dict[str, Tensor]:
    wants_kl = plan.wants("kl", "kl_forward")
    values, logp_CV = _marginal(head, hidden, targets, plan, "", wants_kl)
    if ref is None or plan.ref_head is None:
        return values
    ref_values, logq_CV = _marginal(plan.ref_head, ref, targets, plan, "ref_", wants_kl)
    values |= ref_values
    if wants_kl:
        logp_CV, logq_CV = _common(logp_CV, plan), _common(logq_CV, plan)
        difference_CV = logp_CV - logq_CV
        if plan.wants("kl"):
            values["kl"] = logp_CV.exp_().mul_(difference_CV).sum(-1)
        if plan.wants("kl_forward"):
            values["kl_forward"] = -logq_CV.exp_().mul_(difference_CV).sum(-1)
    return values


def _marginal(
    head: LMHead, hidden: Tensor, targets: Tensor, plan: _Plan, prefix: str, wants_kl: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the statistics of one distribution and its normaliser, ``[C]`` each, and log-probabilities ``[C, V]``.

    The log-probabilities are there where a KL wants them. The product wants many rows at once, to read the weight
    rarely; the passes over its result want few on a CPU, to stay in the cache.
    """
    logits_CV = plan.logits(head, hidden)
    rows = len(logits_CV) if logits_CV.device.type != "cpu" else max(1, CPU_BLOCK_LOGITS // logits_CV.shape[1])
    blocks = zip(logits_CV.split(rows), targets.split(rows), strict=True)  # type: ignore[no-untyped-call]
    parts = [_row_statistics(logits_BV, targets_B, plan, prefix, wants_kl) for logits_BV, targets_B in blocks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, logits_CV


def _row_statistics(logits_CV: Tensor, targets: Tensor, plan: _Plan, prefix: str, wants_kl: bool) -> dict[str, Tensor]:
    """Return the statistics of these rows, ``[C]`` each, and leave log-probabilities in place of logits for a KL.

    Each line is a pass over ``[C, V]``; a product with a mask of bool costs several of floats, so masks are floats.
    """
    at_target_C1 = logits_CV.gather(1, targets[:, None])
    top_C1 = logits_CV.amax(-1, keepdim=True)
    wants_mass, wants_entropy = plan.wants(f"{prefix}mass", f"{prefix}tied"), plan.wants(f"{prefix}entropy")
    if wants_mass:
        # Ties are judged on the logits as computed: subtracting the maximum can make two of them equal.
        less_CV = torch.lt(logits_CV, at_target_C1, out=torch.empty_like(logits_CV))
        ties_C = torch.eq(logits_CV, at_target_C1, out=torch.empty_like(logits_CV)).sum(-1) - 1
    logits_CV.sub_(top_C1)
    p_CV = logits_CV.exp() if wants_entropy or wants_kl else logits_CV.exp_()
    total_C = p_CV.sum(-1)
    normaliser_C = total_C.log()
    own_C = (at_target_C1 - top_C1).squeeze(1) - normaliser_C
    values = {f"{prefix}logprob": own_C, f"{prefix}top": top_C1.squeeze(1), f"{prefix}normaliser": normaliser_C}
    if wants_mass:
        tied_C = ties_C * own_C.exp()
        less_C = less_CV.mul_(p_CV).sum(-1) / total_C
        values[f"{prefix}tied"] = tied_C
        # Nothing is likelier than an arg-max, whose mass and ties are all there is, free of rounding.
        values[f"{prefix}mass"] = torch.where((at_target_C1 >= top_C1).squeeze(1), 1 - tied_C, less_C + own_C.exp())
    if wants_entropy or wants_kl:
        logits_CV.clamp_(min=SMALLEST_LOG)
    if wants_entropy:
        values[f"{prefix}entropy"] = normaliser_C - p_CV.mul_(logits_CV).sum(-1) / total_C
    if wants_kl:
        logits_CV.sub_(normaliser_C[:, None])
    return values


def _common(logp_CV: Tensor, plan: _Plan) -> Tensor:
    """Return log-probabilities over the tokens that both vocabularies have, normalised anew if rows are left out."""
    if plan.vocab_size is None or plan.vocab_size == logp_CV.shape[1]:
        return logp_CV
    return logp_CV[:, : plan.vocab_size].log_softmax(-1)


def _backward_chunk(
    head: LMHead, hidden: Tensor, targets: Tensor, ref: Tensor | None, plan: _Plan, known: dict[str, Tensor]
) -> Tensor:
    """Return the gradient of the projection ``h Wᵀ + b``, ``[C, V]``.

    `known` has the incoming gradients, and H, KL, the largest logit and the normaliser as the forward found them.
    """
    logits_CV = plan.logits(head, hidden)
    slope_CV = None if head.softcap is None else 1 - (logits_CV / head.softcap).square_()
    # In two steps, as in the forward: the sum of both would be rounded at the size of the logits.
    logp_CV = logits_CV.sub_(known["top"][:, None]).sub_(known["normaliser"][:, None])
    if {"entropy", "kl", "kl_forward"} & known.keys():
        logp_CV.clamp_(min=SMALLEST_LOG)
    extra_CV = None
    if ref is not None and plan.ref_head is not None and {"kl", "kl_forward"} & known.keys():
        extra_CV = _kl_gradient(logp_CV, ref, plan.ref_head, plan, known)
    grad_CV = _marginal_gradient(logp_CV, known)
    if "logprob" in known:
        grad_CV.scatter_add_(1, targets[:, None], known["logprob"][:, None])
    if extra_CV is not None:
        grad_CV[:, : plan.vocab_size].add_(extra_CV)
    if slope_CV is not None:
        grad_CV *= slope_CV
    return grad_CV if head.scale == 1.0 else grad_CV.mul_(head.scale)


def _marginal_gradient(logp_CV: Tensor, known: dict[str, Tensor]) -> Tensor:
    """Return ``−p·(a + b·(log p + H))``, overwriting the log-probabilities."""
    zero_C = torch.zeros_like(known["normaliser"])
    factor_C1 = -known.get("logprob", zero_C)[:, None]
    if "entropy" not in known:
        return logp_CV.exp_().mul_(factor_C1)
    p_CV, entropy_grad_C1 = logp_CV.exp(), known["entropy"][:, None]
    return logp_CV.add_(known["H"][:, None]).mul_(-entropy_grad_C1).add_(factor_C1).mul_(p_CV)


def _kl_gradient(logp_CV: Tensor, ref: Tensor, ref_head: LMHead, plan: _Plan, known: dict[str, Tensor]) -> Tensor:
    """Return ``c·p·(log p − log q − KL) + d·(p − q)`` over the tokens that both vocabularies have."""
    logp_CV = _common(logp_CV, plan)
    logq_CV = _common(plan.logits(ref_head, ref).log_softmax(-1).clamp_(min=SMALLEST_LOG), plan)
    p_CV = logp_CV.exp()
    pulled_CV = p_CV.sub(logq_CV.exp()).mul_(known["kl_forward"][:, None]) if "kl_forward" in known else None
    if "kl" not in known:
        assert pulled_CV is not None
        return pulled_CV
    # The difference first: where p = q the gradient is 0 exactly.
    grad_CV = torch.sub(logp_CV, logq_CV, out=logq_CV).sub_(known["KL"][:, None]).mul_(p_CV)
    grad_CV.mul_(known["kl"][:, None])
    return grad_CV if pulled_CV is None else grad_CV.add_(pulled_CV)
