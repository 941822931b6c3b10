"""Models whose weights bitsandbytes holds in few bits: what keeps gradients flowing through them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ballast.errors import BallastError

if TYPE_CHECKING:
    from ballast.protocols import Model

PACKS = "support_avx512bf16_for_cpu"
"""Attribute of bitsandbytes' 4-bit layers: whether to pack their weights in the first forward in eval mode on a CPU."""


NO_ADAPTER = "quantised weights are codes, which no gradient moves, so an adapter has to train in their place"


def is_quantised(model: Model) -> bool:
    """Return whether transformers loaded a model's weights in fewer bits."""
    return bool(getattr(model, "is_quantized", False))


def refuse_without_adapter(model: Model) -> None:
    """Refuse to train a quantised model that has no adapter.

    Raises:
        BallastError: its weights are codes, which no gradient moves.
    """
    if is_quantised(model) and not hasattr(model, "peft_config"):
        raise BallastError(f"the model is quantised: {NO_ADAPTER}; give peft_config, or load it in full precision")


def keep_differentiable(model: Model) -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference on a CPU; other models are left alone.

    From packed weights no gradient flows to what comes before them: PyTorch warns once and training goes on with
    gradients that lack it. One forward without gradient packs them for good, such as a measurement, a reference's or
    an answer's.

    Raises:
        BallastError: if weights are packed already; unpacking would round their scales.
    """
    for name, layer in model.named_modules():
        if not hasattr(layer, PACKS):
            continue
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise BallastError(
                f"the 4-bit weights of {name!r} were packed for inference on the CPU (a forward in eval mode does "
                "that), so no gradient would flow through them and training would go wrong silently; load the model "
                "anew, with model.quantization or ballast.models.load_model"
            )
        setattr(layer, PACKS, False)


@contextmanager
def trained_weights_kept(model: Model) -> Iterator[None]:
    """Keep the trained weights of a quantised model from being rounded to bfloat16 in the block; new ones get float32.

    TRL's trainers round them when they are made: small updates would be lost, as they are in any bfloat16 weight, and
    an adapter that goes on would start elsewhere.
    """
    kept = {id(weight): weight.data for weight in model.parameters() if weight.requires_grad}
    yield
    for weight in model.parameters() if is_quantised(model) else ():
        if weight.requires_grad:
            weight.data = kept.get(id(weight), weight.data.float()).to(weight.device)
