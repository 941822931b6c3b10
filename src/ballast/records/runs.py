"""Runs as they were stored: which run a folder is, how far it came, what was logged and measured, item by item."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from ballast.errors import BallastError
from ballast.evaluation.metrics import maj_at_k, pass_at_k
from ballast.evaluation.readiness import distinct_answers, mixed_share
from ballast.files import file_name
from ballast.records.folder import AFTER, BASE, BEFORE, REPORT, RL, Store
from ballast.records.read import read, read_lines
from ballast.records.schema import (
    SCHEMA,
    CellRecord,
    EngineRecord,
    EvalRecord,
    ItemRecord,
    LogRecord,
    Number,
    RunRecord,
    TaskRecord,
    Values,
)
from ballast.records.write import EVALS, METRICS, RUN

STARTS = (BASE, "before rl")
"""Names under which a run's evaluations have the model that it started from."""
AGAIN = "remove the run's folder to have it done again"

Array = np.ndarray
Scores = tuple[tuple[float, ...], ...]
"""One row per item, one column per answer."""


@dataclass(frozen=True)
class Measured:
    """One model's results; for tasks that score their answers also item by item.

    Attributes:
        tasks: task -> its record.
        scores: task -> scores of all answers.
        items: task -> metric -> one value per item.
        prompts: task -> the items themselves, to pair by.
        engine: what sampled the answers; None where none did, or an older version.
    """

    tasks: Mapping[str, TaskRecord]
    scores: Mapping[str, Scores] = field(default_factory=dict, repr=False)
    items: Mapping[str, Mapping[str, Array]] = field(default_factory=dict, repr=False)
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    engine: EngineRecord | None = None

    @property
    def samples(self) -> bool:
        """Whether one of the tasks sampled answers."""
        return any("answers" in task.counts for task in self.tasks.values())

    def value(self, task: str, metric: str) -> float | None:
        """Return a metric's value, None where it was not measured or is no number."""
        found = self.tasks.get(task)
        estimate = None if found is None else found.metrics.get(metric)
        return None if estimate is None else estimate.value


@dataclass(frozen=True)
class Run:
    """One run: fine-tuning (`BEFORE`), the RL that followed (`AFTER`), or the base model as it was measured.

    Attributes:
        path: what summaries call it: its folder below the comparison's output, or its folder.
        label, rate, seed, role: which run it is; the base model and RL straight from it have no rate.
        log: what was logged while it trained.
        measured: each model that was measured, by name, as it was measured last.
        result: the model that came out; None where that was not measured.
        steps: of a run that is shorter than the budget; see `CellRecord`.
    """

    path: str
    folder: Path
    label: str
    rate: float | None
    seed: int
    role: str
    stage: str
    record: RunRecord = field(repr=False)
    log: tuple[LogRecord, ...] = field(default=(), repr=False)
    measured: Mapping[str, Measured] = field(default_factory=dict, repr=False)
    result: Measured | None = field(default=None, repr=False)
    steps: int | None = None

    @property
    def done(self) -> bool:
        """Whether it is finished, and measured where its recipe asks for that."""
        return self.record.status == "finished" and (self.result is not None or not _tasks(self.record.recipe))

    @property
    def failed(self) -> bool:
        """Whether it broke off with an error."""
        return self.record.status == "failed"

    @property
    def is_base(self) -> bool:
        """Whether it is the base model, which no run trained."""
        return (self.label, self.stage) == (BASE, BEFORE)

    @property
    def budget(self) -> dict[str, Number | None]:
        """Optimiser steps, tokens read and seconds of training, as far as they are known."""
        last = {key: value for log in self.log for key, value in log.values.items()}
        steps = next((log.step for log in reversed(self.log) if log.step is not None), None)
        tokens = last.get("num_tokens", last.get("tokens"))
        number = tokens if isinstance(tokens, int | float) else None
        return {"steps": steps, "tokens": number, "seconds": self.record.seconds.get("train")}

    def value(self, task: str, metric: str) -> float | None:
        """Return a metric's value of the model that came out."""
        return None if self.result is None else self.result.value(task, metric)


