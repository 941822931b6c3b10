"""From raw rows to token ids, labels and digests: TRL's own tokenisation, with every loss of rows counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ballast.data import trl
from ballast.data.digest import DIGEST_VERSION, row_digest
from ballast.data.formats import check_rows, require_format
from ballast.data.options import PrepareOptions
from ballast.data.refusals import refuse_data, refuse_foreign_ids, refuse_options, refuse_untrainable
from ballast.errors import BallastError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PrepareReport:
    """What became of the rows. Counts are of rows, ``tokens`` and ``trained_tokens`` of tokens kept."""

    name: str
    rows_in: int
    rows_out: int
    dropped_no_trained_token: int = 0
    truncated: int = 0
    added_by_split: int = 0
    prompt_not_prefix: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    notes: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """The report as lines to print; only what happened is named."""
        lines = [
            f"{self.name}: {self.rows_in:,} rows in, {self.rows_out:,} out; "
            f"{self.trained_tokens:,} of {self.tokens:,} tokens trained"
        ]
        told = (
            (self.truncated, "truncated to max_length"),
            (self.added_by_split, "more rows from splitting at max_length"),
            (self.dropped_no_trained_token, "dropped: no trained token"),
            (
                self.prompt_not_prefix,
                "whose prompt is no prefix of prompt+completion: training starts where they diverge",
            ),
        )
        lines += [f"{self.name}: {count:,} {what}" for count, what in told if count]
        return lines + [f"{self.name}: {note}" for note in self.notes]


@dataclass(frozen=True)
class Prepared:
    """Prepared rows (``input_ids``, ``labels``, ``digest``) and what became of the raw ones."""

    dataset: Dataset
    report: PrepareReport


def prepare(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, options: PrepareOptions, *, name: str = "train"
) -> Prepared:
    """Tokenise, label, truncate or split raw rows, and name each by its digest.

    Tokens and labels are those of ``trl.SFTTrainer`` for the same rows and options. Rows with no trained token are
    dropped and counted. Packing comes later (``pack``), after cached columns are attached. ``tokenizer`` is left alone.

    Raises BallastError for rows or options that would train on something else than it looks like.
    """
    refuse_options(options)
    refuse_data(dataset, name)
    dataset = dataset.with_format(None)
    layout = require_format(dataset.column_names, options.dataset_text_field, name)
    dataset = dataset.select_columns(layout.present(dataset.column_names))
    check_rows(dataset, layout, lambda index: f"{name}: row {index + 1}")
    ready = trl.training_tokenizer(tokenizer, options)
    if layout.name == "tokenised":
        refuse_foreign_ids(dataset, ready, name)
    refuse_untrainable(layout, dataset[0], ready, options)
    rules = trl.trl_loss_rules(dataset[0], ready, options)
    return _prepare(dataset, ready, options, rules, name)


def _prepare(dataset: Dataset, tokenizer: Any, options: PrepareOptions, rules: trl.LossRules, name: str) -> Prepared:
    rows_in = len(dataset)
    dataset = _with_assistant(dataset, options)
    whole = _tokenize(dataset, tokenizer, options, rules, name) if len(dataset) else dataset
    if not len(whole):
        raise BallastError(f"{name}: assistant_only_loss=True, but no row has a message of the assistant")
    lengths = _lengths(whole)
    split, over_long = _cuts(lengths, options)
    rows = trl.trl_prepare(whole, tokenizer, options, rules, max_length=options.limit) if over_long else whole
    kept, tokens, trained = _finish(rows, split, options.num_proc, name)
    if not len(kept):
        raise BallastError(_nothing_left(whole, options, name))
    pieces = int(np.maximum(1, np.ceil(lengths / split)).sum()) if split else len(whole)
    report = PrepareReport(
        name=name,
        rows_in=rows_in,
        rows_out=len(kept),
        dropped_no_trained_token=rows_in - len(whole) + pieces - len(kept),
        truncated=over_long,
        added_by_split=pieces - len(whole),
        prompt_not_prefix=_prompts_not_prefix(whole, tokenizer, rules, options),
        tokens=tokens,
        trained_tokens=trained,
        notes=rules.notes + _context_note(over_long > 0 or len(whole) < pieces, options),
    )
    return Prepared(kept, report)


def _with_assistant(dataset: Dataset, options: PrepareOptions) -> Dataset:
    """Leave out rows without a message of the assistant, which stop TRL's assistant masks altogether."""
    if not options.assistant_only_loss:
        return dataset
    keep = [index for index, row in enumerate(dataset) if _speaks(row)]
    return dataset if len(keep) == len(dataset) else dataset.select(keep)


def _speaks(row: dict[str, Any]) -> bool:
    columns = (row.get(column) or () for column in ("prompt", "completion", "messages", "conversations"))
    return any("assistant" in (turn.get("role"), turn.get("from")) for turns in columns for turn in turns)


