"""`ballast compare`: the whole matrix, from a recipe to a summary; run again, it goes on where it was stopped."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ballast.compare.cells import cell_recipe
from ballast.compare.choose import chosen_rates, swept
from ballast.compare.jobs import FINE_TUNE, REINFORCE, Bench, Work, make_random, measure_start
from ballast.compare.plan import RANDOM, REPORT, TUNING, Cell, Part, Plan
from ballast.compare.pool import Here, Processes, runner
from ballast.compare.progress import Board, Slot, slot_of
from ballast.compare.summary import summarise
from ballast.compare.worker import settle
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.protocols import Say
from ballast.records import write as records
from ballast.records.folder import Store, room, writing
from ballast.records.runs import read_runs

SMALL = 100 * 2**20
"""Bytes of weights below which a model only waits for further threads."""
MOST_JOBS = 4
"""Processes that are started unasked; each holds the libraries, the better part of a gigabyte."""


def run_compare(
    recipe: Recipe, *, part: Part | None = None, jobs: int | None = 1, say: Say = print, console: Any = None
) -> dict[str, Any]:
    """Run what is missing of the recipe's matrix, write ``summary.json`` into its output, and return it.

    Args:
        part: do only this part; the summary is then of what lies in the output.
        jobs: works at a time, each in a process of its own; 1 stays in this process. None takes one for each core, up
            to `MOST_JOBS`, where there is no accelerator and the model so small that it uses a single core.
        say: what prints lines.
        console: a rich console; on a terminal it shows a live table instead of lines.

    Raises:
        BallastError: the input cannot be used, or the output belongs to another comparison or process.
    """
    plan, part = Plan(recipe), part or Part()
    part.check(plan)
    store = Store(Path(str(recipe.output)))
    threads = 1 if _is_small(plan) else None
    jobs = _jobs(threads) if jobs is None else jobs
    settle(threads)
    with _alone(store):
        bench = Bench(plan, store, _budget_steps(plan))
        _write_plan(bench)
        board = _board(bench, part, say, jobs)
        with room(store.root):
            _prepare(bench, part, say)
        with board.shown(console), runner(bench, jobs, threads) as run:
            _run(bench, part, board, run)
        return write_summary(store, plan)


def write_summary(store: Store, plan: Plan) -> dict[str, Any]:
    """Make ``summary.json`` of what lies in the output, and return it."""
    summary = summarise(plan, *read_runs(store))
    with writing(store.summary):
        records.write_json(store.summary, summary)
    return summary


def load_plan(output: str | Path) -> Plan:
    """Return the matrix of an output.

    Raises:
        BallastError: the folder is no comparison's.
    """
    import json

    path = Store(Path(output)).plan
    try:
        return Plan(Recipe.model_validate(json.loads(path.read_text(encoding="utf-8"))["recipe"]))
    except (OSError, ValueError, KeyError) as error:
        raise BallastError(f"{path}: cannot be read, so this is no comparison's output ({error})") from error


def _run(bench: Bench, part: Part, board: Board, run: Here | Processes) -> None:
    plan = bench.plan
    tuning = [cell for row in plan.methods for cell in plan.tuning(row.label)]
    run.each(_open(bench, _trainings(plan, part, tuning)), board)
    rates = _choose(bench, board)
    _write_plan(bench, rates)
    trainings = _trainings(plan, part, plan.report(rates))
    run.each(_open(bench, trainings), board)
    if plan.rl:
        # A run that broke off leads nowhere.
        there = [work for work in trainings if not bench.has_failed(work)]
        run.each(_open(bench, _reinforcements(plan, part, there)), board)


def _trainings(plan: Plan, part: Part, cells: list[Cell]) -> list[Work]:
    return [Work(FINE_TUNE, cell.seed, cell) for cell in cells if part.takes(plan, cell)]


def _reinforcements(plan: Plan, part: Part, trainings: list[Work]) -> list[Work]:
    """Return the RL that follows the start and each of some runs."""
    starts = [Work(REINFORCE, seed) for seed in plan.seeds if part.takes_base(plan, seed)]
    after = [Work(REINFORCE, work.seed, work.cell) for work in trainings if work.cell and plan.followed(work.cell)]
    return sorted([*starts, *after], key=lambda work: work.seed)


def _open(bench: Bench, works: list[Work]) -> list[Work]:
    return [work for work in works if not bench.is_done(work)]


def _choose(bench: Bench, board: Board) -> dict[str, float]:
    """Return the rate of every row whose tuning is there, and tell of those that were chosen."""
    plan = bench.plan
    runs, failures = read_runs(bench.store)
    _check_measured(plan, [run for run in runs if run.role == TUNING])
    rates = chosen_rates(plan, runs, failures)
    for row in plan.methods:
        if row.label not in rates:
            continue
        sweep = [swept(plan, row.label, rate, runs, failures) for rate in row.rates] if len(row.rates) > 1 else []
        means = ", ".join(f"{one['rate']:g}: {_number(one['score']['value'])}" for one in sweep)
        board.chose(row.label, rates[row.label], f"chosen by {_by(plan)} ({means})" if means else "")
    return rates


def _by(plan: Plan) -> str:
    assert plan.compare.choose_by is not None
    return f"{plan.compare.choose_by.task} {plan.compare.choose_by.metric}"


def _check_measured(plan: Plan, runs: list[Any]) -> None:
    by = plan.compare.choose_by
    lacking = [run for run in runs if by is not None and by.metric not in run.tasks[by.task]["metrics"]]
    if lacking and by is not None:
        known = ", ".join(lacking[0].tasks[by.task]["metrics"])
        raise BallastError(f"compare.choose_by.metric: task {by.task!r} does not measure {by.metric!r}, only {known}")


def _prepare(bench: Bench, part: Part, say: Say) -> None:
    """Do once what all runs share: statistics of the reference, the start's measurements, random weights."""
    from ballast.pipeline import run_score

    plan, store = bench.plan, bench.store
    cells = [Cell(row.label, row.rates[0], plan.recipe.seed, REPORT) for row in plan.methods]
    recipes = [cell_recipe(plan, cell, store, steps=bench.steps) for cell in cells]
    cached = next((recipe for recipe in recipes if recipe.reference.cache is not None), None)
    if cached is not None:
        run_score(cached, say=say)
    if part.takes_base(plan) and plan.recipe.evaluation.base:
        if not (store.base / records.EVALS).exists():
            say("base: is being measured")
        measure_start(bench, progress=False)
    if any(row.label == RANDOM and row.random for row in plan.methods):
        for seed in plan.seeds:
            make_random(plan, seed, store.random(seed))


