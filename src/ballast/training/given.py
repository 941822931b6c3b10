"""What a caller of the trainer may leave out: its arguments, the tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.errors import BallastError
from ballast.training.config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from ballast.protocols import Model


def own_config(model: str | Model, args: TrainingArguments | None) -> TrainingConfig:
    if args is None:
        name: str = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or "model"
        return TrainingConfig(output_dir=f"{name.rstrip('/').split('/')[-1]}-ballast")
    if not isinstance(args, TrainingConfig):
        raise BallastError(
            f"args of type {type(args).__name__} name no objective: use ballast.TrainingConfig, which takes the same "
            "arguments as trl.SFTConfig"
        )
    return args


def tokenizer_of(model: Model, args: TrainingConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    name = model.config._name_or_path
    if not name:
        raise BallastError("the model was not loaded from anywhere, so its tokenizer is unknown: pass processing_class")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
