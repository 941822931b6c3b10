"""Rows as a recipe names them: files, folders, hub ids, and the embedded lab's own splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.config.recipe import DataSection

if TYPE_CHECKING:
    from datasets import Dataset

LAB = "lab:"
DATA_SUFFIXES = (".jsonl", ".json", ".gz", ".parquet", ".csv", ".txt", ".arrow")


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
    from ballast.data.load import load_rows

    named = [sources] if isinstance(sources, str) else list(sources)
    parts = [_lab(name) if name.startswith(LAB) else name for name in named]
    return load_rows(parts[0] if len(parts) == 1 else parts, split=split, columns=columns, limit=limit)


def load_train(data: DataSection) -> Dataset:
    """Return the raw training rows of a recipe."""
    return load(data.train, split=data.split, columns=data.columns, limit=data.limit)


def load_eval(data: DataSection) -> Dataset | None:
    """Return the raw held-out rows of a recipe, or None where it names none."""
    return load(data.eval, split=data.eval_split, columns=data.columns) if data.eval else None


def _lab(source: str) -> Dataset:
    from datasets import Dataset

    from ballast.lab import split

    return Dataset.from_list(split(source.removeprefix(LAB)))


def _lab_problem(source: str) -> str | None:
    from ballast.errors import suggest
    from ballast.lab import SPLITS

    name = source.removeprefix(LAB)
    return None if name in SPLITS else f"{source}: the lab has no such split{suggest(name, tuple(SPLITS))}"
