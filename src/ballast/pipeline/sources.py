"""Rows as a recipe names them: files, folders, hub ids, the embedded lab's own splits, the recipe's training rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.config.recipe import DataSection
from ballast.errors import BallastError

if TYPE_CHECKING:
    from datasets import Dataset

    from ballast.data.chunks import Chunks

LAB = "lab:"
TRAIN = "data.train"
"""As a source of demonstrations: the recipe's own training rows."""
DATA_SUFFIXES = (".jsonl", ".json", ".gz", ".parquet", ".csv", ".txt", ".arrow")

_kept: ContextVar[dict[str, Dataset] | None] = ContextVar("kept", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """Keep what is read until the block ends, so that checks, training and measuring read each source once."""
    kept = _kept.get()
    token = _kept.set({} if kept is None else kept)
    try:
        yield
    finally:
        _kept.reset(token)


def forget() -> None:
    """Let go of what is kept: whoever needs it has it."""
    (_kept.get() or {}).clear()


def check_source(source: str) -> str | None:
    """Return what makes a source unusable, or None; what is no local path is taken for a hub id and looked up later."""
    if source.startswith(LAB):
        return _lab_problem(source)
    path = Path(source).expanduser()
    if path.is_file():
        return None if path.stat().st_size else f"{source}: the file is empty"
    if path.is_dir():
        return None if any(path.iterdir()) else f"{source}: the folder is empty"
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix in DATA_SUFFIXES
    return f"{source}: no such file or folder" if looks_local else None


def load(
    sources: str | Sequence[str], *, split: str | None = None, columns: Any = None, limit: int | None = None
) -> Dataset:
    """Return the raw rows of a source, or of several laid end to end.

    Raises:
        BallastError: naming the file and the line or row that cannot be read.
    """
    named = [sources] if isinstance(sources, str) else list(sources)
    kept, key = _kept.get(), json.dumps([named, split, columns, limit], default=dict)
    if kept is None:
        return _read(named, split, columns, limit)
    if key not in kept:
        kept[key] = _read(named, split, columns, limit)
    return kept[key]


def load_train(data: DataSection) -> Dataset:
    """Return the raw training rows of a recipe.

    Raises:
        BallastError: they are a stream, or cannot be read.
    """
    if data.streaming:
        raise BallastError(
            "data.streaming: all training rows are needed here, which a stream never has; set data.streaming=false, "
            "or name rows of their own"
        )
    return load(data.train, split=data.split, columns=data.columns, limit=data.limit)


def stream_train(data: DataSection) -> Chunks:
    """Return what reads the raw training rows of a recipe a few at a time.

    Raises:
        BallastError: a source is not there, or cannot be read in pieces.
    """
    from ballast.data.chunks import read_chunks

    parts = [_lab(name) if name.startswith(LAB) else name for name in data.train]
    return read_chunks(parts, split=data.split, columns=data.columns, limit=data.limit)


def load_eval(data: DataSection) -> Dataset | None:
    """Return the raw held-out rows of a recipe, or None where it names none."""
    return load(data.eval, split=data.eval_split, columns=data.columns) if data.eval else None


def read_source(source: str, data: DataSection | None, limit: int | None = None) -> list[Mapping[str, Any]]:
    """Return the first rows of demonstrations or texts: of `TRAIN`, a split of the lab, or any other source.

    Raises:
        BallastError: if the source cannot be used.
    """
    if source == TRAIN:
        if data is None or not data.train:
            raise BallastError(f"{TRAIN} are the recipe's training rows, and it names none; set them")
        return list(islice(_demonstrations(load_train(data)), limit))
    if problem := check_source(source):
        raise BallastError(problem)
    return list(load(source, limit=limit))


def _demonstrations(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield rows as prompt and completion; of a conversation the last turn is the completion."""
    for row in rows:
        turns = row.get("messages")
        yield {"prompt": turns[:-1], "completion": turns[-1:]} if turns and "completion" not in row else row


def _read(named: Sequence[str], split: str | None, columns: Any, limit: int | None) -> Dataset:
    from ballast.data.load import load_rows

    parts = [_lab(name) if name.startswith(LAB) else name for name in named]
    return load_rows(parts[0] if len(parts) == 1 else parts, split=split, columns=columns, limit=limit)


def _lab(source: str) -> Dataset:
    from datasets import Dataset

    from ballast.lab import split

    return Dataset.from_list(split(source.removeprefix(LAB)))


def _lab_problem(source: str) -> str | None:
    from ballast.errors import suggest
    from ballast.lab import SPLITS

    name = source.removeprefix(LAB)
    return None if name in SPLITS else f"{source}: the lab has no such split{suggest(name, tuple(SPLITS))}"
