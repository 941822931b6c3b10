"""The folder of a comparison: where each run lies, and which of them are done."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballast.errors import BallastError
from ballast.records import write as records

PLAN, SUMMARY = "compare.json", "summary.json"
CELLS, BASE, CACHE, RL = "cells", "base", "cache", "rl"
ERROR, JOBS_LOG = "error.txt", "jobs.log"
FULL = os.strerror(errno.ENOSPC)
"""What an error says where a disk is full, whichever library writes."""
MARK = "cell"
"""Key of ``run.json`` that is written last, when evaluations and answers are there: a run with it is done."""


@dataclass(frozen=True)
class Store:
    """Paths below the output of a comparison."""

    root: Path

    @property
    def plan(self) -> Path:
        """What is compared: the resolved recipe, versions, the runs."""
        return self.root / PLAN

    @property
    def summary(self) -> Path:
        """What came out."""
        return self.root / SUMMARY

    @property
    def base(self) -> Path:
        """Measurements of the start."""
        return self.root / BASE

    @property
    def cache(self) -> Path:
        """Statistics of the reference, shared by all runs."""
        return self.root / CACHE / "reference"

    @property
    def jobs_log(self) -> Path:
        """What the processes that do the runs print."""
        return self.root / JOBS_LOG

    def random(self, seed: int) -> Path:
        """The randomly initialised model of a seed."""
        return self.root / CACHE / f"random-s{seed}"

    def cell(self, name: str) -> Path:
        """The folder of a run."""
        return self.root / CELLS / name

    def rl(self, name: str) -> Path:
        """The folder of the RL that follows a run."""
        return self.cell(name) / RL

    def base_rl(self, seed: int) -> Path:
        """The folder of the RL that starts from the recipe's model itself."""
        return self.base / RL / f"s{seed}"


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run that is done, None where there is none or it was stopped."""
    try:
        record = json.loads((folder / records.RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BallastError(
            f"{folder / records.RUN}: cannot be read ({error}), so whether the run is done is unknown; remove {folder} "
            "to have it done again"
        ) from error
    done = isinstance(record, dict) and record.get("status") == "finished" and MARK in record
    return record if done else None


def mark_done(folder: Path, mark: Mapping[str, Any]) -> None:
    """Write into a finished run's record which part of the comparison it is."""
    path = folder / records.RUN
    record = json.loads(path.read_text(encoding="utf-8"))
    records.write_json(path, {**record, MARK: dict(mark)})


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a file system that takes nothing more into one line.

    Raises:
        BallastError: naming what was to be written.
    """
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def room(path: Path) -> Iterator[None]:
    """Turn a full disk into one line, whichever library finds it full.

    Raises:
        BallastError: naming the folder that is written to.
    """
    try:
        yield
    except Exception as error:
        if FULL in str(error):
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: Path, error: Exception) -> BallastError:
    return BallastError(
        f"{path}: cannot be written ({' '.join(str(error).split())}), and what is not written would be lost; what is "
        "done stays: put that right and run the same command again"
    )


def discard(folder: Path) -> None:
    """Take away what a stopped run left; its record goes first, so that half a folder is never taken for a run."""
    (folder / records.RUN).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise BallastError(f"{folder}: cannot be removed, and what a stopped run left there would mix with the next")


def drop_weights(folder: Path) -> None:
    """Take the weights out of a run's folder; its record stays."""
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        file.unlink()


def differing_key(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Return the first key path at which two resolved recipes differ, None where they are the same run.

    Where things lie is left out: a run that was copied from another machine has other paths in it.
    """
    return _difference(_placeless(found), _placeless(wanted))


def _placeless(recipe: Mapping[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(recipe, default=str))
    plain.pop("output", None)
    plain.pop("compare", None)
    reference = plain.get("reference") or {}
    if reference.get("cache"):
        reference["cache"] = True
    model = plain.get("model") or {}
    path = Path(str(model.get("path")))
    if path.parent.name == CACHE:
        model["path"] = path.name
    return plain


def _difference(found: Any, wanted: Any, where: str = "") -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        # A key that is not there is one that is none: a version before this one did not know it.
        keys = dict.fromkeys([*wanted, *found])
        parts = (_difference(found.get(key), wanted.get(key), f"{where}.{key}".lstrip(".")) for key in keys)
        return next((part for part in parts if part is not None), None)
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        parts = (_difference(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(found, wanted, strict=True)))
        return next((part for part in parts if part is not None), None)
    return None if found == wanted else where
