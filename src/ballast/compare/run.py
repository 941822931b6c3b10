"""`ballast compare`: the whole matrix, from a recipe to a summary; run again, it goes on where it was stopped."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ballast.compare.cluster import RayOptions, connected
from ballast.compare.disk import announced
from ballast.compare.halving import Course, course, short_cells
from ballast.compare.inputs import check_current, current_inputs
from ballast.compare.jobs import Job, JobContext, base_rl, row_recipes
from ballast.compare.numbers import counted
from ballast.compare.plan import Part, Plan
from ballast.compare.pool import Machine, Place, visible_gpus
from ballast.compare.progress import Board, Slot, slot_of
from ballast.compare.savings import forecast, left_at
from ballast.compare.schedule import Schedule
from ballast.compare.summary import is_planned, rates_on, summarise, sweep
from ballast.compare.worker import configure_process
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.pipeline.sources import read_once
from ballast.protocols import Say
from ballast.records.folder import BASE, TUNING, Store
from ballast.records.read import read, read_lines
from ballast.records.runs import Run, read_cells, read_comparison
from ballast.records.schema import SCHEMA, CellRecord, EvalRecord, PlanRecord
from ballast.records.summary import Summary
from ballast.records.write import EVALS, git_commit, unwritable_as_error, versions, write_json

if TYPE_CHECKING:
    from rich.console import Console

SMALL = 100 * 2**20
"""Bytes of weights below which a model only waits for further threads."""
MOST_JOBS = 4
"""Processes that are started unless the user says how many; each holds the libraries, the better part of a gigabyte."""


@read_once()
def run_compare(
    recipe: Recipe,
    *,
    part: Part | None = None,
    jobs: int | None = 1,
    ray: RayOptions | None = None,
    say: Say = print,
    console: Console | None = None,
) -> Summary:
    """Run what is missing of the recipe's matrix, write ``summary.json`` into its output, and return it.

    Args:
        part: do only this part; the summary is then of what lies in the output.
        jobs: how many run at a time, each in a process of its own that sees one GPU where there are any; 1 stays in
            this process unless there are several GPUs. None takes one for each GPU; without any one for each core, up
            to `MOST_JOBS`, where the model is so small that it uses a single core.
        ray: a cluster that does the runs, as many at a time as it has room for unless `jobs` says how many.
        say: what prints lines.
        console: on a terminal it shows a live table instead of lines.

    Raises:
        BallastError: the input cannot be used, or the output belongs to another comparison or process.
    """
    plan, part = Plan(recipe), part or Part()
    part.check(plan)
    store = Store(Path(str(recipe.output)))
    assert recipe.model is not None
    threads = _threads(recipe.model)
    configure_process(threads)
    with _locked(store), _place(ray, jobs, threads, say) as place:
        context = JobContext(plan, store, _budget_steps(plan), current_inputs(plan))
        runs = read_comparison(store)
        found = course(plan, runs)
        check_current([run for run in runs if is_planned(found, {}, run)], context.inputs)
        say(announced(context, place.count))
        if (line := forecast(plan)) is not None:
            say(line)
        board = _board(context, part, found, runs, say, place.count)
        # Only now: a recipe that the runs refuse leaves the plan as it was.
        choice = Choice(context, board, part)
        with board.shown(console), place.runner(context) as runner:
            runner.each(Schedule(context, part, choice), board)
        return write_summary(store, plan)


def write_summary(store: Store, plan: Plan) -> Summary:
    """Make ``summary.json`` of what lies in the output, and return it.

    Raises:
        BallastError: a record cannot be used, or the file cannot be written.
    """
    summary = summarise(plan, read_comparison(store))
    with unwritable_as_error(store.summary):
        write_json(store.summary, summary.plain())
    return summary


def load_plan(output: str | Path) -> Plan:
    """Return the matrix of an output.

    Raises:
        BallastError: the folder is no comparison's, or its recipe cannot be used.
    """
    path = Store(Path(output)).plan
    record = read(path, PlanRecord, remedy="name the output of `ballast compare`")
    try:
        return Plan(Recipe.model_validate(record.recipe))
    except ValueError as error:
        first = " ".join(str(error).split())
        raise BallastError(f"{path}: its recipe cannot be read ({first}); copy the folder again") from error


def _trainings(plan: Plan, part: Part, cells: Sequence[CellRecord]) -> list[Job]:
    return [Job(kind="train", cell=cell) for cell in cells if part.takes(plan, cell)]


def _reinforcements(plan: Plan, part: Part, trainings: Sequence[Job]) -> list[Job]:
    """Return the RL that follows the base model and each of some runs."""
    starts = [base_rl(seed) for seed in plan.seeds if part.takes_base(plan, seed)]
    after = [Job(kind="rl", cell=job.cell) for job in trainings if plan.followed(job.cell)]
    return sorted([*starts, *after], key=lambda job: job.cell.seed)


class Choice:
    """Says how far a halving came, chooses the rate of each row when its runs are over, and keeps ``compare.json``."""

    def __init__(self, context: JobContext, board: Board, part: Part) -> None:
        self._context, self._board, self._part = context, board, part
        self._course = course(context.plan, [])
        self._rates: dict[str, float] = {}
        self._versions, self._commit = versions(), git_commit()
        self._write()

    def course(self) -> Course:
        """Return how far the halving came; who left is shown."""
        plan, store = self._context.plan, self._context.store
        runs = read_cells(store, short_cells(plan))
        _check_measured(plan, runs)
        before, self._course = self._course.labels, course(plan, runs)
        for label in before:
            if (left := left_at(self._course, label)) is not None:
                self._board.dropped(
                    label, f"left after {counted(left.steps, 'step')}: {_chosen_by(plan)} {_number(left.score)}"
                )
        self._board.replan(_totals(_jobs_of(plan, self._part, self._course, self._rates)))
        self._write()
        return self._course

    def rate(self, label: str) -> float | None:
        """Return the rate of a row, None where none of its choosing runs is there; it is shown."""
        plan, found = self._context.plan, self._course
        runs = read_cells(self._context.store, found.tuning(label))
        _check_measured(plan, runs)
        rate = rates_on(found, runs).get(label)
        if rate is not None:
            points = sweep(found, label, runs)
            means = ", ".join(f"{one.rate:g}: {_number(one.score.value)}" for one in points)
            self._board.chose(label, rate, f"chosen by {_chosen_by(plan)} ({means})" if means else "")
            self._rates[label] = rate
            self._write()
        return rate

    def _write(self) -> None:
        """Keep what is compared, and the runs as far as they are known."""
        plan = self._context.plan
        record = PlanRecord(
            schema=SCHEMA,
            recipe=plan.recipe.resolved(),
            versions=self._versions,
            commit=self._commit,
            steps=self._context.steps,
            inputs=dict(self._context.inputs),
            cells=(*self._course.cells(), *plan.report(self._rates)),
        )
        with unwritable_as_error(self._context.store.plan):
            write_json(self._context.store.plan, record.plain())


def _chosen_by(plan: Plan) -> str:
    assert plan.compare.choose_by is not None
    return f"{plan.compare.choose_by.task} {plan.compare.choose_by.metric}"


def _check_measured(plan: Plan, tuning: Sequence[Run]) -> None:
    by = plan.compare.choose_by
    for run in tuning:
        task = None if by is None or run.result is None else run.result.tasks.get(by.task)
        if by is not None and task is not None and by.metric not in task.metrics:
            known = ", ".join(task.metrics)
            raise BallastError(
                f"compare.choose_by.metric: task {by.task!r} does not measure {by.metric!r}, only {known}"
            )


def _board(context: JobContext, part: Part, found: Course, runs: Sequence[Run], say: Say, jobs: int) -> Board:
    """Return the display, with what an earlier process did counted as done."""
    rates = rates_on(found, runs)
    done: Counter[Slot] = Counter()
    took: defaultdict[Slot, list[float]] = defaultdict(list)
    planned = _jobs_of(context.plan, part, found, rates)
    for job in planned:
        known = job.label == BASE or job.cell.role == TUNING or job.label in rates
        if known and context.is_done(job):
            done[slot_of(job)] += 1
            took[slot_of(job)] += [seconds for seconds in [context.seconds(job)] if seconds is not None]
    return Board(_totals(planned), done, took=took, say=say, score=lambda job: _score(context, job), jobs=jobs)


def _jobs_of(plan: Plan, part: Part, found: Course, rates: Mapping[str, float]) -> list[Job]:
    """Return the jobs of this part as far as they are known, at most: nobody else may leave."""
    # A row without its rate counts with its first one: the number of runs is the same.
    report = plan.report({label: rates.get(label, found.rates(label)[0]) for label in found.labels})
    trainings = _trainings(plan, part, [*found.most(), *report])
    return trainings + (_reinforcements(plan, part, trainings) if plan.rl else [])


def _totals(jobs: Sequence[Job]) -> Counter[Slot]:
    return Counter(map(slot_of, jobs))


def _score(context: JobContext, job: Job) -> str:
    """Return a run's first metric with its interval over items, to be seen while it runs."""
    entries = read_lines(job.folder(context.store) / EVALS, EvalRecord)
    if not entries or not entries[-1].tasks:
        return "done"
    task = entries[-1].tasks[0]
    metric, estimate = next(iter(task.metrics.items()))
    interval = "" if estimate.low is None else f" ({_number(estimate.low)} to {_number(estimate.high)})"
    return f"{task.name} {metric} {_number(estimate.value)}{interval}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _budget_steps(plan: Plan) -> int | None:
    """Return the optimiser steps of the budget; of tokens, by how many the prepared rows have."""
    budget = plan.compare.budget
    if budget is None or budget.steps is not None:
        return None if budget is None else budget.steps
    from ballast.pipeline.inputs import ready

    recipes = row_recipes(JobContext(plan, Store(Path(str(plan.recipe.output))), steps=1))
    measured = next((recipe for recipe in recipes if recipe.groups is None), None)
    if measured is None:
        raise BallastError("compare.budget.tokens: no row trains on demonstrations, whose tokens it could count")
    made = ready(measured, lambda _: None)
    assert made.train is not None
    assert budget.tokens is not None
    report, args = made.train.report, made.args
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    epoch = math.ceil(report.rows_out / per_step)
    return max(1, round(budget.tokens / report.tokens * epoch))


def runs_at_a_time(model: ModelSection) -> int:
    """Return how many runs of a model go at a time unless the user says how many."""
    return _jobs(_threads(model))


def _jobs(threads: int | None) -> int:
    import torch

    if torch.accelerator.is_available():
        return max(1, len(visible_gpus()))
    if threads is None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_JOBS)


@contextmanager
def _place(ray: RayOptions | None, jobs: int | None, threads: int | None, say: Say) -> Iterator[Place]:
    """Yield where the jobs are done."""
    if ray is None:
        yield Machine(_jobs(threads) if jobs is None else jobs, threads)
        return
    with connected(ray, jobs, threads, say) as cluster:
        yield cluster


def _threads(model: ModelSection) -> int | None:
    """Return the threads of each run, None where that is left to torch: a small model only waits for more than one."""
    from ballast import models

    folder = Path(models.resolve(model).path)
    weights = [file.stat().st_size for file in folder.glob("*.safetensors")] if folder.is_dir() else []
    return 1 if weights and sum(weights) < SMALL else None


@contextmanager
def _locked(store: Store) -> Iterator[None]:
    """Keep other processes off the output: each would take the other's unfinished runs for its own leftovers."""
    from filelock import FileLock, Timeout

    with unwritable_as_error(store.root):
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
