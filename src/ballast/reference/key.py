"""What a cache of reference statistics depends on beside the rows themselves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ballast.stats import REFERENCE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ballast.protocols import Model, Tokenizer

SCORER_VERSION = 1
"""Raised when the scorer's numbers change for the same model and rows, so that older caches stop matching."""

WHAT_DIFFERS = {
    "model": "it was scored by another model",
    "dtype": "it was scored in another compute dtype",
    "tokenizer": "it was scored with another tokenizer or chat template",
    "fields": "it holds other fields",
    "scorer": "it was written by another version of the scorer",
}


@dataclass(frozen=True)
class CacheKey:
    """What the cached values depend on beside a row's token ids and labels.

    Attributes:
        model: `model_fingerprint` of the reference.
        dtype: the dtype that the reference computes in, such as ``"bfloat16"``; autocast's, where it is on.
        tokenizer: `tokenizer_fingerprint`, chat template included.
        fields: names of the cached statistics.
        scorer: version of the scorer.
    """

    model: str
    dtype: str
    tokenizer: str
    fields: tuple[str, ...] = REFERENCE_FIELDS
    scorer: int = SCORER_VERSION

    @classmethod
    def of(
        cls,
        model: Model,
        tokenizer: Tokenizer,
        *,
        autocast: torch.dtype | None = None,
        adapters: bool | None = None,
    ) -> CacheKey:
        """Return the key of a model as it stands.

        Args:
            model: the reference, or the model in training before its first step.
            tokenizer: what prepared the rows.
            autocast: the dtype of the autocast that the reference runs under, if any; else the weights' own counts.
            adapters: whether PEFT adapters are part of the reference; None leaves out those that start at zero.
        """
        from ballast.reference.adapters import refuse_prompt_learning, starts_at_base
        from ballast.reference.fingerprint import model_fingerprint, tokenizer_fingerprint

        refuse_prompt_learning(model)
        with_adapters = not starts_at_base(model) if adapters is None else adapters
        dtype = autocast if autocast is not None else weights_dtype(model)
        return cls(
            model=model_fingerprint(model, adapters=with_adapters),
            dtype=str(dtype).removeprefix("torch."),
            tokenizer=tokenizer_fingerprint(tokenizer),
        )

    @property
    def hex(self) -> str:
        """A hash of all components, the same on every machine."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the components under readable names, as the manifest holds them."""
        return {**asdict(self), "fields": list(self.fields)}

    @classmethod
    def from_dict(cls, components: Mapping[str, Any]) -> CacheKey:
        """Return the key that a manifest describes.

        Raises:
            KeyError: if a component is missing.
        """
        values = {field.name: components[field.name] for field in fields(cls)}
        return cls(**{**values, "fields": tuple(values["fields"])})

    def differences(self, other: CacheKey) -> list[str]:
        """Return one phrase per component that differs, ``other`` being what a cache was written with."""
        return [
            f"{phrase} ({name} {_short(getattr(other, name))} ≠ {_short(getattr(self, name))})"
            for name, phrase in WHAT_DIFFERS.items()
            if getattr(self, name) != getattr(other, name)
        ]


def weights_dtype(model: Model) -> torch.dtype:
    """Return the dtype of the model's floating-point weights, as transformers reports it."""
    from ballast.reference.adapters import base_state

    base, state = base_state(model)
    dtype = getattr(base, "dtype", None)
    return dtype if dtype is not None else next(t.dtype for t in state.values() if t.is_floating_point())


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(value)
    text = str(value)
    return f"{text[:8]}…" if len(text) > 16 else text
