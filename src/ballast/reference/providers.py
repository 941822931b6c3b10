"""Live references: a frozen model in memory, or the model in training with its adapter switched off."""

from __future__ import annotations

import copy
import functools
import types
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError
from ballast.head import LMHead, backbone_hidden, lm_head, unwrapped
from ballast.reference.adapters import is_peft, trainable_base_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import PeftModel
    from torch import Tensor

    from ballast.protocols import Model


class LiveReference:
    """A reference in memory: hidden states without gradient and in eval mode, and the LM head that reads them."""

    model: Model

    def hidden(self, **inputs: Any) -> Tensor:
        """Return the last hidden states ``[B, T, H]`` for a transformers model's inputs."""
        raise NotImplementedError

    @property
    def head(self) -> LMHead:
        """The LM head that the reference itself uses."""
        return lm_head(self.model)


class ModelReference(LiveReference):
    """A second model, frozen for good: no weight asks for a gradient, and it stays in eval mode.

    It is entered by its own forward, where the hooks of FSDP and DeepSpeed begin.
    """

    def __init__(self, model: Model) -> None:
        self.model = model.requires_grad_(False).eval()
        _add_hidden(self.model)

    def hidden(self, **inputs: Any) -> Tensor:
        """Return the last hidden states ``[B, T, H]`` for a transformers model's inputs."""
        import torch

        with torch.no_grad(), evaluating(self.model):
            found: Tensor = self.model(**inputs, hidden_states_alone=True)
            return found


class AdapterOffReference(LiveReference):
    """The base under a PEFT adapter: no second model in memory.

    Dropout is off while it computes; afterwards every module and every adapter weight is as it was.

    Raises:
        BallastError: if the model has no adapter, or if training moves weights of the base itself.
    """

    model: PeftModel

    def __init__(self, model: Model) -> None:
        if not is_peft(model):
            raise BallastError(
                "reference 'adapter-off' needs a model with a PEFT adapter: without one the reference would be the "
                "model in training itself; give `lora` settings, or use reference 'model'"
            )
        if moving := trainable_base_names(model):
            raise BallastError(
                f"reference 'adapter-off': training would move the base weight {moving[0]!r} ({len(moving)} in all), "
                "so the reference would move too; leave the base frozen (LoRA `bias: none`), or use reference 'model'"
            )
        self.model = model

    def hidden(self, **inputs: Any) -> Tensor:
        """Return the base's last hidden states ``[B, T, H]`` for a transformers model's inputs."""
        import torch

        with torch.no_grad(), evaluating(self.model), adapter_off(self.model):
            return backbone_hidden(self.model, **inputs)

    @property
    def head(self) -> LMHead:
        """The base's own LM head, where `modules_to_save` trains a copy of it."""
        with adapter_off(self.model):
            return lm_head(self.model)


class AsItStands(LiveReference):
    """The model in its present state, left as it was found; for scoring."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def hidden(self, **inputs: Any) -> Tensor:
        """Return the last hidden states ``[B, T, H]`` for a transformers model's inputs."""
        import torch

        with torch.no_grad(), evaluating(self.model):
            return backbone_hidden(self.model, **inputs)


def _add_hidden(model: Model) -> None:
    """Let ``model(..., hidden_states_alone=True)`` return the last hidden states ``[B, T, H]``, without logits."""
    causal: Any = unwrapped(model)
    original = causal.forward

    @functools.wraps(type(causal).forward)
    def forward(self: Any, *args: Any, hidden_states_alone: bool = False, **kwargs: Any) -> Any:
        return backbone_hidden(self, **kwargs) if hidden_states_alone else original(*args, **kwargs)

    causal.forward = types.MethodType(forward, causal)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put every module into eval mode, and afterwards each back into its own mode."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        # Not `model.train()`: a caller may keep single modules in eval mode on purpose.
        for module in training:
            module.training = True


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """Switch the adapters off, and afterwards on again.

    Not by PEFT's own context, which takes their ``requires_grad`` away meanwhile: FSDP keeps what it finds in the first
    forward, so the adapters would never train.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers: list[Any] = [part for part in model.modules() if isinstance(part, kinds) and not part.disable_adapters]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def frozen_copy(model: Model) -> ModelReference:
    """Return a frozen deep copy of the model as it stands, its adapters included.

    Raises:
        BallastError: if a forward is patched: the copy's forward would run on the weights of the original.
    """
    for name, module in model.named_modules():
        if _is_closure(vars(module).get("forward")):
            where = f"the forward of {name!r}" if name else "the model's forward"
            raise BallastError(
                f"{where} is patched, so a copy would compute with the weights in training and not with frozen ones: "
                "make the reference before the trainer, or load a second model and pass that"
            )
    twin = copy.deepcopy(model)
    for weight in twin.parameters():
        weight.grad = None
    return ModelReference(twin)


def _is_closure(forward: Any) -> bool:
    # Bound methods are copied along with their module; plain functions keep what they closed over.
    while hasattr(forward, "func"):
        forward = forward.func
    return forward is not None and getattr(forward, "__closure__", None) is not None


def check_vocabulary(model: Model, reference: LiveReference, vocab_size: int | None = None) -> None:
    """Refuse a reference whose vocabulary is not the model's.

    Args:
        model: the model in training.
        reference: its reference.
        vocab_size: number of tokens that the tokenizer has; rows beyond it are padding and may differ in number.

    Raises:
        BallastError: if the numbers of tokens differ.
    """
    ours, theirs = (len(head.weight) for head in (lm_head(model), reference.head))
    if ours == theirs or (vocab_size is not None and min(ours, theirs) >= vocab_size):
        return
    known = "" if vocab_size is None else f", the tokenizer has {vocab_size}"
    raise BallastError(
        f"the reference's vocabulary has {theirs} rows, the model's {ours}{known}: probabilities of different tokens "
        "would be compared; use a reference with the same tokenizer"
    )
