"""Content hashes of what decides a reference's numbers: the model's weights and configuration, and the tokenizer."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ballast.data.fingerprint import content_hash, tokenizer_fingerprint
from ballast.errors import BallastError
from ballast.reference.adapters import adapter_state, base_state, starts_at_base

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ballast.protocols import Model

VOLATILE_CONFIG = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "architectures",
        # The tensors carry their own dtype.
        "dtype",
        "torch_dtype",
        # What the forward returns beside the hidden states, and how it caches.
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "_attn_implementation",
        "attn_implementation",
        "gradient_checkpointing",
        # Trainers align these with the tokenizer; generation alone reads them.
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        # Heads that are not in use, initialisation and training.
        "id2label",
        "label2id",
        "problem_type",
        "finetuning_task",
        "initializer_range",
        "router_aux_loss_coef",
        "pretraining_tp",
        "chunk_size_feed_forward",
    }
)
VOLATILE_ENDINGS = ("dropout", "pdrop", "dropout_prob", "dropout_rate", "layerdrop")
__all__ = ["model_fingerprint", "stable_config", "start_fingerprint", "tokenizer_fingerprint"]
SAMPLE = 4096
"""Elements of each tensor that tell starting models apart where no reference depends on all."""


def model_fingerprint(model: Model, *, adapters: bool = False, sample: int | None = None) -> str:
    """Return the content hash of a model as it stands in memory, as hex.

    Names, shapes, dtypes and bytes of parameters and persistent buffers count, and the configuration without what
    leaves the outputs alone. Device, file location, wrapping in PEFT, tying and dropout do not.

    Args:
        model: a transformers causal language model, or one wrapped in PEFT.
        adapters: False leaves PEFT adapters out, so that the model with its adapter off and its base agree; True
            counts adapter weights and settings too.
        sample: elements of each tensor that count, evenly spread; None counts all.

    Raises:
        BallastError: if a weight has no content (meta device).
    """
    base, state = base_state(model)
    parts: dict[str, Any] = {
        "class": type(base).__name__.removeprefix("FSDP"),
        "config": stable_config(base.config.to_dict()) if hasattr(base, "config") else {},
        "tensors": _tensor_digests(state, sample),
    }
    if adapters:
        settings, weights = adapter_state(model)
        parts["adapters"] = {"settings": settings, "tensors": _tensor_digests(weights, sample)}
    return content_hash(parts)


def start_fingerprint(model: Model, *, full: bool) -> str | None:
    """Return what tells a model that training starts from, the same on all ranks; None where rank 0 lacks the weights.

    A new adapter leaves the model as it is and is drawn again when a run is resumed, so it does not count; one that
    goes on does.

    Args:
        full: hash every weight, which takes about a second for each gigabyte; else a sample of each tensor, by which
            models that were trained apart differ as well.
    """
    from accelerate.utils import broadcast_object_list

    tensors = [*model.parameters()]
    found: list[str | None] = [None]
    # The parts of a sharded tensor are collected from all ranks; else one rank reads for all.
    sharded = any(hasattr(tensor, "full_tensor") for tensor in tensors)
    if (sharded or int(os.environ.get("RANK", "0")) == 0) and not any(tensor.is_meta for tensor in tensors):
        digest = model_fingerprint(model, adapters=not starts_at_base(model), sample=None if full else SAMPLE)
        found = [f"{'all' if full else 'sample'}:{digest}"]
    broadcast_object_list(found)
    return found[0]


def stable_config(config: Any) -> Any:
    """Return a configuration mapping without the fields that leave a model's outputs in eval mode alone."""
    if isinstance(config, dict):
        return {
            str(name): stable_config(value)
            for name, value in config.items()
            if name not in VOLATILE_CONFIG and not str(name).endswith(VOLATILE_ENDINGS)
        }
    if isinstance(config, (list, tuple)):
        return [stable_config(value) for value in config]
    return config


def _tensor_digests(state: Mapping[str, Tensor], sample: int | None = None) -> dict[str, list[Any]]:
    """Return name → shape, dtype and digest of the bytes; storage that several names share is read once."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in state.items():
        if tensor.device.type == "meta":
            raise BallastError(
                f"weight {name!r} is on the meta device, so it has no content to fingerprint: load the model in full"
            )
        groups.setdefault((_storage(tensor, name), tensor.shape, tensor.stride(), tensor.dtype), []).append(name)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(lambda names: _digest(state[names[0]], sample), groups.values()))
    return {
        name: [list(state[name].shape), str(state[name].dtype).removeprefix("torch."), digest]
        for names, digest in zip(groups.values(), digests, strict=True)
        for name in names
    }


def _storage(tensor: Tensor, name: str) -> Any:
    # Sharded tensors have no address of their own; empty ones share address 0.
    return name if hasattr(tensor, "full_tensor") or not tensor.numel() else (tensor.device, tensor.data_ptr())


def _digest(tensor: Tensor, sample: int | None) -> str:
    import torch

    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    if sample is not None and tensor.numel() > sample:
        flat_step = tensor.numel() // sample
        tensor = tensor.detach().reshape(-1)[::flat_step]
    # As bytes, because numpy has no bfloat16 and a float copy would cost memory.
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()
