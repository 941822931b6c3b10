"""The run record: small files that say what was run and what came out; each appears whole or not at all."""

from __future__ import annotations

import errno
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from ballast.errors import BallastError
from ballast.files import write_atomically

PACKAGES = ("ballast-ft", "torch", "transformers", "trl", "peft", "datasets", "accelerate")

RUN, METRICS, EVALS = "run.json", "metrics.jsonl", "evals.jsonl"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A file system that takes no more: it is full, or was mounted to be read only."""
RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust (safetensors, tokenizers) hand on an errno: their own error types carry none."""
TORCH_WRITER = re.compile(r"PytorchStreamWriter|unexpected pos \d+ vs")
"""What `torch.save` says where a file cannot be written to its end: it knows no errno."""


def versions() -> dict[str, str]:
    """Return the installed versions of ballast and of what it stands on, without importing any of them."""
    found = {}
    for package in PACKAGES:
        try:
            found["ballast" if package == "ballast-ft" else package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: str | Path = ".") -> str | None:
    """Return the commit that ``folder`` is checked out at, with ``+`` where files differ from it; None without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: str | Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON; values that JSON does not know are written as text."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, none where there is no file."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line]


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to a JSONL file by writing it anew, so that a reader never sees a part of them."""
    write_jsonl(path, [*read_jsonl(path), *rows])


def extend_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to a JSONL file in place: for logs, which grow at every step."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, is that of a full disk or an exhausted quota."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        named = RUST_ERRNO.search(str(cause))
        if (isinstance(cause, OSError) and cause.errno in FULL) or (named and int(named[1]) in FULL):
            return True
        if isinstance(cause, RuntimeError) and TORCH_WRITER.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def disk_full_as_error(path: Path) -> Iterator[None]:
    """Turn a full disk into one line, whichever library finds it full.

    Raises:
        BallastError: naming the folder that is written to.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise _unwritable(path, error) from error
        raise


@contextmanager
def unwritable_as_error(path: Path) -> Iterator[None]:
    """Turn a file system that takes no more into one line.

    Raises:
        BallastError: naming what was to be written.
    """
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: Exception) -> BallastError:
    return BallastError(
        f"{path}: cannot be written ({' '.join(str(error).split())}), and what is not written would be lost; what is "
        "done stays: solve that and run the same command again"
    )
