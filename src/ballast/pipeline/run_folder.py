"""What a run of training keeps in its output folder, whatever trains: the model, its log, its measurements."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.files import write_atomically
from ballast.objectives import objective
from ballast.pipeline.evaluate import Measured
from ballast.pipeline.step_lines import Tell
from ballast.records import write as records
from ballast.records.model_card import CARD, About, card
from ballast.records.read import read_lines
from ballast.records.schema import EvalRecord, RunRecord

LOCK = ".lock"
FINAL = ".final"
"""Where the final model is written before it is moved to its place."""
Line = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Turns an entry of a trainer's log into a line of ours."""


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


@contextmanager
def alone(output: Path, *, resume: bool) -> Iterator[None]:
    """Keep other processes out of the folder of a run, which is made; a new run finds none there.

    Raises:
        BallastError: another process is at work on it, or was since the output was looked at.
    """
    from filelock import FileLock, Timeout

    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BallastError(
            f"{output}: another process is training into this folder, two runs would mix; wait for it, or choose "
            "another output"
        ) from None
    try:
        if not resume and (output / records.RUN).exists():
            raise BallastError(f"{output}: another process has trained into this folder; choose another output")
        yield
    finally:
        # Who opened it before and locks it later finds the record of this run.
        (output / LOCK).unlink(missing_ok=True)
        lock.release()


def is_trained(record: RunRecord | None, recipe: Recipe) -> bool:
    """Return whether a run has trained all that a recipe asks of it, so that its weights are the last ones."""
    if record is None or record.status not in ("trained", "finished"):
        return False
    return all(record.recipe.get(key) == recipe.resolved()[key] for key in ("training", "reward", "rl"))


def write_record(output: Path, record: RunRecord) -> None:
    """Write the record of a run."""
    records.write_json(output / records.RUN, record.plain())


def write_evals(output: Path, measured: Sequence[Measured], *, step: int) -> None:
    """Keep the answers and then what was measured at a step, instead of an earlier measurement at that step."""
    for entry in measured:
        entry.write_items(output / "evals")
    names = {entry.name for entry in measured}
    lines = records.read_jsonl(output / records.EVALS)
    kept = [line for line in lines if line.get("step") != step or line["model"] not in names]
    records.write_jsonl(output / records.EVALS, [*kept, *(entry.record(step=step).plain() for entry in measured)])


def save_final(trainer: Any, output: Path) -> None:
    """Write the final model beside its place and move it there, the configuration last: it makes a folder a model."""
    temporary = output / FINAL
    trainer.save_model(str(temporary))
    if not trainer.is_world_process_zero():
        return
    for file in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(file, output / file.name)
    shutil.rmtree(temporary)
    # PEFT's own, which knows nothing of the run.
    (output / CARD).unlink(missing_ok=True)
    _store_once(output)


def _store_once(output: Path) -> None:
    """Let the weights of a checkpoint that are those of the final model be the same file."""
    for final in output.glob("*.safetensors"):
        for kept in output.glob(f"checkpoint-*/{final.name}"):
            if filecmp.cmp(final, kept, shallow=False):
                linked = kept.with_name(f".{kept.name}")
                with suppress(OSError):  # a disk without hard links holds them twice
                    os.link(final, linked)
                    os.replace(linked, kept)


def write_card(output: Path, record: RunRecord, section: ModelSection) -> None:
    """Write the model card, of the record and of all that was measured."""
    source = None if record.objective is None else objective(record.objective).source
    adapter = (output / models.ADAPTER_CONFIG).is_file()
    about = About(output.resolve().name, source, models.hub_id(section), models.licence(section), adapter)
    write_atomically(output / CARD, card(record, read_lines(output / records.EVALS, EvalRecord), about))


def log_writer(path: Path, *, line: Line = dict, tell: Tell | None = None) -> Any:
    """Return a callback that keeps the metrics file in step with a trainer's log.

    Args:
        line: turns an entry of the log into a line of the file.
        tell: called with each new line and the state of the trainer.
    """
    from transformers import TrainerCallback

    class LogWriter(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                records.write_jsonl(path, map(line, state.log_history))

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                latest = line(state.log_history[-1])
                records.extend_jsonl(path, [latest])
                if tell is not None:
                    tell(latest, state)

    return LogWriter()
