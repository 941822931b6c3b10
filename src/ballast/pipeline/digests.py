"""What a run was made of, by content: so that a file that changed under its name is told from the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from ballast import gguf, models
from ballast.config.recipe import DataSection, ModelSection, Recipe
from ballast.evaluation.tasks import Task
from ballast.pipeline import sources
from ballast.records.schema import InputRecord

DIGEST_BYTES = 16
BLOCK, BLOCKS = 2**16, 256
"""Bytes of a file of weights that are read at a place, and how many places, spread evenly from its beginning."""
MODEL, TRAIN, RL_DATA, REWARD = "model", "data.train", "rl.data", "rl.reward_model"


def inputs_of(recipe: Recipe) -> dict[str, InputRecord]:
    """Return the models and the rows that a recipe trains on, by the key that names them.

    Where RL has rows of its own, those of ``data.train`` are not read. Tasks have digests of their own.
    """
    found = {}
    if recipe.model is not None and (weights := _model_digest(recipe.model)):
        found[MODEL] = InputRecord(source=recipe.model.path, digest=weights)
    data, rl = recipe.data, recipe.rl
    own = rl is not None and rl.data is not None
    if data.train and not own:
        source = _source(data.train, data.split, data.columns, data.limit)
        found[TRAIN] = InputRecord(source=source, digest=_train_digest(data))
    if rl is not None and rl.data is not None:
        rows = sources.load(rl.data, split=rl.split, columns=rl.columns, limit=rl.limit)
        source = _source(rl.data, rl.split, rl.columns, rl.limit)
        found[RL_DATA] = InputRecord(source=source, digest=rows_digest(rows.with_format(None)))
    if rl is not None and rl.reward_model is not None and (scores := _weights(ModelSection(path=rl.reward_model))):
        found[REWARD] = InputRecord(source=rl.reward_model, digest=scores)
    return found


def task_digest(task: Task) -> str:
    """Return the digest of everything that a loaded task asks."""
    parts = (getattr(task, name, None) for name in ("data", "demonstrations", "forgetting"))
    return rows_digest(row for part in parts if isinstance(part, list | tuple) for row in part)


def rows_digest(rows: Iterable[object]) -> str:
    """Return the digest of raw rows, every column counted."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for row in rows:
        plain = dict(row) if isinstance(row, Mapping) else row
        digest.update(json.dumps(plain, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _source(named: Sequence[str], split: str | None, columns: Any, limit: int | None) -> str:
    options = {"split": split, "columns": columns and dict(columns), "limit": limit}
    given = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    return ", ".join(named) + (f" ({given})" if given else "")


def _train_digest(data: DataSection) -> str:
    if data.streaming:
        # As of weights: rows that no memory holds are not read once more for their digest.
        return rows_digest(_file(file) for name in data.train for file in _files(Path(name).expanduser()))
    return rows_digest(sources.load_train(data).with_format(None))


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path] * path.is_file()


def _model_digest(section: ModelSection) -> str | None:
    """Return that of `_weights`, of a GGUF file its SHA-256, by which it is known elsewhere."""
    sha256 = gguf.digest(section.path)
    if sha256 is None:
        return _weights(models.resolve(section))
    adapter = None if section.adapter is None else _weights(ModelSection(path=section.adapter))
    return sha256 if adapter is None else rows_digest([sha256, adapter])


def _weights(section: ModelSection) -> str | None:
    """Return the digest of a local model's weights and adapter, None of one on the hub: its revision names it.

    Of a large file a sample is read: training moves weights everywhere, and all of them are hashed once in a run at
    most, for the key of a cache.
    """
    folders = [Path(path).expanduser() for path in (section.path, section.adapter) if path]
    files = sorted(file for folder in folders if folder.is_dir() for file in folder.glob("*.safetensors"))
    if not files:
        return None
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(_file, files))
    return rows_digest(digests)


def _file(path: Path) -> str:
    found = path.stat()
    return _content(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)
def _content(path: Path, size: int, changed: int) -> str:
    """Return the digest of a file, made once in a process as long as its size and its time stay."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=DIGEST_BYTES)
    places = range(0, size, max(BLOCK, -(-size // BLOCKS)))
    with path.open("rb") as file:
        for place in places:
            file.seek(place)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()
