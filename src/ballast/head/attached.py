"""A loss whose gradient was formed together with it, as autograd sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ballast.errors import BallastError
from ballast.statistics import is_differentiable
from ballast.stats import TokenStats

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.head.lm_head import LMHead
    from ballast.head.tiles import Gradients

    PerTokenLoss = Callable[[TokenStats], Tensor]


@dataclass(frozen=True)
class Formed:
    """A loss with its gradient, and what it was computed from.

    Attributes:
        loss: scalar, differentiable once by hidden states, weight and bias.
        stats: statistics of the tokens that went through the head, without gradient.
        computed: which tokens these are, ``[N]`` of bool; None where all did.
    """

    loss: Tensor
    stats: TokenStats
    computed: Tensor | None


def per_token_slopes(
    per_token_loss: PerTokenLoss, stats: TokenStats, count: int, wanted: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses and, if asked for, the gradient of their sum by each statistic that has one, ``[C]`` each.

    Raises:
        ValueError: if there is not one loss per token.
    """
    given = {name: value for name, value in stats.tensors().items() if wanted and is_differentiable(name)}
    leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
    with torch.set_grad_enabled(wanted):
        losses_C = per_token_loss(stats.changed(leaves))
        if losses_C.shape != (count,):
            raise ValueError(f"expected one loss for each of {count} tokens, got the shape {[*losses_C.shape]}")
        if not losses_C.requires_grad:
            return losses_C, {}
        slopes = torch.autograd.grad(losses_C.sum(), list(leaves.values()), allow_unused=True)
    return losses_C.detach(), {name: slope for name, slope in zip(leaves, slopes, strict=True) if slope is not None}


def joined(parts: Sequence[Mapping[str, Tensor]], names: tuple[str, ...], like: Tensor) -> dict[str, Tensor]:
    """Return these statistics of all parts in one, empty ones where there are no parts."""
    if not parts:
        return {name: like.new_empty(0) for name in names}
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def checked_denominator(denominator: float | Tensor | None, count: int) -> float | Tensor:
    """Return what the sum of losses is divided by; None stands for the count.

    Raises:
        BallastError: if it is not a positive finite number without gradient.
    """
    if denominator is None:
        return max(count, 1)
    if isinstance(denominator, torch.Tensor):
        if denominator.requires_grad or denominator.numel() != 1:
            raise BallastError(
                f"denominator: expected one number without gradient, got {[*denominator.shape]}"
                f"{' with gradient' if denominator.requires_grad else ''}: a gradient by it would be lost"
            )
        # On an accelerator the look would wait for the device.
        if denominator.device.type != "cpu":
            return denominator.reshape(())
        denominator = denominator.item()
    if not math.isfinite(denominator) or denominator <= 0:
        raise BallastError(f"denominator: expected a positive finite number, got {denominator!r}")
    return denominator


def attach(loss: Tensor, hidden: Tensor, head: LMHead, gradients: Gradients | None) -> Tensor:
    """Return the loss as a function of hidden states and head that has these gradients; they are used up."""
    if gradients is None:
        return loss
    finished = gradients.finished()
    return _Attached.apply(hidden, head.weight, head.bias, loss, finished)  # type: ignore[no-untyped-call]  # of torch


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: Tensor,
        gradients: tuple[Tensor | None, ...],
    ) -> Tensor:
        # Not `save_for_backward`: it would keep what the backward hands on, so that a copy would be accumulated.
        ctx.gradients = gradients
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in (hidden, weight, bias)]
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "this loss has handed on its gradient, which was formed with it and multiplied in place: compute the "
                "loss again for a second backward"
            )
        gradients, ctx.gradients = ctx.gradients, None
        # On an accelerator the look would wait for the device, which costs more than the product.
        if incoming.device.type != "cpu" or incoming.item() != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(incoming)
        cast = [
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*cast, None, None)
