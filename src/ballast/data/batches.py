"""A batch of raw rows becomes prepared ones, each on its own: the same for a table as for a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ballast.data import trl, values
from ballast.data.digest import row_digest
from ballast.data.report import Counts
from ballast.data.tokenise import Tokenised, Tokeniser, tokeniser
from ballast.errors import BallastError

if TYPE_CHECKING:
    from ballast.data.formats import Format
    from ballast.data.options import PrepareOptions
    from ballast.data.render import Row

BATCH = 256
"""Rows that are tokenised at once."""


@dataclass(frozen=True)
class Made:
    """Prepared rows, the place of the raw row that each was, and what became of all raw ones."""

    rows: list[dict[str, Any]]
    places: list[int]
    counts: Counts


@dataclass(frozen=True)
class Preparer:
    """Turns raw rows into token ids, labels, digests and the columns asked for.

    Attributes:
        tokens: columns of the rows that are tokens already, none where `tokenise` makes them of text.
        label: what TRL does to make the labels.
        cut: what TRL does to a row that is longer than `limit`.
        limit: tokens that a row is truncated to; None leaves rows whole.
        split: tokens of the pieces that a row is split into; None leaves rows in one piece.
        columns: columns of numbers that are kept, see `ballast.data.values`.
        from_end: whether truncation keeps the end.
    """

    tokenise: Tokeniser | None
    tokens: tuple[str, ...]
    label: tuple[trl.Step, ...]
    cut: tuple[trl.Step, ...]
    limit: int | None
    split: int | None
    columns: tuple[str, ...]
    from_end: bool

    def __call__(self, rows: Sequence[Row], called: Sequence[str]) -> Made:
        """Return prepared rows, those without a trained token left out, and what became of all.

        Args:
            rows: raw.
            called: what each is called in errors and notes.

        Raises:
            BallastError: naming the first row that cannot be prepared.
        """
        counts = Counts(read=len(rows))
        tokenised = self._tokenised(rows, called)
        labelled = _run(self.label, [one.columns for one in tokenised])
        made = Made([], [], counts)
        for one, row in zip(tokenised, labelled, strict=True):
            counts.whole += 1
            counts.prompt_not_prefix += not one.prompt_is_prefix
            counts.lacks(one.left_out)
            counts.by_role.update(one.by_role)
            given = [self._given(rows[one.place], name, row["labels"], called[one.place]) for name in self.columns]
            kept = list(self._kept(row, given, counts))
            if not kept:
                first = next((place for place, label in enumerate(row["labels"]) if place and label != -100), None)
                counts.earliest = min(filter(None, (first, counts.earliest)), default=None)
            made.rows.extend(kept)
            made.places.extend([one.place] * len(kept))
        counts.kept = len(made.rows)
        return made

    def _tokenised(self, rows: Sequence[Row], called: Sequence[str]) -> list[Tokenised]:
        if self.tokenise is not None:
            return self.tokenise(rows, called)
        return [Tokenised(place, {name: row[name] for name in self.tokens}) for place, row in enumerate(rows)]

    def _given(self, row: Row, name: str, labels: Sequence[int], called: str) -> np.ndarray:
        try:
            return values.spread(row[name], labels)
        except BallastError as error:
            raise BallastError(f"{called}: {name!r} {error}") from None

    def _kept(self, row: dict[str, Any], given: Sequence[np.ndarray], counts: Counts) -> Iterator[dict[str, Any]]:
        """Yield the pieces of a row that have a trained token."""
        length = len(row["input_ids"])
        pieces = max(1, -(-length // self.split)) if self.split else 1
        counts.pieces += pieces
        if self.limit is not None and length > self.limit:
            counts.truncated += 1
            cut = _run(self.cut, [row])
            if not cut:
                return
            row = cut[0]
            given = [values.cut(one, len(row["input_ids"]), self.from_end) for one in given]
        ids, labels = (np.asarray(row[name], dtype=np.int64) for name in ("input_ids", "labels"))
        step = self.split or len(ids) or 1
        for start in range(0, len(ids), step):
            piece = slice(start, start + step)
            # The first label is not counted: nothing predicts it.
            if trained := int(np.count_nonzero(labels[piece][1:] != -100)):
                counts.tokens += len(ids[piece])
                counts.trained += trained
                own = {name: one[piece] for name, one in zip(self.columns, given, strict=True)}
                digest = row_digest(ids[piece], labels[piece])
                yield {"input_ids": ids[piece], "labels": labels[piece], "digest": digest, **own}


def preparer(
    layout: Format,
    column_names: Sequence[str],
    tokenizer: Any,
    options: PrepareOptions,
    rules: trl.LossRules,
    columns: Sequence[str],
) -> Preparer:
    """Return what prepares rows of a format as the options say.

    "bfd" truncates as plain rows are, "bfd_split" splits, "wrapped" cuts across rows later and so does neither here.

    Args:
        column_names: those of the rows.
        columns: those that are kept.
    """
    tokens = tuple(layout.present(column_names)) if layout.name == "tokenised" else ()
    masks = {"completion_mask": "prompt" in column_names, "assistant_masks": options.assistant_only_loss}
    made = tokens or ("input_ids", *(name for name, there in masks.items() if there))
    whole = options.packing and options.packing_strategy != "bfd"
    limit = None if whole else options.limit
    return Preparer(
        tokenise=None if tokens else tokeniser(layout, tokenizer, options, rules),
        tokens=tokens,
        label=trl.trl_steps(made, options, rules),
        cut=() if limit is None else trl.trl_steps(("input_ids", "labels"), options, rules, max_length=limit),
        limit=limit,
        split=options.limit if options.packing and options.packing_strategy == "bfd_split" else None,
        columns=tuple(columns),
        from_end=options.truncation_mode == "keep_end",
    )


def _run(steps: Sequence[trl.Step], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for step in steps:
        rows = step(rows)
    return rows
