"""Run records, read from a folder into values that say which run it is, how far it came and what it measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ballast.compare.plan import BASE, REPORT
from ballast.errors import BallastError
from ballast.records import write as records
from ballast.records.folder import MARK, RL
from ballast.records.old_reading import REMEDY, finite, read_lines, read_object
from ballast.records.old_reading import field as at
from ballast.records.runs import AFTER, BEFORE

FINISHED, UNFINISHED, FAILED = "finished", "unfinished", "failed"
STARTS = (BASE, "before rl")
"""Names under which a run's evaluations have the model that it started from."""
FIGURES = ("value", "low", "high")

Scores = tuple[tuple[float, ...], ...]
"""One row per item, one column per answer."""


@dataclass(frozen=True)
class Measured:
    """One model's results: the record of each task, and the scores of those that keep their answers."""

    tasks: Mapping[str, Mapping[str, Any]]
    scores: Mapping[str, Scores] = field(repr=False)
    prompts: Mapping[str, tuple[str, ...]] = field(repr=False)


@dataclass(frozen=True)
class Run:
    """One run of training: fine-tuning (`BEFORE`) or the RL that followed it (`AFTER`)."""

    folder: Path
    label: str
    rate: float | None
    seed: int
    role: str
    stage: str
    status: str
    record: Mapping[str, Any] = field(repr=False)
    metrics: tuple[Mapping[str, Any], ...] = field(repr=False)
    measured: Mapping[str, Measured] = field(repr=False)
    error: str = ""

    @property
    def result(self) -> Measured | None:
        """What was measured of the model that came out, None where nothing was."""
        return _outcome(self.measured)


def is_run(folder: Path) -> bool:
    """Whether a folder holds the record of a run."""
    return (folder / records.RUN).is_file()


def read_runs(folder: Path) -> list[Run]:
    """Return a run, and after it the RL inside its folder where there is one.

    Raises:
        BallastError: naming the file that cannot be used.
    """
    first = read_run(folder)
    after = folder / RL
    return [first, *([read_run(after, like=first)] if is_run(after) else [])]


def read_run(folder: Path, like: Run | None = None) -> Run:
    """Return a run; one that was stopped or failed is told by its status.

    Args:
        like: the fine-tuning that this RL followed.

    Raises:
        BallastError: naming the file that cannot be used.
    """
    path = folder / records.RUN
    record = read_object(path)
    where = str(path)
    mark = at(record, where, MARK, dict, None)
    status = _status(at(record, where, "status", str), folder)
    measured = read_measured(folder)
    tasks = at(record, where, "recipe.evaluation.tasks", list, [])
    if status == FINISHED and tasks and _outcome(measured) is None:
        # The record is written before the last measurement.
        status = UNFINISHED
    return Run(
        folder,
        **_identity(record, where, mark, like, folder),
        stage=AFTER if like is not None or at(record, where, "rl", dict, None) is not None else BEFORE,
        status=status,
        record=record,
        metrics=tuple(read_lines(folder / records.METRICS, torn_end=status != FINISHED)),
        measured=measured,
        error=at(record, where, "error", str, ""),
    )


def _outcome(measured: Mapping[str, Measured]) -> Measured | None:
    own = [found for name, found in measured.items() if name not in STARTS]
    return own[-1] if own else None


def _status(status: str, folder: Path) -> str:
    return status if status in (FINISHED, FAILED) else UNFINISHED


def _identity(
    record: Mapping[str, Any], where: str, mark: Mapping[str, Any] | None, like: Run | None, folder: Path
) -> dict[str, Any]:
    """Return label, rate, seed and role: of the comparison's mark, of the run before, or of the recipe."""
    if mark is not None:
        rate = at(mark, where, "rate", (int, float), None)
        return {
            "label": at(mark, where, "label", str),
            "rate": None if rate is None else finite(rate, f"{where}: rate"),
            "seed": at(mark, where, "seed", int),
            "role": at(mark, where, "role", str),
        }
    if like is not None:
        return {"label": like.label, "rate": like.rate, "seed": like.seed, "role": like.role}
    rate = at(record, where, "recipe.training.learning_rate", (int, float), None)
    return {
        "label": at(record, where, "objective.name", str, folder.name),
        "rate": None if rate is None else finite(rate, f"{where}: learning_rate"),
        "seed": at(record, where, "recipe.seed", int, 0),
        "role": REPORT,
    }


def read_measured(folder: Path) -> dict[str, Measured]:
    """Return what ``evals.jsonl`` says of each model, the last measurement of one that was measured again.

    Raises:
        BallastError: a figure is no finite number, or a record has another shape.
    """
    path = folder / records.EVALS
    found: dict[str, Measured] = {}
    for place, row in enumerate(read_lines(path), start=1):
        where = f"{path}:{place}"
        name = at(row, where, "model", str)
        tasks = {}
        for task in at(row, where, "tasks", list):
            if not isinstance(task, dict):
                raise BallastError(f"{where}: a task that is no mapping; {REMEDY}")
            tasks[at(task, where, "name", str)] = _checked(task, where)
        items = {
            task: folder / "evals" / records.file_name(name) / f"{records.file_name(task)}.jsonl" for task in tasks
        }
        answers = {task: _answers(file) for task, file in items.items()}
        kept = {task: rows for task, rows in answers.items() if rows}
        scores = {task: tuple(given for _, given in rows) for task, rows in kept.items()}
        prompts = {task: tuple(prompt for prompt, _ in rows) for task, rows in kept.items()}
        found[name] = Measured(tasks, scores, prompts)
    return found


def _checked(task: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a task's record with its metrics checked and everything else in its place."""
    name = task["name"]
    settings, metrics = at(task, where, "settings", dict, {}), at(task, where, "metrics", dict)
    for metric, estimate in metrics.items():
        check_estimate(estimate, f"{where}: {name}: {metric}")
    return {**task, "kind": at(task, where, "kind", str, ""), "settings": settings, "metrics": metrics}


def check_estimate(estimate: Any, where: str) -> None:
    """Refuse what is no estimate.

    Raises:
        BallastError: its figures are no finite numbers, or its interval is upside down.
    """
    if not isinstance(estimate, dict) or "value" not in estimate:
        raise BallastError(f"{where} is {estimate!r}, not an estimate; {REMEDY}")
    figures = [estimate.get(name) for name in FIGURES]
    low, high = (
        finite(figure, f"{where}: {name}") if figure is not None else None
        for name, figure in zip(FIGURES[1:], figures[1:], strict=True)
    )
    if figures[0] is not None:
        finite(figures[0], f"{where}: value")
    at(estimate, where, "n", int)
    if low is not None and high is not None and low > high:
        raise BallastError(f"{where}: its interval goes from {low} down to {high}; {REMEDY}")


def _answers(path: Path) -> list[tuple[str, tuple[float, ...]]]:
    rows = []
    for place, row in enumerate(read_lines(path), start=1):
        given = row.get("scores")
        if not isinstance(given, list) or not given:
            return []
        scores = tuple(finite(score, f"{path}:{place}: a score") for score in given)
        rows.append((repr(row.get("prompt")), scores))
    return rows
