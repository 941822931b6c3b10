"""The LM head as data, and where a transformers model keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.protocols import Model


@dataclass(frozen=True)
class LMHead:
    """How hidden states become logits: ``softcap·tanh(scale·(h Wᵀ + b) / softcap)``.

    Attributes:
        weight: ``[V, H]``.
        bias: ``[V]`` or None.
        softcap: bound of the logits (Gemma), or None.
        scale: factor on the projection, before the cap (Cohere; Granite's divisor enters as its inverse).
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Return the logits ``[N, V]`` in float32 or better, projected in the head's own dtype (or autocast's).

        Models project in their own dtype and their logits tie accordingly, so the projection is not done in float32.
        """
        import torch
        from torch.nn import functional

        weight, bias = self.weight, self.bias
        if not torch.is_autocast_enabled(hidden_NH.device.type):
            hidden_NH = hidden_NH.to(weight.dtype)
        logits = functional.linear(hidden_NH, weight, bias)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def unwrapped(model: Model) -> Model:
    """Return the causal language model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def lm_head(model: Model) -> LMHead:
    """Return the LM head of a transformers causal language model, read anew (sharded weights are gathered).

    Raises:
        BallastError: if the model has no output embedding, or an adapter sits on it: the statistics multiply by the
            head's weight directly, so the adapter would be neither applied nor trained.
    """
    from torch.distributed.tensor import DTensor

    causal = unwrapped(model)
    layer = causal.get_output_embeddings()
    if layer is None:
        raise BallastError(f"{type(causal).__name__} has no LM head: ballast trains causal language models")
    if hasattr(layer, "base_layer"):
        raise BallastError("an adapter on `lm_head` would never be trained: remove 'lm_head' from `target_modules`")
    if hasattr(layer, "token_adapter"):
        raise BallastError(
            "trainable tokens on `lm_head` would never be trained: untie the embeddings, or remove "
            "'trainable_token_indices' and train the embedding by 'modules_to_save'"
        )
    if not layer.weight.is_floating_point():
        raise BallastError(
            "the LM head is quantised: the statistics multiply by its weight directly, and what is stored are codes of "
            "it; load the model with its head left out (llm_int8_skip_modules)"
        )
    config = causal.config.get_text_config()
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if isinstance(weight, DTensor):
        weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
    if (size := getattr(config, "unpadded_vocab_size", None)) is not None and size < len(weight):
        # Inkling cuts the logits of its padding off.
        weight, bias = weight[:size], None if bias is None else bias[:size]
    return LMHead(weight, bias, logit_softcap(config), logit_scale(config))


def check_adapted_head(model: Model) -> None:
    """Refuse what PEFT does to an LM head where training or saving would lose it; a copy of its own is trained whole.

    Raises:
        BallastError: for an adapter on the head, or a copy of a head that shares its weight with the embedding.
    """
    lm_head(model)
    causal = unwrapped(model)
    copied = hasattr(causal.get_output_embeddings(), "modules_to_save")
    if copied and getattr(causal.config.get_text_config(), "tie_word_embeddings", False):
        raise BallastError(
            "'modules_to_save' names `lm_head`, whose weight is the embedding's too: the copy would be trained and the "
            "embedding not, and merging could keep one of them only; leave it out, or untie the weights first"
        )


def logit_softcap(config: Any) -> float | None:
    """Return the bound that the model's own forward puts on its logits, from its text config; None if none."""
    for bound in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):
        if getattr(config, bound, None):
            return float(getattr(config, bound))
    return None


def logit_scale(config: Any) -> float:
    """Return the factor that the model's own forward puts on its logits, from its text config; 1 if none."""
    if config.model_type == "mpt":
        # Its config has a `logit_scale` that its forward never reads.
        return 1.0
    for multiplier in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, multiplier, None) is not None:
            return float(getattr(config, multiplier))
    divisor = getattr(config, "logits_scaling", None) or getattr(config, "logits_mup_width_multiplier", None)
    if divisor is None:
        return 1.0
    # HyperCLOVA X calls its multiplier by the name of Granite's divisor.
    return float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor)


def backbone(causal: Model) -> Any:
    """Return the part of a causal language model that ends in hidden states.

    It is what transformers names as such, or, where that name is another class's (Llama 4's text model), the one model
    inside the model.

    Raises:
        BallastError: if there is none, so that hidden states cannot be had without logits.
    """
    from transformers import PreTrainedModel

    if causal.base_model is not causal:
        return causal.base_model
    inside = [part for part in causal.children() if isinstance(part, PreTrainedModel)]
    if len(inside) != 1:
        raise BallastError(f"{type(causal).__name__} does not name its backbone: ballast cannot leave its logits out")
    return inside[0]


def backbone_hidden(model: Model, **inputs: Any) -> Tensor:
    """Return the last hidden states ``[B, T, H]`` of a causal language model, without projecting them."""
    hidden: Tensor = backbone(unwrapped(model))(**inputs, use_cache=False).last_hidden_state
    return hidden


def trained_positions(labels_BT: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """Return which hidden states predict a trained token, ``[B, T−1]`` of bool, and those tokens, ``[N]``.

    ``hidden[:, :-1][mask]`` predicts ``targets``; the first label of a row is predicted by nothing.
    """
    shifted = labels_BT[:, 1:]
    mask = shifted != ignore_index
    return mask, shifted[mask]