def is_run(folder: Path) -> bool:
    """Whether a folder holds the record of a run."""
    return (folder / RUN).is_file()


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of a run, None where there is none.

    Raises:
        BallastError: it cannot be used.
    """
    try:
        return read(folder / RUN, RunRecord, remedy=f"remove {folder} to have the run done again")
    except BallastError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_comparison(store: Store) -> list[Run]:
    """Return the base model where it was measured, then every run below the output, in the order of their paths.

    Raises:
        BallastError: a record cannot be used, or a finished run has no measurements.
    """
    base = _base(store)
    runs = [run for folder in store.run_folders() if (run := _run_of(store, folder)) is not None]
    return [*([base] if base is not None else []), *runs]


def read_cells(store: Store, cells: Iterable[CellRecord]) -> list[Run]:
    """Return those of some runs of fine-tuning that have a record; no other is looked at, which may be at work.

    Raises:
        BallastError: as `read_comparison`.
    """
    return [run for cell in cells if (run := _run_of(store, store.cell(cell.name))) is not None]


def _run_of(store: Store, folder: Path) -> Run | None:
    record = read_record(folder)
    if record is None or record.cell is None:
        return None
    stage = AFTER if folder.name == RL or folder.parent.name == RL else BEFORE
    run = _run(folder, store.below(folder), record, record.cell, stage)
    if record.status == "finished" and not run.done:
        raise BallastError(f"{folder}: is finished but has no {EVALS}; {AGAIN}")
    return run


def _base(store: Store) -> Run | None:
    entries = read_lines(store.base / EVALS, EvalRecord, remedy=f"remove {store.base} to have it measured again")
    if not entries:
        return None
    made = entries[-1]
    record = RunRecord(
        schema=SCHEMA,
        status="finished",
        recipe=made.recipe or {},
        versions=made.versions,
        commit=made.commit,
        device=made.device,
        inputs=made.inputs,
    )
    return base_run(_measured(store.base, entries)[made.model], record, store.base)


def base_run(measured: Measured, record: RunRecord, folder: Path) -> Run:
    """Return the base model as a run: it pairs with every seed."""
    return Run(BASE, folder, BASE, None, 0, REPORT, BEFORE, record, measured={BASE: measured}, result=measured)


def read_runs(folder: Path) -> list[Run]:
    """Return a run that belongs to no comparison, and after it the RL inside its folder where there is one.

    Raises:
        BallastError: a record cannot be used.
    """
    first = read_run(folder)
    return [first, *([read_run(folder / RL, after=first)] if is_run(folder / RL) else [])]


def read_run(folder: Path, *, after: Run | None = None) -> Run:
    """Return a run, labelled by its objective, or like the fine-tuning that this RL came `after`.

    Raises:
        BallastError: a record cannot be used.
    """
    record = read(folder / RUN, RunRecord)
    if after is not None:
        cell = CellRecord(label=after.label, rate=after.rate, seed=after.seed, role=REPORT)
    else:
        cell = record.cell or _identity(record, folder)
    stage = BEFORE if after is None and record.rl is None else AFTER
    return _run(folder, str(folder), record, cell, stage)


def _identity(record: RunRecord, folder: Path) -> CellRecord:
    objective, training = record.objective or {}, record.recipe.get("training")
    rate = training.get("learning_rate") if isinstance(training, dict) else None
    seed = record.recipe.get("seed")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise BallastError(f"{folder / RUN}: recipe.training.learning_rate is {rate!r}, not a number; run it again")
    return CellRecord(
        label=str(objective.get("name", folder.name)),
        rate=None if rate is None else float(rate),
        seed=seed if isinstance(seed, int) else 0,
        role=REPORT,
    )


def _run(folder: Path, path: str, record: RunRecord, cell: CellRecord, stage: str) -> Run:
    log = read_lines(folder / METRICS, LogRecord, torn_end=record.status != "finished", remedy=AGAIN)
    measured = _measured(folder, read_lines(folder / EVALS, EvalRecord, remedy=AGAIN))
    own = [found for name, found in measured.items() if name not in STARTS]
    return Run(
        path,
        folder,
        cell.label,
        cell.rate,
        cell.seed,
        cell.role,
        stage,
        record,
        log=tuple(log),
        measured=measured,
        result=own[-1] if own else None,
        steps=cell.steps,
    )


def _tasks(recipe: Values) -> bool:
    evaluation = recipe.get("evaluation")
    return isinstance(evaluation, dict) and bool(evaluation.get("tasks"))


def _measured(folder: Path, entries: Iterable[EvalRecord]) -> dict[str, Measured]:
    """Return what was measured of each model: of one that was measured again the last, whose answers are there."""
    last = {entry.model: entry for entry in entries}
    return {name: _with_items(folder / "evals" / file_name(name), entry) for name, entry in last.items()}


def _with_items(folder: Path, entry: EvalRecord) -> Measured:
    tasks = {task.name: task for task in entry.tasks}
    rows = {name: read_lines(folder / f"{file_name(name)}.jsonl", ItemRecord, remedy=AGAIN) for name in tasks}
    scored = {name: found for name, found in rows.items() if found and all(row.scores for row in found)}
    return Measured(
        tasks,
        scores={name: tuple(row.scores or () for row in found) for name, found in scored.items()},
        items={name: _per_item(tasks[name].metrics, found) for name, found in scored.items()},
        prompts={name: tuple(_text(row.prompt) for row in found) for name, found in scored.items()},
        engine=entry.engine,
    )


def _text(prompt: JsonValue) -> str:
    return json.dumps(prompt, ensure_ascii=False)


def _per_item(metrics: Iterable[str], rows: Sequence[ItemRecord]) -> dict[str, Array]:
    scores = [row.scores or () for row in rows]
    found = {metric: per_item(metric, scores) for metric in metrics}
    found |= {metric: _distinct(metric, rows) for metric in metrics if metric.startswith("distinct@")}
    if all(row.read is not None for row in rows):
        found |= {metric: _voted(metric, rows) for metric in metrics if metric.startswith("maj@")}
    return {metric: column for metric, column in found.items() if column is not None}


def per_item(metric: str, scores: Sequence[Sequence[float]]) -> Array | None:
    """Return a metric's value of every item, None for one that is no mean over items of its scores."""
    if metric == "accuracy" or metric.startswith("mean@"):
        return np.array([sum(given) / len(given) for given in scores])
    if metric.startswith("pass@"):
        k = int(metric.removeprefix("pass@"))
        return np.array([pass_at_k(len(given), sum(score >= 1.0 for score in given), k) for given in scores])
    if metric.startswith("mixed@"):
        return np.array([mixed_share(given, int(metric.removeprefix("mixed@"))) for given in scores])
    return None


def _voted(metric: str, rows: Sequence[ItemRecord]) -> Array:
    k = int(metric.removeprefix("maj@"))
    return np.array([maj_at_k(row.read or (), row.scores or (), k) for row in rows])


def _distinct(metric: str, rows: Sequence[ItemRecord]) -> Array:
    k = int(metric.removeprefix("distinct@"))
    return np.array([distinct_answers([one.text for one in row.completions], k) for row in rows])