def _tokenize(dataset: Dataset, tokenizer: Any, options: PrepareOptions, rules: trl.LossRules, name: str) -> Dataset:
    try:
        return trl.trl_prepare(dataset, tokenizer, options, rules, name=name)
    except BallastError:
        raise
    except Exception as error:  # a template may raise anything; find the row it raised on
        row = _first_failing(dataset, tokenizer, options, rules)
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, RuntimeError) and "no assistant tokens" in reason:
            reason = (
                "assistant_only_loss=True, but the chat template marks no token of its assistant messages; put "
                "{% generation %}...{% endgeneration %} round the assistant's text, or remove the row"
            )
        raise BallastError(f"{name}: row {row + 1}: cannot be tokenised: {reason}") from error


def _first_failing(dataset: Dataset, tokenizer: Any, options: PrepareOptions, rules: trl.LossRules) -> int:
    """Index of the first row that TRL cannot tokenise, by bisection over beginnings of the data."""
    from datasets import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bars()
    works, fails = 0, len(dataset)
    try:
        while fails - works > 1:
            middle = (works + fails) // 2
            try:
                trl.trl_prepare(dataset.select(range(middle)), tokenizer, options, rules)
                works = middle
            except Exception:
                fails = middle
    finally:
        if shown:
            enable_progress_bars()
    return works


def _lengths(dataset: Dataset) -> np.ndarray:
    import pyarrow.compute as pc

    column = dataset.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"]
    return pc.list_value_length(column).to_numpy()


def _cuts(lengths: np.ndarray, options: PrepareOptions) -> tuple[int | None, int]:
    """Length of the fragments that long rows are split into, or None; and how many rows are truncated instead.

    "bfd" truncates as plain rows are, "bfd_split" splits, "wrapped" cuts across rows later and so does neither here.
    """
    limit = options.limit
    if limit is not None and options.packing and options.packing_strategy != "bfd":
        return (limit if options.packing_strategy == "bfd_split" else None), 0
    return None, 0 if limit is None else int((lengths > limit).sum())


def _finish(rows: Dataset, split: int | None, num_proc: int | None, name: str) -> tuple[Dataset, int, int]:
    """Split, drop rows without a trained token, and add digests; returns the rows and their tokens, trained tokens."""
    from datasets import Features, Value

    features = Features(
        {
            "input_ids": rows.features["input_ids"],
            "labels": rows.features["labels"],
            "digest": Value("string"),
            "_tokens": Value("int64"),
            "_trained": Value("int64"),
        }
    )
    kept = rows.map(
        _finish_batch,
        batched=True,
        remove_columns=rows.column_names,
        features=features,
        # The version is part of the cached result's name: a new digest must not find rows named by an old one.
        fn_kwargs={"split": split, "version": DIGEST_VERSION},
        num_proc=num_proc if len(rows) >= 1000 else None,
        desc=f"Naming {name} rows",
    )
    if not len(kept):
        return kept, 0, 0
    return kept.select_columns(["input_ids", "labels", "digest"]), sum(kept["_tokens"]), sum(kept["_trained"])


def _finish_batch(batch: dict[str, list], split: int | None, version: str) -> dict[str, list]:
    out: dict[str, list] = {"input_ids": [], "labels": [], "digest": [], "_tokens": [], "_trained": []}
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        step = split or len(ids) or 1
        for start in range(0, len(ids), step):
            piece, piece_labels = ids[start : start + step], labels[start : start + step]
            # The first label is not counted: nothing predicts it.
            trained = sum(label != -100 for label in piece_labels[1:])
            if trained:
                values = (piece, piece_labels, row_digest(piece, piece_labels), len(piece), trained)
                for column, value in zip(out.values(), values, strict=True):
                    column.append(value)
    return out


def _prompts_not_prefix(whole: Dataset, tokenizer: Any, rules: trl.LossRules, options: PrepareOptions) -> int:
    """How many rows' tokenised prompts are no prefix of the whole row: TRL then trains from where they diverge."""
    if "prompt" not in whole.column_names:
        return 0
    flags = whole.map(
        trl.prompt_is_prefix,
        fn_kwargs={"tokenizer": tokenizer, "chat_template": rules.chat_template},
        remove_columns=whole.column_names,
        num_proc=options.num_proc if len(whole) >= 1000 else None,
        desc="Checking prompts",
    )
    return len(flags) - sum(flags["prompt_is_prefix"])


def _context_note(cut: bool, options: PrepareOptions) -> tuple[str, ...]:
    """Say once that it was the model and not `max_length` that rows were cut by."""
    if not cut or options.limit == options.max_length:
        return ()
    asked = "without max_length" if options.max_length is None else f"for max_length={options.max_length}"
    return (f"rows are cut at {options.context} tokens {asked}: the model's context ends there",)


def _nothing_left(whole: Dataset, options: PrepareOptions, name: str) -> str:
    """Why no row has a trained token."""
    first_trained = [
        next((t for t, label in enumerate(labels) if t and label != -100), None) for labels in whole["labels"]
    ]
    reached = [t for t in first_trained if t is not None]
    if reached and options.limit is not None:
        context = options.limit == options.context
        end = f"the model's context of {options.limit}" if context else f"max_length={options.limit}"
        return (
            f"{name}: all {len(whole):,} rows lose their trained tokens to {end}: the earliest comes after "
            f"{min(reached)} tokens of prompt; {'' if context else 'raise max_length or '}shorten the prompts"
        )
    return f"{name}: none of the {len(whole):,} rows has a trained token; the labels are all -100"
