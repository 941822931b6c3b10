"""What is refused before a row is tokenised: options and data that would train on something else than they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ballast.data import trl
from ballast.data.formats import Format
from ballast.errors import BallastError, suggest

if TYPE_CHECKING:
    from ballast.data.options import PrepareOptions

_CHOICES = {"truncation_mode": ("keep_start", "keep_end"), "packing_strategy": ("bfd", "bfd_split", "wrapped")}


def refuse_options(options: PrepareOptions) -> None:
    """Raise BallastError for options that contradict each other or that TRL would quietly ignore."""
    for option, choices in _CHOICES.items():
        value = getattr(options, option)
        if value not in choices:
            raise BallastError(f"{option}={value!r} is unknown{suggest(str(value), choices)}")
    if options.max_length is not None and options.max_length < 2:
        raise BallastError(f"max_length={options.max_length} leaves no token to predict; give at least 2, or none")
    if options.packing and options.max_length is None:
        raise BallastError("packing=True needs max_length: it is the length of a packed row")
    if options.packing and options.truncation_mode == "keep_end":
        raise BallastError("truncation_mode='keep_end' is ignored by packing, which keeps the start; use 'keep_start'")


def refuse_data(dataset: Any, name: str) -> None:
    """Raise BallastError for data that is not a plain, finite table of text or tokens."""
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(dataset, IterableDataset | IterableDatasetDict):
        raise BallastError(
            f"{name}: streaming data is not supported: rows are counted, named and scored before training; load it "
            "without streaming=True"
        )
    if isinstance(dataset, DatasetDict):
        raise BallastError(f"{name}: this is a set of splits ({', '.join(dataset)}); choose one")
    if not isinstance(dataset, Dataset):
        raise BallastError(f"{name}: a datasets.Dataset is needed, not {type(dataset).__name__}")
    if dataset.format["type"] == "custom":
        raise BallastError(
            f"{name}: a data set with with_transform() is not supported: its rows may change at each read; "
            "apply the transform with Dataset.map() first"
        )
    vision = [column for column in ("image", "images") if column in dataset.column_names]
    if vision:
        raise BallastError(f"{name}: vision rows are not supported (column {vision[0]!r})")
    if not len(dataset):
        raise BallastError(f"{name}: no rows")


def refuse_foreign_ids(dataset: Any, tokenizer: Any, name: str) -> None:
    """Raise BallastError when rows that came tokenised hold ids that the tokenizer does not have."""
    import pyarrow.compute as pc

    table = dataset.with_format("arrow")[:]
    for column in ("input_ids", "labels"):
        largest = pc.max(pc.list_flatten(table[column])).as_py() if column in table.column_names else None
        if largest is not None and largest >= len(tokenizer):
            raise BallastError(
                f"{name}: {column!r} holds token id {largest}, but the tokenizer has {len(tokenizer)} tokens; were the "
                "rows made with another tokenizer?"
            )


def refuse_untrainable(layout: Format, first: Mapping[str, Any], tokenizer: Any, options: PrepareOptions) -> None:
    """Raise BallastError where tokenizer, format and options do not go together.

    ``first`` is the first row; ``tokenizer`` has the options' tokens and template already.
    """
    tokenised = layout.name == "tokenised"
    conversational = layout.name == "conversations" or (not tokenised and trl.is_conversational(first))
    if conversational and not tokenizer.chat_template:
        raise BallastError(
            "the rows are chat messages, but the tokenizer has no chat template; give chat_template_path=your.jinja"
        )
    if not conversational and not tokenised and tokenizer.eos_token is None:
        raise BallastError("the tokenizer has no eos token to end plain rows with; set eos_token to one of its tokens")
    if tokenizer.pad_token is None:
        raise BallastError("the tokenizer has neither pad nor eos token; set pad_token to one of its tokens")
    if options.completion_only_loss and layout.name not in ("prompt-completion", "tokenised"):
        raise BallastError(
            f"completion_only_loss=True needs prompt and completion, but the rows have {layout.required[0]!r}: every "
            "token would be trained; remove it, or use assistant_only_loss=True with messages"
        )
