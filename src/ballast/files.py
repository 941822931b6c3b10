"""Files that are there in full or not at all; their names, and the places that they go to."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ballast.errors import BallastError

if TYPE_CHECKING:
    from filelock import FileLock

LEAST_FREE = 1 << 20
"""Bytes without which nothing is begun."""


def expanded(path: str) -> str:
    """Return a path with its ``~`` replaced by the home folder.

    Raises:
        BallastError: it begins with the home folder of a user that there is not, and is no name of something here.
    """
    found = os.path.expanduser(path)
    if found == path and path.startswith("~") and not os.path.exists(path):
        raise BallastError(f"{path}: there is no such home folder, and a folder named ~ would be made; write it out")
    return found


def file_name(name: str) -> str:
    """Return a name as part of a path: no separators, no leading or trailing dots."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "unnamed"


def same_file(names: Iterable[str]) -> tuple[int, str] | None:
    """Return the place of the first name that shares its file with an earlier one, and that one; None if none does.

    Some file systems do not tell upper case from lower.
    """
    seen: dict[str, str] = {}
    for place, name in enumerate(names):
        key = file_name(name).casefold()
        if key in seen:
            return place, seen[key]
        seen[key] = name
    return None


def place_problem(path: str | Path, needed: int = LEAST_FREE) -> str | None:
    """Return what keeps a folder from being made or filled, None where nothing does; nothing is written.

    Args:
        path: the folder, which need not be there.
        needed: bytes that it has to hold.
    """
    if "\0" in str(path):
        return f"{str(path)!r}: cannot be a folder: a name has no zero bytes; choose another place"
    whole = Path(path).absolute()
    try:
        nearest = _nearest(whole)
        if not nearest.is_dir():
            if nearest == whole:
                return f"{path}: is {'a link to nothing' if nearest.is_symlink() else 'a file'}; name a folder"
            return f"{path}: {nearest} is no folder, so nothing can lie in it; choose another place"
        if not os.access(nearest, os.W_OK | os.X_OK):
            return f"{path}: cannot be written: no permission to write in {nearest}; choose another place"
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        return f"{path}: cannot be a folder: {error.strerror or error}; choose another place"
    if free < needed:
        short = f"{free / 1e6:,.0f} MB are free there, the run needs {needed / 1e6:,.0f} MB at least"
        return f"{path}: the disk is full: {short}; make room, or choose another place"
    return None


def free_bytes(path: str | Path) -> int:
    """Return how many bytes are free where a folder lies, or will."""
    return shutil.disk_usage(_nearest(Path(path).absolute())).free


def _nearest(whole: Path) -> Path:
    """Return what is there of a path, from its end."""
    return next(folder for folder in (whole, *whole.parents) if folder.is_symlink() or folder.exists())


@contextmanager
def temporary_folder(prefix: str, beside: str | Path) -> Iterator[Path]:
    """Give a new folder that goes with the block; those that killed processes left behind go first.

    A folder is its process's as long as that holds the lock beside it, which the system takes from the dead.

    Args:
        prefix: of its name; folders of others must not begin so.
        beside: where it is made; not below it.
    """
    from filelock import FileLock, Timeout

    where = Path(beside)
    where.mkdir(parents=True, exist_ok=True)
    for left in where.glob(f"{glob.escape(prefix)}*.lock"):
        lock = FileLock(left)
        with suppress(Timeout, OSError):  # somebody is at work in it; or it is another user's
            lock.acquire(timeout=0)
            _remove(left.with_suffix(""), lock)
    place = where / f"{prefix}{secrets.token_hex(4)}"
    lock = FileLock(f"{place}.lock")
    lock.acquire()
    try:
        place.mkdir(mode=0o700)
        yield place
    finally:
        _remove(place, lock)


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, also after a loss of power; folders are made.

    A process killed midway leaves a file ``<name>.<pid>.tmp`` behind and the old content in place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_place(option: str, folder: str | Path | None) -> None:
    """Refuse a folder that an option names and that cannot be made or filled, None being none.

    Raises:
        BallastError: naming option and folder.
    """
    if folder is not None and (problem := place_problem(folder)):
        raise BallastError(f"{option}: {problem}")


def check_file(option: str, file: Path | None) -> None:
    """The same of a file to be written."""
    if file is not None and file.is_dir():
        raise BallastError(f"{option}: {file}: is a folder; name a file")
    check_place(option, None if file is None else file.parent)
