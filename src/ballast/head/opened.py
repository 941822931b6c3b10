"""The LM head from inside its own layer, where a sharded weight is whole."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ballast.head.lm_head import lm_head, unwrapped

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.head.lm_head import LMHead
    from ballast.protocols import Model

T = TypeVar("T")


def open_head(model: Model) -> None:
    """Let the head's layer compute something else than logits, for `at_head`; do nothing where it can already."""
    for layer in unwrapped(model).get_output_embeddings().modules():
        if "weight" in dict(layer.named_parameters(recurse=False)) and not hasattr(layer, "_opened"):
            _open(layer)


def _open(layer: Any) -> None:
    original = layer.forward

    @functools.wraps(type(layer).forward)
    def forward(self: Any, *args: Any, compute: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if compute is None else compute(*args, **kwargs)

    layer.forward = types.MethodType(forward, layer)
    layer._opened = True


def at_head(model: Model, hidden_NH: Tensor, compute: Callable[[Tensor, LMHead], T]) -> T:
    """Return what `compute` makes of hidden states and the LM head, called inside the layer's forward if it is open.

    FSDP and DeepSpeed bring a layer's weights together before its forward and await its gradient after it; a head that
    is read from outside would be a part, or be taken apart again before the backward.

    Args:
        model: a causal language model.
        hidden_NH: hidden states ``[N, H]``; `compute` is given them as the hooks of the layer hand them on.
        compute: returns tensors, for the hooks to see, alone or in a tuple with anything else.
    """
    layer: Any = unwrapped(model).get_output_embeddings()
    if not any(getattr(part, "_opened", False) for part in layer.modules()):
        return compute(hidden_NH, lm_head(model))
    found: T = layer(hidden_NH, compute=lambda hidden: compute(hidden, lm_head(model)))
    return found
