"""A folder that is filled part by part: each is there in full or not at all, and a run that was stopped goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ballast.errors import BallastError
from ballast.files import write_atomically
from ballast.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from filelock import BaseFileLock

MANIFEST, LOCK = "manifest.json", ".lock"
ROWS_PER_PART = 64
"""Prompts of one part: what a kill costs at most. Answers of one part share batches, so it is the same in every run."""


class PartFolder:
    """A folder being filled by one process at a time, or by the ranks of one, each with parts of its own.

    Attributes:
        holds: what is in it, in the plural.
        doing: what a process that fills it does.
        command: fills it, and goes on where it stopped.

    Args:
        path: the folder; made if there is none.
        size: number of prompts when it is full.
    """

    holds: ClassVar[str]
    doing: ClassVar[str]
    command: ClassVar[str]

    def __init__(self, path: str | Path, size: int) -> None:
        self.path, self.size = Path(path), size

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest holds: all that the parts depend on."""
        raise NotImplementedError

    def differences(self) -> Sequence[str]:
        """Return one phrase for each setting in which the manifest that is there differs from this one."""
        raise NotImplementedError

    @contextmanager
    def filling(self, ranks: Ranks = ALONE) -> Iterator[list[int]]:
        """Hold the folder's lock, so that no other process fills it, and yield the missing parts that are this rank's.

        All ranks enter and leave; the first holds the lock until all have left without an error.

        Raises:
            BallastError: if it is another folder, was filled with other settings, or is being filled.
        """
        from filelock import FileLock

        lock = FileLock(self.path / LOCK)
        try:
            yield list(ranks.share(ranks.first(lambda: self._begin(lock))))
        finally:
            lock.release()

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not there yet."""
        return [part for part in range(self.parts) if not self.file(part).exists()]

    @property
    def parts(self) -> int:
        """How many parts the folder has when it is full."""
        return math.ceil(self.size / ROWS_PER_PART)

    def rows(self, part: int) -> list[int]:
        """Return the places of a part's prompts."""
        return list(range(part * ROWS_PER_PART, min((part + 1) * ROWS_PER_PART, self.size)))

    def file(self, number: int) -> Path:
        """Return where a part is."""
        return self.path / f"part-{number:05d}.parquet"

    def put(self, number: int, content: bytes, beside: tuple[str, bytes] | None = None) -> None:
        """Write a part, and before it what belongs to it in a folder within this one: its name and content."""
        if beside is not None:
            write_atomically(self.path / beside[0] / self.file(number).name, beside[1])
        write_atomically(self.file(number), content)

    def files(self) -> list[Path]:
        """Return the files of all parts in order.

        Raises:
            BallastError: if one is missing.
        """
        if missing := self.missing():
            done = self.parts - len(missing)
            raise BallastError(
                f"{self.path}: {self.doing} has not ended ({done} of {self.parts} parts), so prompts would be left "
                f"out; run `{self.command}` again, it goes on where it stopped"
            )
        return [self.file(number) for number in range(self.parts)]

    def _begin(self, lock: BaseFileLock) -> list[int]:
        """Take the lock and return which parts are missing."""
        from filelock import Timeout

        check_target(self.path, self.holds)
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BallastError(f"{self.path}: another process is {self.doing} into this folder; wait for it") from None
        manifest = self.path / MANIFEST
        # Without a part there is nothing that other settings could mix with.
        if manifest.exists() and len(self.missing()) < self.parts:
            if found := self.differences():
                raise BallastError(
                    f"{self.path}: {'; '.join(found)}: answers of two kinds would mix; name another folder"
                )
        else:
            write_atomically(manifest, json.dumps(self.manifest(), indent=2, ensure_ascii=False) + "\n")
        for leftover in self.path.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
        return self.missing()


class Revisions(PartFolder):
    """A folder of revised rows, as `ballast.revise.rows` fills it."""

    holds, doing, command = "revisions", "revising", "ballast revise"


def revisions(path: Path) -> list[Path]:
    """Return the files of a full folder of revised rows.

    Raises:
        BallastError: if its manifest cannot be read, or a part is missing.
    """
    try:
        size = int(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["settings"]["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(path, Revisions.holds, error) from error
    return Revisions(path, size).files()


def check_target(path: Path, holds: str) -> None:
    """Refuse to fill a file, or a folder that holds something else.

    Raises:
        BallastError: saying what is there.
    """
    if path.exists() and not path.is_dir():
        raise BallastError(f"{path}: is a file; {holds} are written into a folder, choose another path")
    if path.is_dir() and not (path / MANIFEST).exists():
        ours = (LOCK, MANIFEST)
        foreign = [one.name for one in path.iterdir() if one.name not in ours and not one.name.endswith(".tmp")]
        if foreign:
            raise BallastError(f"{path}: holds {sorted(foreign)[0]!r} and no {holds}; choose a new or empty folder")


def has(path: str | Path, holds: str) -> bool:
    """Return whether a folder's manifest says that it has these; a manifest without a word of it has groups."""
    try:
        content = json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))
        return bool(content.get("holds", "groups") == holds)
    except (OSError, ValueError, AttributeError):
        return False


def read_manifest(path: str | Path, holds: str, versions: Sequence[int], again: str) -> tuple[int, Mapping[str, Any]]:
    """Return the version and the settings in a folder's manifest.

    Args:
        holds: what such a folder has, in the plural.
        versions: that can be read.
        again: what to do about another version.

    Raises:
        BallastError: if it cannot be read.
    """
    manifest = Path(path) / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["version"] not in versions:
            raise BallastError(f"{manifest}: written by another version ({content['version']!r}); {again}")
        return content["version"], content["settings"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BallastError):
            raise
        raise unreadable(path, holds, error) from error


def unreadable(path: str | Path, holds: str, error: Exception) -> BallastError:
    """Return the error of a manifest that is damaged."""
    return BallastError(f"{Path(path) / MANIFEST}: cannot be read as the manifest of {holds}: {error}")
