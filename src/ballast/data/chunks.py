"""Raw rows a few at a time, from where they lie: what `load_rows` reads at once, for data that no memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.data import load
from ballast.data.batches import BATCH
from ballast.data.columns import Columns, map_columns
from ballast.data.readers import Loaded, ending_of, from_rows, is_row_list, json_lines
from ballast.errors import BallastError
from ballast.parts import Revisions, has

if TYPE_CHECKING:
    from datasets import Dataset

Chunks = Callable[[], Iterator[Loaded]]
"""Begins to read anew at each call."""


def read_chunks(source: Any, *, split: str | None = None, columns: Columns = None, limit: int | None = None) -> Chunks:
    """Return what reads raw rows, `BATCH` at a time; nothing is read yet but the names of files.

    Sources, columns and limit are those of `load_rows`, but for .json, which is one value from its first line to its
    last. Several sources take turns, a chunk each, until all are at their end.

    Raises:
        BallastError: a source is not there, or cannot be read in pieces.
    """
    several = isinstance(source, Sequence) and not isinstance(source, str) and not is_row_list(source)
    if several and not source:
        raise BallastError("the list of data sources is empty")
    readers = [_reader(one, split) for one in (source if several else [source])]

    def read() -> Iterator[Loaded]:
        for loaded in _turns([_limited(reader(), limit) for reader in readers]):
            yield Loaded(map_columns(loaded, columns), loaded.name, loaded.lines)

    return read


def _turns(readers: Sequence[Iterator[Loaded]]) -> Iterator[Loaded]:
    left = list(readers)
    while left:
        found = [(reader, next(reader, None)) for reader in left]
        left = [reader for reader, loaded in found if loaded is not None]
        yield from (loaded for _, loaded in found if loaded is not None)


def _limited(chunks: Iterator[Loaded], limit: int | None) -> Iterator[Loaded]:
    read = 0
    for loaded in chunks:
        if limit is not None and read + len(loaded.dataset) >= limit:
            yield Loaded(loaded.dataset.select(range(limit - read)), loaded.name, loaded.lines)
            return
        read += len(loaded.dataset)
        yield loaded


def _reader(source: Any, split: str | None) -> Chunks:
    from datasets import Dataset, IterableDataset

    if isinstance(source, IterableDataset):
        return lambda: _of_stream(source, "rows")
    path = None if isinstance(source, Dataset) or is_row_list(source) else Path(source).expanduser()
    if path is None or load.is_saved(path) or (path.is_dir() and has(path, Revisions.holds)):
        rows = load.read(source, split)
        return lambda: _of_table(rows.dataset, rows.name)
    if path.is_dir():
        files = load.files_in(path, split)
        parts = [_file_reader(file) for file in files]
        return lambda: (loaded for part in parts for loaded in part())
    if path.exists() or load.looks_like_path(str(source)):
        return _file_reader(path)
    return lambda: _of_stream(load.from_hub(str(source), split, streaming=True), str(source))


def _file_reader(path: Path) -> Chunks:
    ending = ending_of(path)
    if ending not in PIECES:
        raise BallastError(
            f"{path}: an array ends only with its file, so it cannot be read in pieces; write it as .jsonl, a row a "
            "line, or leave data.streaming out"
        )
    return lambda: PIECES[ending](path)


def _of_lines(path: Path) -> Iterator[Loaded]:
    rows = json_lines(path)
    while chunk := list(islice(rows, BATCH)):
        yield from_rows([row for _, row in chunk], str(path), tuple(line for line, _ in chunk))


def _of_parquet(path: Path) -> Iterator[Loaded]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ballast.data.exact import from_table

    first = 1
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                yield Loaded(from_table(pa.Table.from_batches([batch])), str(path), first=first)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise BallastError(f"{path}: row {first}: no readable Parquet from here on: {reason}") from None


def _of_table(rows: Dataset, name: str) -> Iterator[Loaded]:
    from ballast.data.exact import as_stored

    for start in range(0, len(rows), BATCH):
        part = rows.select(range(start, min(start + BATCH, len(rows))))
        yield Loaded(as_stored(part), name, first=start + 1)


def _of_stream(rows: Any, name: str) -> Iterator[Loaded]:
    first = 1
    for columns in rows.iter(batch_size=BATCH):
        made = from_rows([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], name)
        yield Loaded(made.dataset, name, first=first)
        first += len(made.dataset)


PIECES: dict[str, Callable[[Path], Iterator[Loaded]]] = {
    ".jsonl": _of_lines,
    ".jsonl.gz": _of_lines,
    ".parquet": _of_parquet,
}
"""Readers of the kinds of files that can be read in pieces."""
