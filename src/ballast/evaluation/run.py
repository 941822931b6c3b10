"""Run tasks on a model and keep the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ballast.errors import BallastError
from ballast.evaluation import harness
from ballast.evaluation.generation import Sampler
from ballast.evaluation.kinds import KINDS, Context, Rows
from ballast.evaluation.readiness import check_beside
from ballast.evaluation.results import TaskResult, write_items, write_results
from ballast.evaluation.tasks import LmEvalTask, ReadinessTask, Task
from ballast.files import file_name, same_file
from ballast.limits import check_tokenizer
from ballast.protocols import Progress
from ballast.ranks import ALONE, Ranks

ROWS_BESIDE = 512
"""Demonstrations, and texts, that a task of kind ``readiness`` reads unless it has a limit."""

TaskProgress = Callable[[str, int, int], None]
"""Called with (task name, rows or sequences done, rows or sequences in all)."""


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task | Mapping[str, Any]],
    *,
    base: Any = None,
    output: str | Path | None = None,
    items: str | Path | None = None,
    extra: Mapping[str, Any] | None = None,
    revisers: Mapping[str, tuple[Any, Any]] | None = None,
    sampler: Sampler | None = None,
    progress: TaskProgress | None = None,
    ranks: Ranks = ALONE,
) -> list[TaskResult]:
    """Return one result per task.

    All rows of all tasks are read and checked before the first answer is generated.

    Args:
        model: a transformers causal language model, PEFT-wrapped or not.
        tokenizer: its tokenizer.
        tasks: `Task` objects or mappings as in a recipe.
        base: the model before training (or a `ballast.reference` provider), for tasks with `base_kl`.
        output: JSON file for the results.
        items: folder for one JSONL file per task, with every prompt, answer and score.
        extra: JSON-able values to keep beside the results.
        revisers: model and tokenizer of every ``revise.reviser`` that tasks name.
        sampler: what generates answers in place of `ballast.evaluation.generate`, with its signature.
        progress: called with (task name, done, total).
        ranks: who shares the work (`ballast.ranks.join`); all get the results, and the first writes them.

    Raises:
        BallastError: for a bad task or row, naming it; nothing has been generated or written by then.
    """
    resolved = [task if isinstance(task, Task) else Task(**task) for task in tasks]
    _check_names(resolved)
    check_tokenizer(type(model).__name__, model.config, tokenizer)
    loaded = [(task, _checked_rows(task, base, revisers or {})) for task in resolved]
    results = [
        _run(
            task,
            rows,
            Context(model, tokenizer, base, _told(progress, task), beside, revisers or {}, sampler, ranks),
        )
        for task, (rows, beside) in loaded
    ]
    if items is not None and ranks.main:
        for result in results:
            write_items(Path(items) / f"{file_name(result.name)}.jsonl", result)
    if output is not None and ranks.main:
        write_results(output, results, extra=extra)
    return results


def load_task_rows(task: Task) -> list[Mapping[str, Any]]:
    """Return the rows of a task, up to its limit.

    Raises:
        BallastError: if there is none, or the source cannot be read.
    """
    try:
        if isinstance(task, LmEvalTask):
            return harness.rows(task) if isinstance(task.data, str) or not task.data else list(task.data)
        return _read(task.data, task.limit, split=task.split, columns=task.columns)
    except BallastError as error:
        raise BallastError(f"task {task.name!r}: {error}") from error


def _read(source: str | Rows, limit: int | None, **reading: Any) -> list[Mapping[str, Any]]:
    if isinstance(source, str):
        from ballast.data import load_rows

        rows = list(load_rows(source, limit=limit, **reading))
    elif hasattr(source, "column_names"):  # a data set, whose columns may hold nulls that no row has
        from ballast.data.exact import as_stored

        rows = list(as_stored(source))[:limit]
    else:
        rows = list(source)[:limit]
    if not rows:
        raise BallastError("no rows to evaluate on")
    return rows


def load_rows_beside(task: Task) -> dict[str, Rows]:
    """Return the further rows that a task measures, by option; none for most kinds.

    The first `limit` rows of each, `ROWS_BESIDE` where there is no limit: likelihoods need fewer rows than scores.

    Raises:
        BallastError: if a source has none, or cannot be read.
    """
    if not isinstance(task, ReadinessTask):
        return {}
    found: dict[str, Rows] = {}
    for name, source in (("demonstrations", task.demonstrations), ("forgetting", task.forgetting)):
        if source is None:
            continue
        try:
            # `columns` and `split` are those of the prompts.
            found[name] = _read(source, task.limit or ROWS_BESIDE)
        except BallastError as error:
            raise BallastError(f"task {task.name!r}: {name}: {error}") from error
    return found


def check_rows(task: Task, rows: Rows, beside: Mapping[str, Rows]) -> None:
    """Refuse rows that the task cannot measure.

    Raises:
        BallastError: naming the task and the first such row.
    """
    try:
        KINDS[task.kind].check(task, rows)
        check_beside(beside)
    except BallastError as error:
        raise BallastError(f"task {task.name!r}: {error}") from error


def _run(task: Task, rows: Rows, context: Context) -> TaskResult:
    start = time.perf_counter()
    try:
        measured, counts, items = KINDS[task.kind].measure(task, rows, context)
    except BallastError as error:
        raise BallastError(f"task {task.name!r}: {error}") from error
    counts = {"rows": len(rows), **counts}
    return TaskResult(
        task.name, task.kind, measured, counts, task.settings(), time.perf_counter() - start, tuple(items)
    )


def _told(progress: TaskProgress | None, task: Task) -> Progress | None:
    return None if progress is None else lambda done, total: progress(task.name, done, total)


def _check_names(tasks: Sequence[Task]) -> None:
    if clash := same_file(task.name for task in tasks):
        names = f"{clash[1]!r} and {tasks[clash[0]].name!r}"
        raise BallastError(f"tasks {names} would be kept in one file, one result over the other; rename one")


def _checked_rows(task: Task, base: Any, revisers: Mapping[str, Any]) -> tuple[Rows, dict[str, Rows]]:
    if task.needs_base and base is None:
        raise BallastError(f"task {task.name!r}: base_kl needs the base model, and none is given")
    if (reviser := task.reviser) is not None and reviser not in revisers:
        raise BallastError(f"task {task.name!r}: revise.reviser {reviser} is not given; pass it in revisers")
    rows, beside = load_task_rows(task), load_rows_beside(task)
    check_rows(task, rows, beside)
    return rows, beside
