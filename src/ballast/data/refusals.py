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
            f"{name}: streaming data are not prepared as a whole: pass prepare_stream(read_chunks(data), tokenizer, "
            "options) of ballast.data to the trainer, or load them without streaming=True"
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


def streaming_problem(settings: Mapping[str, Any], *, groups: bool = False) -> tuple[str, str] | None:
    """Return the first setting that does not go with a stream of rows, and why; None where all do.

    Args:
        settings: of the training; those that are absent have their default.
        groups: whether answers are sampled for the rows.
    """
    problems = {
        "groups": (groups, "answers are sampled for prompts that are known, by number; load the rows"),
        "max_steps": (
            settings.get("max_steps", -1) <= 0,
            "a stream has no known end, so neither epochs nor the schedule of the learning rate could be counted; set "
            "training.max_steps",
        ),
        "packing": (
            settings.get("packing") is True,
            "packing needs the lengths of all rows, which a stream does not know; leave it out",
        ),
        "shuffle_dataset": (
            settings.get("shuffle_dataset") is True,
            "a stream does not have all rows at hand; data.shuffle_buffer shuffles among the next ones",
        ),
        "train_sampling_strategy": (
            settings.get("train_sampling_strategy", "random") != "random",
            "no sampler reads a stream, so it would be ignored; data.shuffle_buffer says how far rows are shuffled",
        ),
        "dataloader_num_workers": (
            bool(settings.get("dataloader_num_workers")),
            "what is read in other processes is not counted here, nor named when it fails; set it to 0",
        ),
    }
    return next(((name, why) for name, (is_so, why) in problems.items() if is_so), None)
