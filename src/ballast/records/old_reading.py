"""Records as they lie on disk, read strictly: what is cut short, of another shape or not a number is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ballast.errors import BallastError

REMEDY = "copy the run's folder again, or run it anew"


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        BallastError: naming the file, and the line where it breaks off.
    """
    value = _parsed(_text(path), str(path))
    if not isinstance(value, dict):
        raise BallastError(f"{path}: holds {_kind(value)}, not a record; {REMEDY}")
    return value


def read_lines(path: Path, *, torn_end: bool = False) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, none where there is no file.

    Args:
        torn_end: leave out a last line that is cut short: what a run in progress, or killed, may leave.

    Raises:
        BallastError: naming the file and the line.
    """
    if not path.exists():
        return []
    lines = _text(path).split("\n")
    rows = []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        last = place == len(lines)
        try:
            row = _parsed(line, f"{path}:{place}")
        except BallastError:
            if torn_end and last:
                break
            raise
        if not isinstance(row, dict):
            raise BallastError(f"{path}:{place}: holds {_kind(row)}, not a record; {REMEDY}")
        rows.append(row)
    return rows


def field(record: Mapping[str, Any], where: str, path: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """Return the value at a dotted path, which must be of that kind; `default` where the path ends early.

    Raises:
        BallastError: naming the file and the path.
    """
    value: Any = record
    for part in path.split("."):
        value = value.get(part, ...) if isinstance(value, Mapping) else ...
    if value is ... or value is None:
        if default is not ...:
            return default
        raise BallastError(f"{where}: has no {path!r}, so it is no record of a run; {REMEDY}")
    wrong = isinstance(value, bool) and bool not in (kind if isinstance(kind, tuple) else (kind,))
    if wrong or not isinstance(value, kind):
        raise BallastError(f"{where}: {path} is {_kind(value)}; {REMEDY}")
    return value


def finite(value: Any, where: str) -> float:
    """Return a finite number.

    Raises:
        BallastError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise BallastError(f"{where} is {value!r}, not a finite number: a table would show it as a result; {REMEDY}")
    return float(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BallastError(f"{path}: cannot be read: {error}; {REMEDY}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f" at line {error.lineno}" if error.lineno > 1 else ""
        raise BallastError(f"{where}: is no JSON{line} ({error.msg}), perhaps cut short; {REMEDY}") from error
    except (ValueError, RecursionError) as error:
        # An integer of thousands of digits, or brackets in thousands.
        raise BallastError(f"{where}: is no record ({error}); {REMEDY}") from error


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value!r}")
