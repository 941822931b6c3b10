"""Raw rows from files, folders, the hub, memory, or a mixture of these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.data.columns import Columns, map_columns
from ballast.data.formats import check_rows, find_format
from ballast.data.readers import READERS, Loaded, from_rows, is_row_list, read_file
from ballast.data.render import TEMPLATE_OPTIONS
from ballast.errors import BallastError, suggest
from ballast.parts import Revisions, has, revisions

if TYPE_CHECKING:
    from datasets import Dataset, Features

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "eval", "test")


def load_rows(source: Any, *, split: str | None = None, columns: Columns = None, limit: int | None = None) -> Dataset:
    """Load raw rows.

    ``source`` is a .jsonl, .jsonl.gz, .json or .parquet file, a folder of them or one written by
    ``Dataset.save_to_disk``, a hub id (``owner/name`` or ``owner/name:configuration``), a ``datasets.Dataset``, a list
    of rows, or a list of sources: a mixture, one after the other. ``columns`` is "alpaca", "sharegpt" or
    ``{our column: their column}``. ``limit`` takes the first rows of each source. Rows in one of TRL's training
    formats are checked one by one; other rows (an evaluation's, say) are only read.

    Raises BallastError naming file and line, or row, both counted from 1.
    """
    if limit is not None and limit < 1:
        raise BallastError(f"limit={limit} leaves no row; give at least 1, or none")
    if isinstance(source, Sequence) and not isinstance(source, str) and not is_row_list(source):
        if not source:
            raise BallastError("the list of data sources is empty")
        return _mixture([_load(part, split, columns, limit) for part in source])
    return _load(source, split, columns, limit).dataset


def _load(source: Any, split: str | None, columns: Columns, limit: int | None) -> Loaded:
    raw = read(source, split, limit)
    loaded = Loaded(map_columns(raw, columns), raw.name, raw.lines)
    layout = find_format(loaded.dataset.column_names)
    if layout:
        check_rows(loaded.dataset.select_columns(layout.present(loaded.dataset.column_names)), layout, loaded.place)
    return loaded


def read(source: Any, split: str | None = None, limit: int | None = None) -> Loaded:
    """Return the rows of one source as they stand there, unchecked; see `load_rows`."""
    from datasets import Dataset, DatasetDict

    if is_row_list(source):
        return from_rows([dict(row) for row in source[:limit]], "rows")
    if isinstance(source, DatasetDict):
        source = _choose_split(source, split, "data set")
    if isinstance(source, Dataset):
        return _limited(source, "rows", limit)
    if not isinstance(source, str | Path):
        raise BallastError(f"a data source is a path, a hub id or rows, not {type(source).__name__}")
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, split, limit)
    if path.exists() or looks_like_path(str(source)):
        if split is not None and path.exists():
            raise BallastError(f"{path}: split={split!r} means nothing for a single file; remove it")
        return read_file(path, limit)
    return _read_hub(str(source), split, limit)


def looks_like_path(source: str) -> bool:
    """Whether a source that is not there is meant as a file or folder, rather than as a name on the hub."""
    return source.endswith(tuple(READERS)) or source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source)


def _limited(dataset: Dataset, name: str, limit: int | None) -> Loaded:
    from ballast.data.exact import as_stored

    if not len(dataset):
        raise BallastError(f"{name}: no rows")
    return Loaded(as_stored(dataset if limit is None else dataset.select(range(min(limit, len(dataset))))), name)


def _choose_split(splits: Mapping[str, Dataset], split: str | None, name: str) -> Dataset:
    wanted = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if wanted not in splits:
        raise BallastError(f"{name}: no split {wanted!r}{suggest(wanted, list(splits))}")
    return splits[wanted]


def _read_folder(path: Path, split: str | None, limit: int | None) -> Loaded:
    from datasets import DatasetDict, load_from_disk

    if is_saved(path):
        try:
            saved = load_from_disk(str(path))
        except Exception as error:  # a damaged folder may fail anywhere inside datasets
            raise BallastError(f"{path}: cannot be read as a saved data set: {_one_line(error)}") from error
        if isinstance(saved, DatasetDict):
            saved = _choose_split(saved, split, str(path))
        elif split is not None:
            raise BallastError(f"{path}: split={split!r}, but the saved data set has no splits; remove it")
        return _limited(saved, str(path), limit)
    if has(path, Revisions.holds):
        return _read_revisions(path, split, limit)
    files = files_in(path, split)
    dataset = _mixture([read_file(file, limit) for file in files])
    return _limited(dataset, str(path) if len(files) > 1 else str(files[0]), limit)


def _read_revisions(path: Path, split: str | None, limit: int | None) -> Loaded:
    """Read what `ballast revise` wrote; a part of which no row was kept is empty."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    if split is not None:
        raise BallastError(f"{path}: split={split!r}, but revised rows have no splits; remove it")
    files = []
    for file in revisions(path):
        try:
            files += [file] if read_metadata(file).num_rows else []
        except (OSError, ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BallastError(f"{file}: damaged ({reason}); delete it and run `ballast revise` again") from error
    if not files:
        raise BallastError(f"{path}: no row was kept when it was revised; see revise.keep and revise.only_correct")
    return _limited(_mixture([read_file(file, limit) for file in files]), str(path), limit)


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return path.is_dir() and any(
        (path / marker).exists() for marker in ("state.json", "dataset_dict.json", "dataset_info.json")
    )


def files_in(path: Path, split: str | None) -> list[Path]:
    """Return the files of rows in a folder, in the order of their names.

    Raises BallastError where there is none, or of which split they are is not clear.
    """
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(tuple(READERS)))
    if not files:
        raise BallastError(f"{path}: the folder holds no saved data set and no {', '.join(READERS)} file")
    return _files_of_split(files, split, path)


def _files_of_split(files: list[Path], split: str | None, folder: Path) -> list[Path]:
    named = {file: re.split(r"[-_.]", file.name)[0] for file in files}
    if split is not None:
        chosen = [file for file in files if split in re.split(r"[-_.]", file.name)]
        if not chosen:
            raise BallastError(f"{folder}: no file of split {split!r}{suggest(split, list(named.values()))}")
        return chosen
    found = sorted({word for file in files for word in re.split(r"[-_.]", file.name) if word in _SPLITS})
    if len(found) > 1:
        raise BallastError(
            f"{folder}: files of several splits ({', '.join(found)}) would be read as one, tests included; give split"
        )
    return files


def _read_hub(source: str, split: str | None, limit: int | None) -> Loaded:
    return _limited(from_hub(source, split), source, limit)


def from_hub(source: str, split: str | None, *, streaming: bool = False) -> Any:
    """Return a split of a data set on the hub, in memory or to be read as it comes."""
    from datasets import load_dataset

    name, _, configuration = source.partition(":")
    try:
        found = load_dataset(name, configuration or None, streaming=streaming)
    except Exception as error:  # no network, no such data set, or whatever its files raise
        raise BallastError(
            f"{source}: no such file or folder, and not to be had from the hub: {_one_line(error)}"
        ) from error
    return _choose_split(found, split, source) if isinstance(found, dict) else found


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].strip() or type(error).__name__


