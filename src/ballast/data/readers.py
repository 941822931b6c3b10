"""Strict readers of row files: every fault is named by file and line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


@dataclass(frozen=True)
class Loaded:
    """Rows, the name of their source, and the line of each row where the source has lines."""

    dataset: Dataset
    name: str
    lines: tuple[int, ...] | None = None

    def place(self, index: int) -> str:
        """Where row ``index`` stands, for an error."""
        return f"{self.name}: row {index + 1}" if self.lines is None else f"{self.name}: line {self.lines[index]}"


def read_file(path: Path, limit: int | None = None) -> Loaded:
    """Read one file of rows, by the ending of its name.

    Raises BallastError for a missing, empty or malformed file, with the line.
    """
    if not path.exists():
        raise BallastError(f"{path}: no such file{_near_files(path)}")
    ending = next((ending for ending in READERS if path.name.endswith(ending)), None)
    if ending is None:
        raise BallastError(f"{path}: unknown kind of file; known: {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise BallastError(f"{path}: the file is empty")
    try:
        return READERS[ending](path, limit)
    except OSError as error:
        raise BallastError(f"{path}: cannot be read: {error.strerror or error}") from error


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
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise BallastError(f"{path}: line {line}: invalid JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise BallastError(f"{path}: line {line}: invalid JSON: nested too deeply") from None
    if not isinstance(row, dict):
        raise BallastError(f"{path}: line {line}: a row must be an object like {{...}}, not {_json_kind(row)}")
    return row


def _json_kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")


def _read_jsonl(path: Path, limit: int | None) -> Loaded:
    rows, lines = [], []
    for line, text in _lines(path):
        if limit is not None and len(rows) >= limit:
            break
        rows.append(_object(text, path, line))
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
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise BallastError(f"{path}: line {error.lineno}: invalid JSON at column {error.colno}: {error.msg}") from None
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
    from datasets import Dataset
    from pyarrow import ArrowException

    try:
        table = pq.read_table(path)
    except ArrowException as error:
        raise BallastError(f"{path}: no readable Parquet file: {' '.join(str(error).split())}") from None
    if not table.num_rows:
        raise BallastError(f"{path}: the file holds no row")
    return Loaded(Dataset(table.slice(0, limit)), str(path))


Reader = Callable[[Path, "int | None"], Loaded]
READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".parquet": _read_parquet,
}


def from_rows(rows: list[dict[str, Any]], name: str, lines: tuple[int, ...] | None = None) -> Loaded:
    """Make a table of rows in memory; a key that a row lacks is None there.

    Raises BallastError where a field's type differs from that of the rows before.
    """
    import pyarrow as pa
    from datasets import Dataset

    names = dict.fromkeys(key for row in rows for key in row)
    if not names:
        raise BallastError(f"{name}: the rows have no fields")
    place = Loaded(None, name, lines).place  # type: ignore[arg-type]
    columns = {key: _array(key, [row.get(key) for row in rows], place) for key in names}
    return Loaded(Dataset(pa.table(columns)), name, lines)


# What pyarrow raises on values of two types; its own errors are ValueErrors or TypeErrors. Text with half a surrogate
# pair cannot be encoded, which is a ValueError too.
_MISFITS = (ValueError, TypeError, OverflowError, NotImplementedError)


def _array(key: str, values: list[Any], place: Callable[[int], str]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values)
    except _MISFITS as error:
        works, fails = 0, len(values)
        while fails - works > 1:
            middle = (works + fails) // 2
            try:
                pa.array(values[:middle])
                works = middle
            except _MISFITS:
                fails = middle
        reason = re.split(r"[\n;]", str(error))[0]
        raise BallastError(
            f"{place(works)}: {key!r} is {_shown(values[works])}, which does not fit the rows before ({reason}); give "
            "the field one type throughout"
        ) from None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def is_row_list(source: Any) -> bool:
    """Whether ``source`` is a list of rows in memory rather than of sources."""
    return isinstance(source, list) and bool(source) and all(isinstance(row, Mapping) for row in source)
