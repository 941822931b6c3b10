"""Runs of `ballast train` that belong to no comparison: their labels, and a summary as a comparison has it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ballast.compare.plan import BASE, REPORT, Method
from ballast.compare.summary import summarise
from ballast.config.recipe import Recipe, TaskSection
from ballast.config.sections import CompareSection, MethodSection
from ballast.errors import BallastError
from ballast.records import runs as read
from ballast.records.runs import BEFORE
from ballast.report.runs import FINISHED, Measured, Run

OWN_TO_A_RUN = ("output", "seed", "compare")
"""Sections in which the seeds of one setting differ."""


def labelled(runs: Sequence[Run]) -> list[Run]:
    """Return the runs under labels that tell them apart: the objective's name, or the folder's where that repeats.

    Runs that differ in their seed alone keep one label: they are seeds of one setting.

    Raises:
        BallastError: two runs of one setting have the same seed too.
    """
    settings: dict[str, list[str]] = {}
    for run in runs:
        settings.setdefault(run.label, [])
        if _setting(run) not in settings[run.label]:
            settings[run.label].append(_setting(run))
    named = [run if len(settings[run.label]) == 1 else replace(run, label=_own_name(run)) for run in runs]
    seen: dict[tuple[str, int, str], Run] = {}
    for run in named:
        other = seen.setdefault((run.label, run.seed, run.stage), run)
        if other is not run:
            raise BallastError(
                f"{run.folder}: is the same setting with the same seed as {other.folder}, which would count as two "
                "seeds; name one of them"
            )
    return named


def _own_name(run: Run) -> str:
    return run.folder.name if run.stage == BEFORE or run.folder.name != "rl" else run.folder.parent.name


def _setting(run: Run) -> str:
    recipe = {key: value for key, value in run.record.get("recipe", {}).items() if key not in OWN_TO_A_RUN}
    # Samples have a seed of their own for every run, and only some runs measure the start.
    evaluation = recipe.pop("evaluation", None) or {}
    tasks = [{key: value for key, value in task.items() if key != "seed"} for task in evaluation.get("tasks") or []]
    return json.dumps([recipe, tasks, run.stage], sort_keys=True, default=str)


@dataclass(frozen=True)
class LoosePlan:
    """What `ballast.compare.summary` asks of a matrix, for runs that belong to none: nothing was chosen or planned."""

    baseline: str
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    names: tuple[str, ...]
    compare: CompareSection
    recipe: Recipe = field(default_factory=Recipe)
    tuning_seeds: tuple[int, ...] = ()
    rl: bool = False
    sign: int = 0

    def tasks(self, role: str) -> tuple[TaskSection, ...]:
        """Return every task, each by its name alone."""
        return tuple(TaskSection(name=name, data=name) for name in self.names)

    def tuning(self, label: str) -> list[Any]:
        """Return nothing: no run chose a rate."""
        return []

    def report(self, rates: Mapping[str, Any]) -> list[Any]:
        """Return nothing: no run was planned."""
        return []


def summary(runs: Sequence[Run], start: Measured | None) -> dict[str, Any]:
    """Return what `ballast.compare.summary` makes of these runs; differences are to ``sft``, else to the first label.

    Raises:
        BallastError: a task was measured with other settings in one run than in another.
    """
    done = [run for run in runs if run.status == FINISHED and run.result is not None]
    _check_settings(done, start)
    plan = _plan(runs, start)
    results = [_result(run, run.result) for run in done if run.result is not None]
    if start is not None:
        results.append(_start(start))
    made = summarise(plan, results)  # type: ignore[arg-type]
    missing = [run.folder.name for run in runs if run.status != FINISHED]
    return {**made, "missing": missing, "complete": not missing}


def _plan(runs: Sequence[Run], start: Measured | None) -> LoosePlan:
    labels = list(dict.fromkeys(run.label for run in runs))
    sections = {label: MethodSection(name=label) for label in labels}
    methods = tuple(Method(label, sections[label], (_rate(runs, label),)) for label in labels)  # type: ignore[arg-type]
    measured = [one for one in (start, *(run.result for run in runs)) if one is not None]
    return LoosePlan(
        baseline=next((run.label for run in runs if _name(run) == "sft"), labels[0]),
        methods=methods,
        seeds=tuple(sorted({run.seed for run in runs})),
        names=tuple(dict.fromkeys(name for one in measured for name in one.tasks)),
        compare=CompareSection(objectives=tuple(sections.values()), rates=(1.0,)),
    )


def _name(run: Run) -> Any:
    return (run.record.get("objective") or {}).get("name")


def _rate(runs: Iterable[Run], label: str) -> float | None:
    return next((run.rate for run in runs if run.label == label), None)


def _check_settings(runs: Sequence[Run], start: Measured | None) -> None:
    """Refuse to put figures of different tasks into one column because the tasks share a name."""
    first: dict[str, tuple[str, str]] = {}
    parts = [(str(run.folder), run.result) for run in runs] + [("the start", start)]
    for where, measured in parts:
        for name, task in (measured.tasks if measured is not None else {}).items():
            settings = json.dumps({k: v for k, v in task["settings"].items() if k != "seed"}, sort_keys=True)
            there = first.setdefault(name, (where, settings))
            if there[1] != settings:
                raise BallastError(
                    f"{where}: task {name!r} was measured with other settings than in {there[0]}, so the figures "
                    "answer different questions; measure them alike with `ballast evaluate`"
                )


def _result(run: Run, measured: Measured) -> read.Run:
    items, prompts = _items(measured)
    provenance = {key: run.record.get(key) for key in ("versions", "commit", "device")}
    return read.Run(
        path=str(run.folder),
        label=run.label,
        rate=run.rate,
        seed=run.seed,
        role=REPORT,
        stage=run.stage,
        tasks=measured.tasks,
        items=items,
        prompts=prompts,
        budget=_budget(run),
        objective=run.record.get("objective"),
        provenance=provenance,
    )


def _start(measured: Measured) -> read.Run:
    items, prompts = _items(measured)
    budget = {"steps": 0, "tokens": 0, "seconds": 0.0}
    return read.Run(BASE, BASE, None, 0, read.START, BEFORE, measured.tasks, items, prompts, budget, None, {})


def _items(measured: Measured) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, tuple[str, ...]]]:
    values = {}
    for task, scores in measured.scores.items():
        rows = [list(given) for given in scores]
        found = {metric: read.per_item(metric, rows) for metric in measured.tasks[task]["metrics"]}
        values[task] = {metric: column for metric, column in found.items() if column is not None}
    return values, dict(measured.prompts)


def _budget(run: Run) -> dict[str, float | None]:
    last: dict[str, Any] = {key: value for log in run.metrics for key, value in log.items()}
    seconds: Mapping[str, Any] = run.record.get("seconds") or {}
    return {"steps": last.get("step"), "tokens": last.get("num_tokens"), "seconds": seconds.get("train")}
