"""Whether runs were made of the same rows and weights: what lies under a name may have changed since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ballast.compare.plan import Plan, row_data
from ballast.engines.options import DEFAULT
from ballast.errors import BallastError
from ballast.records.folder import RANDOM
from ballast.records.runs import Run
from ballast.records.schema import InputRecord

Inputs = Mapping[str, InputRecord]
"""By key: ``model``, ``data.train`` (``data.train of LABEL`` for a row's own), ``rl.data``, ``task NAME``. Runs of
earlier versions have none: they are taken."""


def current_inputs(plan: Plan) -> dict[str, InputRecord]:
    """Return what lies under the names of a recipe now."""
    from ballast.pipeline.digests import TRAIN, inputs_of, task_digest
    from ballast.pipeline.tasks import load_task

    found = inputs_of(plan.recipe.model_copy(update={"rl": None}))
    for row in plan.methods:
        if row.section.data:
            own = inputs_of(plan.recipe.model_copy(update={"rl": None, "data": row_data(plan.recipe, row.section)}))
            found[_of(TRAIN, row.label)] = own[TRAIN]
    if plan.compare.then is not None:
        found |= inputs_of(plan.recipe.model_copy(update={"rl": plan.recipe.rl_of(plan.compare.then)}))
    for task in plan.recipe.evaluation.tasks:
        source = ", ".join(task.sources().values())
        digest = task_digest(load_task(task, plan.recipe.data))
        found[f"task {task.name}"] = InputRecord(source=source, digest=digest)
    return found


def check_current(runs: Iterable[Run], current: Inputs) -> None:
    """Refuse to go on with runs that were made of something else than what lies there now.

    Raises:
        BallastError: naming the run, the key and the source.
    """
    for run in runs:
        for key, made_of in _inputs(run):
            named = [current[name] for name in (_of(key, run.label), key) if name in current]
            # RL after a row that has rows of its own may read the recipe's.
            now = next((one for one in named if one.source == made_of.source), current.get(key))
            if run.done and now is not None and now.digest != made_of.digest:
                raise BallastError(
                    f"{run.folder}: {key} ({now.source}) has changed since this run, whose results would be mixed with "
                    "those of other content; put the old content back, choose another output, or remove the folder to "
                    "have it done again"
                )


def check_alike(runs: Sequence[Run]) -> None:
    """Refuse a table of runs under whose common names other content lay.

    Raises:
        BallastError: naming both runs, the key and the source.
    """
    first: dict[tuple[str, str], tuple[Run, str]] = {}
    for run in runs:
        for key, made_of in _inputs(run):
            other, digest = first.setdefault((key, made_of.source), (run, made_of.digest))
            if digest != made_of.digest:
                raise BallastError(
                    f"{run.folder}: {key} ({made_of.source}) had other content than for {other.folder}, so the two do "
                    "not compare; run one of them again, or leave it out"
                )


def check_engines(runs: Sequence[Run]) -> None:
    """Refuse a table of answers of different engines: these round otherwise and draw other samples.

    Raises:
        BallastError: naming two runs and their engines.
    """
    first: tuple[Run, str] | None = None
    for run in runs:
        for found in () if run.result is None else run.measured.values():
            if not found.samples:
                continue
            # Records of versions without other engines name none.
            engine = DEFAULT if found.engine is None else found.engine.identity
            first = first or (run, engine)
            if engine != first[1]:
                raise BallastError(
                    f"{run.folder}: its answers were sampled by {engine}, those of {first[0].folder} by {first[1]}, "
                    "and a difference could be the engine's; measure both with one, or leave one out"
                )


def _of(key: str, label: str | None) -> str:
    return f"{key} of {label}"


def _inputs(run: Run) -> Iterator[tuple[str, InputRecord]]:
    # Each seed has random weights of its own.
    yield from ((key, one) for key, one in run.record.inputs.items() if (run.label, key) != (RANDOM, "model"))
    for name, task in run.result.tasks.items() if run.result is not None else ():
        source = str(task.settings.get("data"))
        if "rows" in task.counts:
            yield f"the number of rows of task {name}", InputRecord(source=source, digest=str(task.counts["rows"]))
        if task.rows is not None:
            yield f"task {name}", InputRecord(source=source, digest=task.rows)
