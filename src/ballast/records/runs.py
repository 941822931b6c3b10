"""Run records as values: what each run scored, item by item where its answers were kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ballast.compare.plan import BASE
from ballast.errors import BallastError
from ballast.evaluation.metrics import pass_at_k
from ballast.evaluation.readiness import distinct_answers, mixed_share
from ballast.records import write as records
from ballast.records.folder import CELLS, MARK, RL, Store, read_run

BEFORE, AFTER = "before_rl", "after_rl"
FAILED = "failed"
START = "start"
"""Role of the recipe's model itself."""


@dataclass(frozen=True)
class Run:
    """One measured model.

    Attributes:
        path: its folder below the output.
        label, rate, seed, role: of its cell; the start has no rate.
        stage: `BEFORE` or `AFTER`.
        tasks: what ``evals.jsonl`` says of it: task -> the task's record.
        items: task -> metric -> one value per item, for tasks that keep their answers.
        prompts: task -> the items themselves, to pair by.
        budget: ``steps``, ``tokens`` read and ``seconds`` of training, as far as they are known.
        objective: its name with all of its options.
        provenance: ``versions``, ``commit``, ``device``.
    """

    path: str
    label: str
    rate: float | None
    seed: int
    role: str
    stage: str
    tasks: Mapping[str, Mapping[str, Any]]
    items: Mapping[str, Mapping[str, np.ndarray]] = field(repr=False)
    prompts: Mapping[str, tuple[str, ...]] = field(repr=False)
    budget: Mapping[str, float | None]
    objective: Mapping[str, Any] | None
    provenance: Mapping[str, Any]

    def value(self, task: str, metric: str) -> float | None:
        """Return a metric's value, None where it was not measured or is no number."""
        measured = self.tasks.get(task, {}).get("metrics", {}).get(metric)
        return None if measured is None else measured["value"]


@dataclass(frozen=True)
class Failure:
    """A run that broke off."""

    path: str
    label: str
    rate: float | None
    seed: int
    role: str
    stage: str
    error: str


def read_runs(store: Store) -> tuple[list[Run], list[Failure]]:
    """Return every run below the output that is done, and every one that failed, in the order of their paths.

    Raises:
        BallastError: a record cannot be read.
    """
    runs: list[Run] = []
    failures: list[Failure] = []
    for folder, stage in _folders(store):
        if (record := read_run(folder)) is not None:
            runs.append(_run(store, folder, record[MARK], stage, record))
        elif (failed := read_failure(folder)) is not None:
            failures.append(Failure(_below(store, folder), **_cell(failed[MARK]), stage=stage, error=failed["error"]))
    return [*_start(store), *runs], failures


def _start(store: Store) -> list[Run]:
    entries = read_lines(store.base / records.EVALS)
    return [_measured(store, store.base, _START, BEFORE, entries[0], entries[0])] if entries else []


_START = {"label": BASE, "rate": None, "seed": 0, "role": START}


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run that broke off, None where it did not."""
    try:
        record = json.loads((folder / records.RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    failed = isinstance(record, dict) and record.get("status") == FAILED and MARK in record
    return record if failed else None


def _folders(store: Store) -> Iterator[tuple[Path, str]]:
    for folder in _below_it(store.root / CELLS):
        yield folder, BEFORE
        yield folder / RL, AFTER
    for folder in _below_it(store.base / RL):
        yield folder, AFTER


def _below_it(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir())


def _run(store: Store, folder: Path, cell: Mapping[str, Any], stage: str, record: Mapping[str, Any]) -> Run:
    entries = read_lines(folder / records.EVALS)
    if not entries:
        raise BallastError(f"{folder}: is finished but has no {records.EVALS}; remove the folder to have it done again")
    return _measured(store, folder, cell, stage, record, entries[-1])


def _measured(
    store: Store,
    folder: Path,
    cell: Mapping[str, Any],
    stage: str,
    record: Mapping[str, Any],
    entry: Mapping[str, Any],
) -> Run:
    tasks = {task["name"]: task for task in entry["tasks"]}
    items, prompts = _items(folder, entry["model"], tasks)
    return Run(
        path=_below(store, folder),
        **_cell(cell),
        stage=stage,
        tasks=tasks,
        items=items,
        prompts=prompts,
        budget=_budget(folder, record),
        objective=record.get("objective"),
        provenance={key: record.get(key) for key in ("versions", "commit", "device")},
    )


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {key: cell[key] for key in ("label", "rate", "seed", "role")}


def _below(store: Store, folder: Path) -> str:
    return folder.relative_to(store.root).as_posix()


def _budget(folder: Path, record: Mapping[str, Any]) -> dict[str, float | None]:
    logs = records.read_jsonl(folder / records.METRICS)
    last = {key: value for log in logs for key, value in log.items()}
    tokens = last.get("num_tokens", last.get("tokens"))
    return {"steps": last.get("step"), "tokens": tokens, "seconds": (record.get("seconds") or {}).get("train")}


def _items(
    folder: Path, model: str, tasks: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, tuple[str, ...]]]:
    values: dict[str, dict[str, np.ndarray]] = {}
    prompts: dict[str, tuple[str, ...]] = {}
    for name, task in tasks.items():
        rows = read_lines(folder / "evals" / records.file_name(model) / f"{records.file_name(name)}.jsonl")
        if not rows or not all(row.get("scores") for row in rows):
            continue
        scores = [list(map(float, row["scores"])) for row in rows]
        found = {metric: per_item(metric, scores) for metric in task["metrics"]}
        found |= {metric: _distinct(metric, rows) for metric in task["metrics"] if metric.startswith("distinct@")}
        values[name] = {metric: column for metric, column in found.items() if column is not None}
        prompts[name] = tuple(json.dumps(row["prompt"], ensure_ascii=False) for row in rows)
    return values, prompts


def per_item(metric: str, scores: Sequence[Sequence[float]]) -> np.ndarray | None:
    """Return a metric's value of every item, None for one that is no mean over items of its scores."""
    if metric == "accuracy" or metric.startswith("mean@"):
        return np.array([sum(given) / len(given) for given in scores])
    if metric.startswith("pass@"):
        k = int(metric.removeprefix("pass@"))
        return np.array([pass_at_k(len(given), sum(score >= 1.0 for score in given), k) for given in scores])
    if metric.startswith("mixed@"):
        return np.array([mixed_share(given, int(metric.removeprefix("mixed@"))) for given in scores])
    return None


def _distinct(metric: str, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    k = int(metric.removeprefix("distinct@"))
    return np.array([distinct_answers([one["text"] for one in row["completions"]], k) for row in rows])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, none where there is no file.

    Raises:
        BallastError: it cannot be read.
    """
    try:
        return records.read_jsonl(path)
    except (OSError, ValueError) as error:
        raise BallastError(
            f"{path}: cannot be read ({error}); remove the run's folder to have it done again"
        ) from error
