"""Strict readers of row files: every fault is named by file and line."""

from __future__ import annotations

import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.data.messages import text_problem
from ballast.errors import BallastError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


_DIGITS = 4300
"""Digits of the longest whole number that Python turns into text and back."""


@dataclass(frozen=True)
class Loaded:
    """Rows, the name of their source, and the line of each row where the source has lines, else the first's number."""

    dataset: Dataset
    name: str
    lines: tuple[int, ...] | None = None
    first: int = 1

    def place(self, index: int) -> str:
        """Where row ``index`` stands, for an error."""
        if self.lines is not None:
            return f"{self.name}: line {self.lines[index]}"
        return f"{self.name}: row {self.first + index}"


def read_file(path: Path, limit: int | None = None) -> Loaded:
    """Read one file of rows, by the ending of its name.

    Raises BallastError for a missing, empty or malformed file, with the line.
    """
    ending = ending_of(path)
    try:
        return READERS[ending](path, limit)
    except OSError as error:
        raise BallastError(f"{path}: cannot be read: {error.strerror or error}") from error


def ending_of(path: Path) -> str:
    """Return the ending by which a file of rows is read.

    Raises BallastError for a missing or empty file, or one of an unknown kind.
    """
    if not path.exists():
        raise BallastError(f"{path}: no such file{_near_files(path)}")
    ending = next((ending for ending in READERS if path.name.endswith(ending)), None)
    if ending is None:
        raise BallastError(f"{path}: unknown kind of file; known: {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise BallastError(f"{path}: the file is empty")
    return ending


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"; the folder {folder} is not there either"
    names = [entry.name for entry in folder.iterdir()]
    near = get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _decode(raw: bytes, path: Path, line: int) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError:
        raise BallastError(f"{path}: line {line}: not UTF-8 text") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    with _open(path) as file:
        try:
            for number, raw in enumerate(file, start=1):
                text = _decode(raw, path, number).strip()
                if text:
                    yield number, text
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BallastError(f"{path}: damaged gzip file after line {number}: {error}") from None


def _object(text: str, path: Path, line: int) -> dict[str, Any]:
    row = _parsed(text, path, line)
    if not isinstance(row, dict):
        raise BallastError(f"{path}: line {line}: a row must be an object like {{...}}, not {_json_kind(row)}")
    return row


def _parsed(text: str, path: Path, line: int) -> Any:
    """Parse JSON that begins at a line of a file."""
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a whole number of more digits than Python reads
            return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else float(digits))
    except json.JSONDecodeError as error:
        place = f"{path}: line {line + error.lineno - 1}"
        raise BallastError(f"{place}: invalid JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise BallastError(f"{path}: line {line}: invalid JSON: nested too deeply") from None


def _json_kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file with one object a line, each with its line."""
    return ((line, _object(text, path, line)) for line, text in _lines(path))


def _read_jsonl(path: Path, limit: int | None) -> Loaded:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for line, row in islice(json_lines(path), limit):
        rows.append(row)
        lines.append(line)
    if not rows:
        raise BallastError(f"{path}: the file holds no row")
    return from_rows(rows, str(path), tuple(lines))


def _read_json(path: Path, limit: int | None) -> Loaded:
    """Read an array of objects; a file that starts with an object is read as one object a line."""
    with _open(path) as file:
        start = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"{":
        return _read_jsonl(path, limit)
    with _open(path) as file:
        text = _decode(file.read(), path, 1)
    rows = _parsed(text, path, 1)
    if not isinstance(rows, list):
        raise BallastError(f"{path}: the file must hold an array of objects, not {_json_kind(rows)}")
    if not rows:
        raise BallastError(f"{path}: the array is empty")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise BallastError(f"{path}: row {number}: a row must be an object like {{...}}, not {_json_kind(row)}")
    return from_rows(rows[:limit], str(path))


def _read_parquet(path: Path, limit: int | None) -> Loaded:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    from ballast.data.exact import from_table

    try:
        with pq.ParquetFile(path) as file:
            if not file.metadata.num_rows:
                raise BallastError(f"{path}: the file holds no row")
            table = _table(file, path)
    except ArrowException as error:
        raise BallastError(f"{path}: no readable Parquet file: {' '.join(str(error).split())}") from None
    return Loaded(from_table(table.slice(0, limit)), str(path))


def _table(file: Any, path: Path) -> pa.Table:
    """Read all columns, or those that can be read where one of them is damaged: it may be one that nobody needs."""
    from pyarrow import ArrowException

    try:
        return file.read()
    except (ArrowException, OSError):
        table = None
        for name in file.schema_arrow.names:
            try:
                part = file.read([name])
                table = part if table is None else table.append_column(name, part.column(name))
            except (ArrowException, OSError) as error:
                reason = " ".join(str(error).split())
                warnings.warn(f"{path}: column {name!r} cannot be read and is left out: {reason}", stacklevel=2)
        if table is None:
            raise
        return table


Reader = Callable[[Path, "int | None"], Loaded]
READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".parquet": _read_parquet,
}


def from_rows(rows: list[dict[str, Any]], name: str, lines: tuple[int, ...] | None = None) -> Loaded:
    """Make a table of rows in memory, their values as they stand; a key that a row lacks is None there."""
    from ballast.data.exact import from_columns

    # A name with half a surrogate pair is no text, and Arrow ends one at a zero byte; nobody can ask for it.
    names = dict.fromkeys(key for row in rows for key in row if not text_problem(key) and "\0" not in key)
    if not names:
        raise BallastError(f"{name}: the rows have no fields")
    try:
        return Loaded(from_columns({key: [row.get(key) for row in rows] for key in names}), name, lines)
    except BallastError as error:
        raise BallastError(f"{name}: {error}") from None


def is_row_list(source: Any) -> bool:
    """Whether ``source`` is a list of rows in memory rather than of sources."""
    return isinstance(source, list) and bool(source) and all(isinstance(row, Mapping) for row in source)
