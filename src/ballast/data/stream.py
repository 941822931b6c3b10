"""Demonstrations that are read as they are trained on: prepared as a table is, a few rows in memory at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ballast.data import trl, values
from ballast.data.batches import BATCH, Made, Preparer, preparer
from ballast.data.formats import Format, check_rows, require_format
from ballast.data.options import PrepareOptions
from ballast.data.prepare import context_note, nothing_left
from ballast.data.refusals import refuse_data, refuse_foreign_ids, refuse_options, refuse_untrainable
from ballast.data.report import Counts, PrepareReport, dropped_nulls
from ballast.errors import BallastError

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedTokenizerBase

    from ballast.data.chunks import Chunks
    from ballast.data.readers import Loaded

FIRST_ROWS = 4 * BATCH
"""Rows that are prepared before anything is loaded, to find what is wrong with all."""
REMEMBERED = 10_000
"""Rows beside the shuffle buffer whose places are known when something is wrong with a batch."""


@dataclass(frozen=True)
class Streamed:
    """Prepared rows (``input_ids``, ``labels``, ``digest``, columns asked for) without end.

    After the last row comes the first again, so that a batch may hold rows of two passes and none is short.

    Attributes:
        dataset: begins anew, in the same order, whenever it is read.
        report: what became of the first rows.
        options: what they are prepared with.
        columns: columns of numbers that are kept.
        read: what became of the rows since the data set was last begun, those in the shuffle buffer among them, and
            where those that came last stand.
    """

    dataset: IterableDataset
    report: PrepareReport
    options: PrepareOptions
    columns: tuple[str, ...]
    read: _Read
    first: tuple[str, ...] = ()

    def seen(self) -> PrepareReport:
        """Return what became of the rows that this process has read."""
        part = "a stream: the rows that were read, those of further passes counted again"
        return self.read.counts.report(self.report.name, (*self.read.notes(self.options), part))

    def place(self, digest: str) -> str | None:
        """Return where a row that came lately stands, None where that is not known any more."""
        return self.read.places.get(digest)


@dataclass
class _Read:
    """What was read so far."""

    remembered: int
    counts: Counts = field(default_factory=Counts)
    nulls: dict[str, None] = field(default_factory=dict)
    places: OrderedDict[str, str] = field(default_factory=OrderedDict)
    rules: tuple[str, ...] = ()

    def begin(self) -> None:
        self.counts = Counts()
        self.places.clear()

    def notes(self, options: PrepareOptions) -> tuple[str, ...]:
        return (*self.rules, *context_note(self.counts, options), *self.nulls)

    def remember(self, digest: str, place: str) -> None:
        self.places[digest] = place
        if len(self.places) > self.remembered:
            self.places.popitem(last=False)


def prepare_stream(
    chunks: Chunks,
    tokenizer: PreTrainedTokenizerBase,
    options: PrepareOptions,
    *,
    name: str = "train",
    columns: Sequence[str] = (),
    buffer: int = 0,
) -> Streamed:
    """Return rows that are tokenised, labelled, cut and named as `prepare` does, when they are asked for.

    Args:
        chunks: reads the raw rows, see `read_chunks`.
        columns: see `prepare`.
        buffer: rows among which the next is drawn at random, by ``options.seed``; 0 keeps the order.

    Raises:
        BallastError: for options, and for what is wrong with the first rows. What is wrong with a later one is raised
            when that is reached, and names its place.
    """
    refuse_options(options)
    if options.packing:
        raise BallastError(
            f"{name}: packing needs the lengths of all rows, which a stream does not know; set packing=False, or load "
            "the rows without streaming"
        )
    if options.shuffle_dataset:
        raise BallastError(
            f"{name}: shuffle_dataset puts all rows in another order, which a stream does not have at hand; shuffle "
            "among the next rows instead (shuffle_buffer), or load the rows without streaming"
        )
    rows = _Rows(chunks, tokenizer, options, name, tuple(columns), _Read(REMEMBERED + buffer))
    report = rows.look()
    dataset, first = _dataset(rows), tuple(rows.read.places)
    # Of few rows it would be filled by going over them again and again.
    if buffer := min(buffer, buffer if rows.more else report.rows_in):
        dataset = dataset.shuffle(seed=options.seed, buffer_size=buffer)
    return Streamed(dataset, report, options, tuple(columns), rows.read, first)


class _Rows:
    """Prepares what is read, and keeps count."""

    def __init__(
        self,
        chunks: Chunks,
        tokenizer: PreTrainedTokenizerBase,
        options: PrepareOptions,
        name: str,
        columns: tuple[str, ...],
        read: _Read,
    ) -> None:
        self.chunks, self.options, self.name, self.columns, self.read = chunks, options, name, columns, read
        self.more = False
        first = next(chunks(), None)
        if first is None:
            raise BallastError(f"{name}: no rows")
        refuse_data(first.dataset, name)
        values.check_columns(columns, first.dataset, name)
        self.layout, self.named = self._layout(first), first.dataset.column_names
        self.tokenizer = trl.training_tokenizer(tokenizer, options)
        example = self._rows(first)[0]
        check_rows([example], self.layout, first.place)
        refuse_untrainable(self.layout, example, self.tokenizer, options)
        rules = trl.trl_loss_rules(example, self.tokenizer, options)
        read.rules = rules.notes
        present = self.layout.present(self.named)
        self.how: Preparer = preparer(self.layout, present, self.tokenizer, options, rules, columns)

    def look(self) -> PrepareReport:
        """Return what became of the first rows."""
        counts = Counts()
        for loaded in self.chunks():
            if counts.read >= FIRST_ROWS:
                self.more = True
                break
            counts.add(self._prepared(loaded).counts)
        if not counts.kept:
            where = f"{self.name}: the first {counts.read:,} rows of a stream" if self.more else self.name
            raise BallastError(nothing_left(counts, self.options, where))
        self.read.counts = counts
        part = "the first rows of a stream: others are read, and counted, as they are trained on"
        return counts.report(self.name, (*self.read.notes(self.options), *([part] if self.more else [])))

    def __call__(self) -> Iterator[dict[str, Any]]:
        """Yield prepared rows, from the first again after the last."""
        self.read.begin()
        while True:
            kept = self.read.counts.kept
            for loaded in self.chunks():
                made = self._prepared(loaded)
                self.read.counts.add(made.counts)
                yield from ({name: _plain(value) for name, value in row.items()} for row in made.rows)
            if self.read.counts.kept == kept:
                raise BallastError(nothing_left(self.read.counts, self.options, self.name))

    def _prepared(self, loaded: Loaded) -> Made:
        if not set(self.layout.required) <= set(loaded.dataset.column_names):
            raise BallastError(f"{self.name}: {loaded.place(0)}: from here on the rows have another format")
        self.read.nulls |= dict.fromkeys(dropped_nulls(loaded.dataset))
        rows, called = self._rows(loaded), [loaded.place(index) for index in range(len(loaded.dataset))]
        try:
            if self.layout.name == "tokenised":
                check_rows(rows, self.layout, loaded.place)
                refuse_foreign_ids(loaded.dataset, self.tokenizer, loaded.place(0))
            made = self.how(rows, called)
        except BallastError as error:
            raise BallastError(f"{self.name}: {error}") from error
        # After the rows, which tell more exactly which of them is of another format.
        self._layout(loaded)
        for row, place in zip(made.rows, made.places, strict=True):
            self.read.remember(row["digest"], called[place])
        return made

    def _layout(self, loaded: Loaded) -> Format:
        return require_format(
            loaded.dataset.column_names, self.options.dataset_text_field, f"{self.name}: {loaded.place(0)}"
        )

    def _rows(self, loaded: Loaded) -> list[dict[str, Any]]:
        """Return the rows with the columns that make them up; one that the first rows had is None in those without."""
        there = dict.fromkeys([*self.layout.present([*self.named, *loaded.dataset.column_names]), *self.columns])
        return [{name: row.get(name) for name in there} for row in loaded.dataset]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else value.tolist()


def _dataset(rows: _Rows) -> IterableDataset:
    from datasets import Features, IterableDataset, List, Value

    features = {"input_ids": List(Value("int64")), "labels": List(Value("int64")), "digest": Value("string")}
    features |= {column: List(Value("float32")) for column in rows.columns}
    return IterableDataset.from_generator(rows, features=Features(features))
