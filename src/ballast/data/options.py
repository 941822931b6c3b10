"""What decides how rows become tokens, labels and packs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class PrepareOptions:
    """What decides tokens, labels and packing; names and defaults are those of ``trl.SFTConfig``.

    `context` is ours: the positions of the model, None being without bound. Rows end there as they do at `max_length`.
    """

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
    context: int | None = None

    @property
    def limit(self) -> int | None:
        """The tokens that rows are cut to: `max_length`, but never more than the model's context."""
        return min(filter(None, (self.max_length, self.context)), default=None)

    @classmethod
    def from_training_args(
        cls, args: Any, *, packing: bool | None = None, context: int | None = None
    ) -> PrepareOptions:
        """Read the options from a ``trl.SFTConfig``; ``packing`` overrides its own (evaluation may pack otherwise)."""
        names = {option.name: option.name for option in fields(cls)} | {"num_proc": "dataset_num_proc"}
        read = {ours: getattr(args, theirs) for ours, theirs in names.items() if ours != "context"}
        return cls(**{**read, "context": context, **({} if packing is None else {"packing": packing})})
