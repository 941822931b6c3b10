"""The folders of runs and comparisons: names, stages, roles, where each run lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from ballast.engines.options import TECHNICAL
from ballast.errors import BallastError
from ballast.records.schema import Values
from ballast.records.write import RUN

PLAN, SUMMARY, TOKENS = "compare.json", "summary.json", "tokens.json"
CELLS, CACHE, RL = "cells", "cache", "rl"
ERROR, JOBS_LOG = "error.txt", "jobs.log"

BASE, RANDOM = "base", "random"
"""Labels of the recipe's model itself, and of the row that starts from random weights."""
RESERVED = (BASE, RANDOM)
TUNING: Final = "tuning"
REPORT: Final = "report"
"""Roles of a run: it chooses its row's learning rate, or is reported at it."""
BEFORE, AFTER = "before_rl", "after_rl"
"""Stages: fine-tuning (or the base model as it is), and the RL that follows."""


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
        """Measurements of the base model."""
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
        """The folder of the RL that starts from the base model."""
        return self.base / RL / f"s{seed}"

    def below(self, folder: Path) -> str:
        """Return a folder's path below the output, as summaries name it."""
        return folder.relative_to(self.root).as_posix()

    def run_folders(self) -> Iterator[Path]:
        """Yield every folder that may hold a run, those of RL after the run that they follow."""
        for folder in _folders(self.root / CELLS):
            yield folder
            yield folder / RL
        yield from _folders(self.base / RL)


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("*") if path.is_dir())


def discard(folder: Path) -> None:
    """Remove what a stopped run left; its record goes first, so that half a folder is never taken for a run."""
    (folder / RUN).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise BallastError(f"{folder}: cannot be removed, and what a stopped run left there would mix with the next")


def drop_weights(folder: Path) -> None:
    """Remove the weights from a run's folder; its record stays."""
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        file.unlink()


def differing_key(found: Values, wanted: Values) -> str | None:
    """Return the first key path at which two resolved recipes differ, None where they are the same run.

    Where things lie is left out: a run that was copied from another machine has other paths in it. So is how an engine
    is asked, and what reports call a task.
    """
    return _difference(_without_places(found), _without_places(wanted))


def _without_places(recipe: Values) -> Values:
    plain: Values = json.loads(json.dumps(recipe))
    plain.pop("output", None)
    plain.pop("compare", None)
    reference, model = plain.get("reference"), plain.get("model")
    if isinstance(engine := plain.get("engine"), dict):
        plain["engine"] = {key: value for key, value in engine.items() if key not in TECHNICAL}
    evaluation = plain.get("evaluation")
    tasks = evaluation.get("tasks") if isinstance(evaluation, dict) else None
    for task in tasks if isinstance(tasks, list) else []:
        if isinstance(task, dict):
            task.pop("title", None)
    if isinstance(reference, dict) and reference.get("cache"):
        reference["cache"] = True
    if isinstance(model, dict):
        path = Path(str(model.get("path")))
        if path.parent.name == CACHE:
            model["path"] = path.name
    return plain


def _difference(found: JsonValue, wanted: JsonValue, where: str = "") -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        # A key that is not there is one that is none: a version before this one did not know it.
        keys = dict.fromkeys([*wanted, *found])
        parts = (_difference(found.get(key), wanted.get(key), f"{where}.{key}".lstrip(".")) for key in keys)
        return next((part for part in parts if part is not None), None)
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        parts = (_difference(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(found, wanted, strict=True)))
        return next((part for part in parts if part is not None), None)
    return None if found == wanted else where
