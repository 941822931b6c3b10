"""From raw rows to token ids, labels and digests: TRL's own tokenisation, with every loss of rows counted."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ballast.data import cache, trl, values
from ballast.data.batches import BATCH, Preparer, preparer
from ballast.data.formats import Format, check_rows, require_format
from ballast.data.options import PrepareOptions
from ballast.data.refusals import refuse_data, refuse_foreign_ids, refuse_options, refuse_untrainable
from ballast.data.report import Counts, PrepareReport, dropped_nulls
from ballast.errors import BallastError

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


COUNTS = "counts"
"""Column with the counts of a batch, while rows are prepared."""


@dataclass(frozen=True)
class Prepared:
    """Prepared rows (``input_ids``, ``labels``, ``digest``, columns asked for) and what became of the raw ones.

    Attributes:
        options: what they were prepared with.
        columns: columns of numbers that were kept.
        cached: the folder of the cache that the rows were taken from, None where they were prepared anew.
    """

    dataset: Dataset
    report: PrepareReport
    options: PrepareOptions
    columns: tuple[str, ...] = ()
    cached: Path | None = None


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
    list of floats in step with the labels, NaN where nothing is trained (`ballast.data.values`). Large sets are kept on
    disk, and taken from there when they are prepared again (`ballast.data.cache`).

    Raises BallastError for rows or options that would train on something else than it looks like.
    """
    refuse_options(options)
    refuse_data(dataset, name)
    values.check_columns(columns, dataset, name)
    raw = _checked(dataset, tokenizer, options, name, numbers or range(1, len(dataset) + 1))
    rows = _with_columns(raw.dataset, dataset.with_format(None), columns)
    how = preparer(raw.layout, raw.dataset.column_names, raw.tokenizer, options, raw.rules, columns)
    make = partial(_made, rows, how, raw.numbers, options.num_proc, name)
    place = None
    if numbers is None and len(rows) >= cache.LEAST_ROWS:
        made, place = cache.table(partial(cache.key, rows, raw.tokenizer, options, how), make)
    else:
        made = make(None)
    kept, counts = _counted(made)
    if not len(kept):
        raise BallastError(nothing_left(counts, options, name))
    notes = (*raw.rules.notes, *context_note(counts, options))
    report = counts.report(name, notes, dropped_nulls(raw.dataset))
    return Prepared(kept, report, options, tuple(columns), place)


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


def _with_columns(rows: Dataset, source: Dataset, columns: Sequence[str]) -> Dataset:
    """Return rows with further columns of their source, as these stand there."""
    further = [column for column in columns if column not in rows.column_names]
    if not further:
        return rows
    from datasets import concatenate_datasets

    from ballast.data.exact import as_stored

    # Joined side by side, columns forget how their JSON is read.
    return as_stored(concatenate_datasets([rows, source.select_columns(further)], axis=1))


def _made(
    rows: Dataset, how: Preparer, numbers: Sequence[int], num_proc: int | None, name: str, file: str | None
) -> Dataset:
    """Return prepared rows, with `COUNTS` of each batch in the first of its rows; in memory, or in a file."""
    from datasets import Features, List, Value

    def number(column: str, otherwise: str) -> Any:
        return rows.features[column] if column in how.tokens else List(Value(otherwise))

    features = {"input_ids": number("input_ids", "int32"), "labels": number("labels", "int64")}
    features |= {"digest": Value("string"), **{column: List(Value("float32")) for column in how.columns}}
    try:
        return rows.map(
            _Batch(how, numbers),
            batched=True,
            batch_size=BATCH,
            with_indices=True,
            remove_columns=rows.column_names,
            features=Features({**features, COUNTS: Value("string")}),
            num_proc=num_proc if len(rows) >= cache.LEAST_ROWS else None,
            # Ours is the cache: a hash of a tokenizer by its objects is slow, and seldom the same.
            new_fingerprint=uuid.uuid4().hex[:16],
            load_from_cache_file=False,
            cache_file_name=file,
            desc=f"Preparing {name} rows",
        )
    except BallastError as error:
        raise BallastError(f"{name}: {error}") from error


@dataclass(frozen=True)
class _Batch:
    """What `Dataset.map` calls with columns of rows and their places."""

    how: Preparer
    numbers: Sequence[int]

    def __call__(self, batch: Mapping[str, list[Any]], places: Sequence[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        found = self.how(rows, [f"row {self.numbers[place]}" for place in places])
        # Where no row is left, one without tokens carries the counts.
        lists = ("input_ids", "labels", *self.how.columns)
        made = found.rows or [{"digest": None, **dict.fromkeys(lists, ())}]
        out: dict[str, list[Any]] = {name: [row[name] for row in made] for name in (*lists, "digest")}
        return {**out, COUNTS: [found.counts.to_json(), *[None] * (len(made) - 1)]}


def _counted(made: Dataset) -> tuple[Dataset, Counts]:
    """Return prepared rows without the counts among them, and the counts of all."""
    import pyarrow.compute as pc

    counts = Counts()
    table = made.select_columns(["digest", COUNTS]).with_format("arrow")[:]
    for text in table[COUNTS].drop_null().to_pylist():
        counts.add(Counts.from_json(text))
    kept = made.remove_columns(COUNTS)
    if counts.kept < len(made):
        kept = kept.select(pc.indices_nonzero(table["digest"].is_valid()).to_pylist())
    return kept, counts


def context_note(counts: Counts, options: PrepareOptions) -> tuple[str, ...]:
    """Return a line that says that it was the model and not `max_length` that rows were cut by; else none."""
    if not (counts.truncated or counts.whole < counts.pieces) or options.limit == options.max_length:
        return ()
    asked = "without max_length" if options.max_length is None else f"for max_length={options.max_length}"
    return (f"rows are cut at {options.context} tokens {asked}: the model's context ends there",)


def nothing_left(counts: Counts, options: PrepareOptions, name: str) -> str:
    """Return why no row has a trained token."""
    if options.assistant_only_loss and not counts.whole:
        return f"{name}: assistant_only_loss=True, but no row has a message of the assistant"
    if counts.earliest is not None and options.limit is not None:
        context = options.limit == options.context
        end = f"the model's context of {options.limit}" if context else f"max_length={options.limit}"
        return (
            f"{name}: all {counts.whole:,} rows lose their trained tokens to {end}: the earliest comes after "
            f"{counts.earliest} tokens of prompt; {'' if context else 'raise max_length or '}shorten the prompts"
        )
    return f"{name}: none of the {counts.whole:,} rows has a trained token; the labels are all -100"