def _board(bench: Bench, part: Part, say: Say, jobs: int) -> Board:
    """Return the display, with what an earlier process did counted as done."""
    plan, store = bench.plan, bench.store
    runs, failures = read_runs(store)
    rates = chosen_rates(plan, runs, failures)
    totals: Counter[Slot] = Counter()
    done: Counter[Slot] = Counter()
    took: defaultdict[Slot, list[float]] = defaultdict(list)
    tuning = [cell for row in plan.methods for cell in plan.tuning(row.label)]
    # Rates that are not chosen yet stand in by the first: the number of runs is the same.
    report = plan.report({row.label: rates.get(row.label, row.rates[0]) for row in plan.methods})
    trainings = _trainings(plan, part, [*tuning, *report])
    works = trainings + (_reinforcements(plan, part, trainings) if plan.rl else [])
    for work in works:
        totals[slot_of(work)] += 1
        known = work.cell is None or work.cell.role == TUNING or work.label in rates
        if known and bench.is_done(work):
            done[slot_of(work)] += 1
            took[slot_of(work)] += [seconds for seconds in [bench.seconds(work)] if seconds is not None]
    return Board(totals, done, took=took, say=say, score=lambda work: _score(bench, work), jobs=jobs)


def _score(bench: Bench, work: Work) -> str:
    """Return a run's first metric with its interval over items, to be seen while it runs."""
    entries = records.read_jsonl(work.folder(bench.store) / records.EVALS)
    if not entries or not entries[-1]["tasks"]:
        return "done"
    task = entries[-1]["tasks"][0]
    metric, estimate = next(iter(task["metrics"].items()))
    interval = "" if estimate["low"] is None else f" ({_number(estimate['low'])} to {_number(estimate['high'])})"
    return f"{task['name']} {metric} {_number(estimate['value'])}{interval}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _write_plan(bench: Bench, rates: dict[str, float] | None = None) -> None:
    plan = bench.plan
    cells = [cell for row in plan.methods for cell in plan.tuning(row.label)] + plan.report(rates or {})
    made = {
        "recipe": plan.recipe.resolved(),
        "versions": records.versions(),
        "commit": records.git_commit(),
        "steps": bench.steps,
        "cells": [{"name": cell.name, **cell.record()} for cell in cells],
    }
    with writing(bench.store.plan):
        records.write_json(bench.store.plan, made)


def _budget_steps(plan: Plan) -> int | None:
    """Return the optimiser steps of the budget; of tokens, by how many the prepared rows have."""
    budget = plan.compare.budget
    if budget is None or budget.steps is not None:
        return None if budget is None else budget.steps
    from ballast.pipeline.prepare import ready

    store = Store(Path(str(plan.recipe.output)))
    cells = [Cell(row.label, row.rates[0], plan.recipe.seed, REPORT) for row in plan.methods]
    recipes = [cell_recipe(plan, cell, store, steps=1) for cell in cells]
    made = ready(next(recipe for recipe in recipes if recipe.groups is None), lambda _: None)
    assert made.train is not None
    assert budget.tokens is not None
    report, args = made.train.report, made.args
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    epoch = math.ceil(report.rows_out / per_step)
    return max(1, round(budget.tokens / report.tokens * epoch))


def _jobs(threads: int | None) -> int:
    import torch

    if threads is None or torch.accelerator.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_JOBS)


def _is_small(plan: Plan) -> bool:
    from ballast import models

    assert plan.recipe.model is not None
    folder = Path(models.resolve(plan.recipe.model).path)
    weights = [file.stat().st_size for file in folder.glob("*.safetensors")] if folder.is_dir() else []
    return bool(weights) and sum(weights) < SMALL


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Keep other processes off the output: each would take the other's unfinished runs for its own leftovers."""
    from filelock import FileLock, Timeout

    with writing(store.root):
        store.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.root / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BallastError(
            f"{store.root}: another process is at work on this comparison; wait for it, or give each part an output of "
            "its own (--only 1/2 output=…) and copy the cells together"
        ) from error
    try:
        for leftover in store.root.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
