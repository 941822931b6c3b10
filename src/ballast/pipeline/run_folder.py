"""What a run of training keeps in its output folder, whatever trained: the model, its measurements, times."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ballast.pipeline.evaluate import Measured
from ballast.records import write as records

FINAL = ".final"
"""Where the final model is written before it is moved to its place."""


class Clock:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        """Keep the seconds since the last lap under a name."""
        moment = time.monotonic()
        self.laps[name], self._since = round(moment - self._since, 3), moment

    @property
    def total(self) -> float:
        """Seconds of all laps."""
        return sum(self.laps.values())


def now() -> str:
    """Return the time in UTC as a record has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@contextmanager
def no_empty_folder(output: Path) -> Iterator[None]:
    """Take away the folder that the trainer makes if it then refuses its input."""
    there = output.exists()
    try:
        yield
    except BaseException:
        if not there and output.is_dir() and not any(path.is_file() for path in output.rglob("*")):
            shutil.rmtree(output)
        raise


def save_final(trainer: Any, output: Path) -> None:
    """Write the final model beside its place and move it there, the configuration last: it makes a folder a model."""
    temporary = output / FINAL
    trainer.save_model(str(temporary))
    if not trainer.is_world_process_zero():
        return
    for file in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(file, output / file.name)
    shutil.rmtree(temporary)
    # PEFT leaves a card of its own, and the trainer writes one with checkpoints only.
    (output / "README.md").unlink(missing_ok=True)
    trainer.create_model_card(model_name=output.name)


def write_evals(output: Path, measured: Sequence[Measured], *, step: int) -> None:
    """Add what was measured at a step to the records, and keep the answers."""
    records.append_jsonl(output / records.EVALS, [entry.record(step=step) for entry in measured])
    for entry in measured:
        entry.write_items(output / "evals")