def _mixture(parts: list[Loaded]) -> Dataset:
    """Put sources one after the other.

    Raises BallastError when they differ in format.
    """
    from datasets import concatenate_datasets

    from ballast.data.exact import from_columns

    first = parts[0]
    layout = find_format(first.dataset.column_names)
    for part in parts[1:]:
        other = find_format(part.dataset.column_names)
        if (layout and layout.name) != (other and other.name):
            kinds = [found.name if found else "no training format" for found in (layout, other)]
            raise BallastError(
                f"a mixture of two formats: {first.name} has {kinds[0]}, {part.name} has {kinds[1]}; load each "
                "with its own columns and pass the rows"
            )
    columns = dict.fromkeys(column for part in parts for column in part.dataset.column_names)
    lacking = {column for column in columns if any(column not in part.dataset.column_names for part in parts)}
    if layout and layout.name == "tokenised" and (masks := lacking & set(layout.optional)):
        raise BallastError(
            f"a mixture of which only some sources have {min(masks)!r}: of the others every token would be trained; "
            "add the column to each"
        )
    # What a chat template reads is none where a source lacks it; other columns are of no use if some rows lack them.
    shared = [column for column in columns if column not in lacking or column in TEMPLATE_OPTIONS]
    if len(lacking) == len(columns):
        raise BallastError(f"a mixture without a common column: {', '.join(part.name for part in parts)}")
    tables = [part.dataset.select_columns([c for c in shared if c in part.dataset.column_names]) for part in parts]
    if all(_same(table.features, tables[0].features) for table in tables):
        return concatenate_datasets(tables)
    # Columns that differ in detail: 32 and 64 bits, keys that some messages lack, numbers here and text there.
    values = {column: [_values(table, column) for table in tables] for column in shared}
    return from_columns({column: list(chain.from_iterable(found)) for column, found in values.items()})


def _same(features: Features, others: Features) -> bool:
    """Whether columns have the same types, and their objects the same keys in the same order."""
    return features == others and features.arrow_schema.equals(others.arrow_schema)


def _values(table: Dataset, column: str) -> Iterable[Any]:
    return table[column] if column in table.column_names else repeat(None, len(table))
