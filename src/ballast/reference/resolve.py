"""From what a user writes under `reference` to the reference itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError, suggest
from ballast.files import expanded
from ballast.head import unwrapped
from ballast.reference.adapters import is_peft, refuse_prompt_learning, starts_at_base, trainable_base_names
from ballast.reference.cache import ReferenceCache
from ballast.reference.providers import (
    AdapterOffReference,
    LiveReference,
    ModelReference,
    check_vocabulary,
    frozen_copy,
)
from ballast.sharding import loaded_whole

if TYPE_CHECKING:
    from ballast.protocols import Model
    from ballast.reference.key import CacheKey

    ReferenceSpec = str | Path | Mapping[str, Any] | Model | LiveReference | ReferenceCache | None
    """What a user may write for a reference; see `resolve_reference`."""


def resolve_reference(
    spec: ReferenceSpec, model: Model, *, key: CacheKey | None = None, vocab_size: int | None = None
) -> LiveReference | ReferenceCache:
    """Return the reference that a specification names, the model being as it starts.

    Args:
        spec: ``"auto"`` (or None): the adapter switched off where it starts at zero, else a frozen copy; ``"model"``: a
            frozen copy; ``"adapter-off"``; a path or ``{"cache": path}``: a cache; ``{"model": path}``: a model loaded
            from there; both: a cache of that model; or a model, a `LiveReference` or a `ReferenceCache`.
        model: the model in training, before a trainer has patched it and before its first step.
        key: what a cache must have been written with; None accepts any.
        vocab_size: number of tokens that the tokenizer has.

    Raises:
        BallastError: if the reference does not exist, does not fit the model, or would move along with it.
    """
    refuse_prompt_learning(model)
    reference = _make(spec, model, key)
    if isinstance(reference, ReferenceCache):
        return reference
    if isinstance(reference, ModelReference):
        _check_apart(model, reference)
    check_vocabulary(model, reference, vocab_size)
    return reference


def _make(spec: ReferenceSpec, model: Model, key: CacheKey | None) -> LiveReference | ReferenceCache:
    if isinstance(spec, LiveReference):
        return spec
    if isinstance(spec, ReferenceCache):
        return ReferenceCache.open(spec.path, key, verify=False) if key is not None else spec
    if spec is None or (isinstance(spec, str) and spec in BY_NAME):
        return BY_NAME[spec or "auto"](model)
    if isinstance(spec, Mapping):
        return _from_mapping(spec, model, key)
    if isinstance(spec, (str, Path)):
        return _from_path(spec, key)
    if hasattr(spec, "get_output_embeddings"):
        _check_same_object(spec, model)
        return ModelReference(spec)
    raise BallastError(f"reference of type {type(spec).__name__}: give a name, the path of a cache, or a model")


def _auto(model: Model) -> LiveReference:
    if is_peft(model) and starts_at_base(model) and not trainable_base_names(model):
        return AdapterOffReference(model)
    return frozen_copy(model)


BY_NAME: dict[str, Callable[[Model], LiveReference]] = {
    "auto": _auto,
    "model": frozen_copy,
    "adapter-off": AdapterOffReference,
}


def _from_path(spec: str | Path, key: CacheKey | None) -> ReferenceCache:
    if not Path(expanded(str(spec))).exists():
        raise BallastError(f"reference {str(spec)!r} is neither a folder nor a name{suggest(str(spec), [*BY_NAME])}")
    return ReferenceCache.open(spec, key)


def _from_mapping(spec: Mapping[str, Any], model: Model, key: CacheKey | None) -> LiveReference | ReferenceCache:
    if set(spec) == {"cache"}:
        return ReferenceCache.open(spec["cache"], key)
    if set(spec) == {"cache", "model"}:
        return ReferenceCache.open(spec["cache"], None if key is None else _key_of(spec["model"], model, key))
    if set(spec) == {"model"}:
        return ModelReference(_load(spec["model"], model))
    raise BallastError(
        f"reference {dict(spec)!r}: give {{cache: path}}, {{model: path}}, or both for a cache of that model"
    )


def _key_of(path: str | Path, model: Model, key: CacheKey) -> CacheKey:
    """Return the key of a cache that another model has filled, which is loaded to be known by its content."""
    from ballast.reference.fingerprint import model_fingerprint

    teacher = _load(path, model)
    check_vocabulary(model, ModelReference(teacher))
    return replace(key, model=model_fingerprint(teacher, adapters=not starts_at_base(teacher)))


def _load(path: str | Path, model: Model) -> Model:
    from transformers import AutoModelForCausalLM

    causal = unwrapped(model)
    # Loaded as the model itself was.
    options = {
        "dtype": model.dtype,
        "attn_implementation": causal.config._attn_implementation,
        "trust_remote_code": type(causal).__module__.startswith("transformers_modules."),
        "use_safetensors": True,
    }
    try:
        with loaded_whole():
            loaded: Model = AutoModelForCausalLM.from_pretrained(expanded(str(path)), **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise BallastError(f"reference model {str(path)!r} cannot be loaded: {first}") from None
    return loaded.to(model.device)


def _check_same_object(reference: Model, model: Model) -> None:
    ours = {id(weight) for weight in model.parameters()}
    if any(id(weight) in ours for weight in reference.parameters()):
        raise BallastError(
            "the reference shares weights with the model in training: it would move with it, or freezing it would stop "
            "the training; use reference 'model', which makes a frozen copy"
        )


def _check_apart(model: Model, reference: ModelReference) -> None:
    weight = next(model.parameters())
    other = next(reference.model.parameters())
    if other.device != weight.device:
        reference.model.to(weight.device)
