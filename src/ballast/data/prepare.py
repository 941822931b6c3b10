"""From raw rows to token ids, labels and digests: TRL's own tokenisation, with every loss of rows counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ballast.data import report, trl, values
from ballast.data.digest import DIGEST_VERSION, row_digest
from ballast.data.formats import Format, check_rows, require_format
from ballast.data.options import PrepareOptions
from ballast.data.refusals import refuse_data, refuse_foreign_ids, refuse_options, refuse_untrainable
from ballast.data.report import PrepareReport
from ballast.data.tokenise import tokenise
from ballast.errors import BallastError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """Prepared rows (``input_ids``, ``labels``, ``digest``, columns asked for) and what became of the raw ones."""

    dataset: Dataset
    report: PrepareReport


def prepare(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    options: PrepareOptions,
    *,
    name: str = "train",
    numbers: Sequence[int] | None = None,
    columns: Sequence[str] = (),
) -> Prepared:
    """Tokenise, label, truncate or split raw rows, and name each by its digest.

    Tokens and labels are those of ``trl.SFTTrainer`` for the same rows and options. Rows with no trained token are
    dropped and counted. Packing comes later (``pack``), after cached columns are attached. ``tokenizer`` is left alone.
    ``numbers`` says what rows are called in errors and notes; None counts them from 1. ``columns`` are kept, each a
    list of floats in step with the labels, NaN where nothing is trained (`ballast.data.values`).

    Raises BallastError for rows or options that would train on something else than it looks like.
    """
    refuse_options(options)
    refuse_data(dataset, name)
    values.check_columns(columns, dataset, name)
    raw = _checked(dataset, tokenizer, options, name, numbers or range(1, len(dataset) + 1))
    return _prepare(raw, options, name, dataset.with_format(None), columns)


def check_data(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    options: PrepareOptions,
    *,
    name: str = "train",
    columns: Sequence[str] = (),
) -> Dataset:
    """Raise what `prepare` would say of options, tokenizer, columns and the first row; return the rows as they stand.

    Reading a row of these decodes no picture or sound.
    """
    from ballast.data.exact import as_stored

    refuse_options(options)
    refuse_data(dataset, name)
    values.check_columns(columns, dataset, name)
    _checked(dataset.select([0]), tokenizer, options, name, [1])
    return as_stored(dataset)


@dataclass(frozen=True)
class _Raw:
    """Rows that can be prepared, and how."""

    dataset: Dataset
    layout: Format
    tokenizer: PreTrainedTokenizerBase
    rules: trl.LossRules
    numbers: Sequence[int]


def _checked(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, options: PrepareOptions, name: str, numbers: Sequence[int]
) -> _Raw:
    from ballast.data.exact import as_stored

    dataset = dataset.with_format(None)
    layout = require_format(dataset.column_names, options.dataset_text_field, name)
    dataset = as_stored(dataset.select_columns(layout.present(dataset.column_names)))
    # The others are checked as they are tokenised.
    first = dataset if layout.name == "tokenised" else dataset.select([0])
    check_rows(first, layout, lambda index: f"{name}: row {numbers[index]}")
    ready = trl.training_tokenizer(tokenizer, options)
    if layout.name == "tokenised":
        refuse_foreign_ids(dataset, ready, name)
    refuse_untrainable(layout, dataset[0], ready, options)
    return _Raw(dataset, layout, ready, trl.trl_loss_rules(dataset[0], ready, options), numbers)


def _prepare(raw: _Raw, options: PrepareOptions, name: str, source: Dataset, columns: Sequence[str]) -> Prepared:
    dataset, tokenizer, rules = raw.dataset, raw.tokenizer, raw.rules
    rows = dataset if raw.layout.name == "tokenised" else _tokenised(raw, options, name)
    if columns and values.PLACE not in rows.column_names:
        rows = rows.add_column(values.PLACE, list(range(len(rows))))
    whole = trl.trl_prepare(rows, tokenizer, options, rules, name=name)
    if columns:
        whole = values.lay_out(whole, source, columns, raw.numbers, name)
    lengths = _lengths(whole)
    split, over_long = _cuts(lengths, options)
    cut = trl.trl_prepare(whole, tokenizer, options, rules, max_length=options.limit) if over_long else whole
    kept, tokens, trained = _finish(cut, split, options, name, columns)
    if not len(kept):
        raise BallastError(_nothing_left(whole, options, name))
    pieces = int(np.maximum(1, np.ceil(lengths / split)).sum()) if split else len(whole)
    told = whole.column_names
    left_out, lines = report.left_out(whole["left_out"] if "left_out" in told else ())
    made = PrepareReport(
        name=name,
        rows_in=len(dataset),
        rows_out=len(kept),
        dropped_no_trained_token=len(dataset) - len(whole) + pieces - len(kept),
        truncated=over_long,
        added_by_split=pieces - len(whole),
        prompt_not_prefix=len(whole) - sum(whole["prompt_is_prefix"]) if "prompt_is_prefix" in told else 0,
        tokens=tokens,
        trained_tokens=trained,
        notes=(
            *rules.notes,
            *_context_note(over_long > 0 or len(whole) < pieces, options),
            *report.dropped_nulls(dataset),
            *lines,
            *report.by_role(whole["by_role"] if "by_role" in told else ()),
        ),
        left_out=left_out,
    )
    return Prepared(kept, made)


def _tokenised(raw: _Raw, options: PrepareOptions, name: str) -> Dataset:
    try:
        made = tokenise(raw.dataset, raw.layout, raw.tokenizer, options, raw.rules, name=name, numbers=raw.numbers)
    except BallastError as error:
        raise BallastError(f"{name}: {error}") from error
    if not len(made):
        raise BallastError(f"{name}: assistant_only_loss=True, but no row has a message of the assistant")
    return made


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


def _finish(
    rows: Dataset, split: int | None, options: PrepareOptions, name: str, columns: Sequence[str]
) -> tuple[Dataset, int, int]:
    """Split, drop rows without a trained token, and add digests; returns the rows and their tokens, trained tokens."""
    from datasets import Features, Value

    num_proc, from_end = options.num_proc, options.truncation_mode == "keep_end"

    features = Features(
        {
            "input_ids": rows.features["input_ids"],
            "labels": rows.features["labels"],
            "digest": Value("string"),
            **{column: rows.features[column] for column in columns},
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
        fn_kwargs={"split": split, "version": DIGEST_VERSION, "columns": tuple(columns), "from_end": from_end},
        num_proc=num_proc if len(rows) >= 1000 else None,
        desc=f"Naming {name} rows",
    )
    if not len(kept):
        return kept, 0, 0
    named = ["input_ids", "labels", "digest", *columns]
    return kept.select_columns(named), sum(kept["_tokens"]), sum(kept["_trained"])


def _finish_batch(
    batch: dict[str, list[Any]], split: int | None, version: str, columns: tuple[str, ...], from_end: bool
) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {"input_ids": [], "labels": [], "digest": [], "_tokens": [], "_trained": []}
    out |= {column: [] for column in columns}
    rows = zip(*(batch[column] for column in ("input_ids", "labels", *columns)), strict=True)
    for ids, labels, *given in rows:
        # TRL has cut ids and labels alone.
        cut = [values.cut(one, len(ids), from_end) for one in given]
        step = split or len(ids) or 1
        for start in range(0, len(ids), step):
            piece, piece_labels = ids[start : start + step], labels[start : start + step]
            # The first label is not counted: nothing predicts it.
            trained = sum(label != -100 for label in piece_labels[1:])
            if trained:
                made = (piece, piece_labels, row_digest(piece, piece_labels), len(piece), trained)
                pieces = (one[start : start + step] for one in cut)
                for column, value in zip(out.values(), (*made, *pieces), strict=True):
                    column.append(value)
    return out


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
