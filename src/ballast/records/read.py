"""Stored files back as models: what is cut short, of another shape or not a number is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ballast.errors import BallastError
from ballast.records.schema import SCHEMA, Record

REMEDY = "copy the run's folder again, or run it again"
INPUT = 60
"""Characters of a wrong value that an error shows."""

Kind = TypeVar("Kind", bound=Record)


def read(path: Path, kind: type[Kind], *, remedy: str = REMEDY) -> Kind:
    """Return the record in a JSON file.

    Raises:
        BallastError: naming the file and the key; its cause is FileNotFoundError where there is no file.
    """
    return _parsed(_bytes(path, remedy), kind, str(path), remedy)


def read_lines(path: Path, kind: type[Kind], *, torn_end: bool = False, remedy: str = REMEDY) -> list[Kind]:
    """Return the records of a JSONL file, none where there is no file.

    Only a line feed ends a line: JSON leaves the other breaks that Unicode has as they are within text.

    Args:
        torn_end: leave out a last line that is cut short: what a run in progress, or killed, may leave.

    Raises:
        BallastError: naming the file, the line and the key.
    """
    if not path.exists():
        return []
    *lines, last = _bytes(path, remedy).split(b"\n")
    found = [
        _parsed(line, kind, f"{path}:{place}", remedy) for place, line in enumerate(lines, start=1) if line.strip()
    ]
    if last.strip():
        try:
            found.append(_parsed(last, kind, f"{path}:{len(lines) + 1}", remedy))
        except BallastError:
            if not torn_end:
                raise
    return found


def _bytes(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BallastError(f"{path}: cannot be read ({error}); {remedy}") from error


def _parsed(text: bytes, kind: type[Kind], where: str, remedy: str) -> Kind:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise BallastError(f"{where}: {_problem(dict(error.errors()[0]))}; {remedy}") from error


def _problem(details: dict[str, Any]) -> str:
    """Return the first thing that is wrong, with its key."""
    key, kind, value = ".".join(map(str, details["loc"])), details["type"], details["input"]
    if kind == "json_invalid":
        return f"is not JSON ({details['ctx']['error']}), perhaps cut short"
    if key == "schema":
        found = "no `schema`" if kind == "missing" else f"`schema` {value!r}"
        return f"has {found}, so another version of ballast wrote it; this one reads `schema` {SCHEMA}"
    if not key and kind == "model_type":
        return f"holds {value!r:.{INPUT}}, not a record"
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f"{key} is not a key that this version of ballast knows"
    if kind == "value_error":
        return f"{key}: {details['ctx']['error']}" if key else str(details["ctx"]["error"])
    return f"{key}: {details['msg'].removeprefix('Input ')}; got {value!r:.{INPUT}}"
