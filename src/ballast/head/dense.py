"""Statistics from full logits, by the formulas as they stand in the literature. The oracle of the other backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ballast.head.folds import widest
from ballast.statistics import find

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.head.lm_head import LMHead


def dense(
    hidden_NH: Tensor,
    head: LMHead,
    targets_N: Tensor,
    fields: tuple[str, ...],
    reference: tuple[Tensor, LMHead] | None,
    vocab_size: int | None,
) -> dict[str, Tensor]:
    """Return the fields, each ``[N]``; autograd differentiates them. Holds several ``[N, V]`` tensors in float64.

    In float32 sums over a vocabulary err in the sixth digit, and divergences, small differences, in the third.
    """
    values: dict[str, Tensor] = {}
    wants = set(fields)
    computed_NV = head.logits(hidden_NH)
    logits_NV = computed_NV.to(widest(computed_NV))
    values |= _marginal(logits_NV, targets_N, wants, "")
    if reference is not None:
        with torch.no_grad():
            ref_logits_NV = reference[1].logits(reference[0]).to(logits_NV.dtype)
            values |= _marginal(ref_logits_NV, targets_N, wants, "ref_")
            logq_NV = ref_logits_NV[:, :vocab_size].log_softmax(-1)
        logp_NV = logits_NV[:, :vocab_size].log_softmax(-1)
        if "kl" in wants:
            values["kl"] = _expectation(logp_NV.exp(), logp_NV - logq_NV)
        if "kl_forward" in wants:
            values["kl_forward"] = _expectation(logq_NV.exp(), logq_NV - logp_NV)
        for name in fields:
            if (statistic := find(name)) is not None and statistic.pair:
                values[name] = statistic.dense(logp_NV, targets_N, logq_NV)
    return {name: value.to(computed_NV.dtype) for name, value in values.items()}


def _marginal(logits_NV: Tensor, targets_N: Tensor, wants: set[str], prefix: str) -> dict[str, Tensor]:
    values = {}
    logp_NV = logits_NV.log_softmax(-1)
    target_N1 = targets_N[:, None]
    if f"{prefix}logprob" in wants:
        values[f"{prefix}logprob"] = logp_NV.gather(1, target_N1).squeeze(1)
    if f"{prefix}entropy" in wants:
        values[f"{prefix}entropy"] = -_expectation(logp_NV.exp(), logp_NV)
    if f"{prefix}collision" in wants:
        values[f"{prefix}collision"] = logp_NV.exp().square().sum(-1)
    if {f"{prefix}mass", f"{prefix}tied"} & wants:
        with torch.no_grad():
            probability_NV, at_target_N1 = logp_NV.exp(), logits_NV.gather(1, target_N1)
            own_N = probability_NV.gather(1, target_N1).squeeze(1)
            less_N = (probability_NV * (logits_NV < at_target_N1)).sum(-1)
            tied_N = (probability_NV * (logits_NV == at_target_N1)).sum(-1) - own_N
            # Nothing is likelier than an arg-max, whose mass and ties are all there is, free of rounding.
            top_N = at_target_N1.squeeze(1) >= logits_NV.amax(-1)
            values[f"{prefix}mass"] = torch.where(top_N, 1 - tied_N, less_N + own_N)
            values[f"{prefix}tied"] = tied_N
    for name in wants if not prefix else ():
        if (statistic := find(name)) is not None and not statistic.pair:
            values[name] = statistic.dense(logp_NV, targets_N, None)
    return {name: value for name, value in values.items() if name in wants}


def _expectation(probability_NV: Tensor, value_NV: Tensor) -> Tensor:
    # A token of probability 0 has an infinite logarithm and contributes nothing.
    return (probability_NV * value_NV.masked_fill(probability_NV == 0, 0)).sum(-1)
