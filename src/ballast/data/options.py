"""What decides how rows become tokens, labels and packs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class PrepareOptions:
    """What decides tokens, labels and packing; names and defaults are those of ``trl.SFTConfig``."""

    max_length: int | None = 1024
    truncation_mode: str = "keep_start"
    packing: bool = False
    packing_strategy: str = "bfd"
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    dataset_text_field: str = "text"
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template_path: str | None = None
    num_proc: int | None = None
    shuffle_dataset: bool = False
    seed: int = 42

    @classmethod
    def from_training_args(cls, args: Any, *, packing: bool | None = None) -> PrepareOptions:
        """Read the options from a ``trl.SFTConfig``; ``packing`` overrides its own (evaluation may pack otherwise)."""
        names = {option.name: option.name for option in fields(cls)} | {"num_proc": "dataset_num_proc"}
        options = cls(**{ours: getattr(args, theirs) for ours, theirs in names.items()})
        return options if packing is None else replace(options, packing=packing)
