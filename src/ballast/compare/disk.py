"""What a comparison writes to disk, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator

from ballast.compare.jobs import JobContext
from ballast.compare.plan import Plan, cell_recipe
from ballast.config.training import training_config
from ballast.models import resolve
from ballast.pipeline import disk
from ballast.records.schema import CellRecord


def announced(context: JobContext, jobs: int) -> str:
    """Return a line on what the matrix writes, and how much is free.

    Counted are the models that stay, those of runs that choose a rate while they go, and checkpoints where the recipe
    keeps some; measurements and answers are small beside them.

    Args:
        jobs: how many runs go at a time.

    Raises:
        BallastError: less is free than that.
    """
    kept = [one for cell, one in _written(context) if _stays(context.plan, cell)]
    passing = sorted((one.total for cell, one in _written(context) if not _stays(context.plan, cell)), reverse=True)
    total = sum(one.total for one in kept) + sum(passing[:jobs])
    each = max((one.sizes.weights for one in kept), default=0)
    checkpoints = sum(one.checkpoints for one in kept)
    beside = f" and {checkpoints:,} checkpoints" if checkpoints else ""
    what = f"{len(kept):,} models of {disk.shown_bytes(each)}{beside}, {disk.shown_bytes(total)} in all"
    return disk.refuse_full(context.store.root, total, what)


def _stays(plan: Plan, cell: CellRecord) -> bool:
    return cell.role == "report" or plan.compare.keep_tuning


def _written(context: JobContext) -> Iterator[tuple[CellRecord, disk.Written]]:
    """Return what each run leaves: the one of a row like the other, RL after it as much as it began from."""
    plan = context.plan
    assert plan.recipe.model is not None
    first: disk.Written | None = None
    for row in plan.methods:
        cells = [*plan.tuning(row.label), *plan.report({row.label: row.rates[0]})]
        recipe = cell_recipe(plan, cells[0], context.store, steps=context.steps)
        args = training_config(recipe)
        one = disk.written(resolve(plan.recipe.model), args, max(0, args.max_steps), seed=recipe.seed)
        first = first or disk.Written(one.sizes)
        for cell in cells:
            yield cell, one
            if plan.followed(cell) or row.random:  # whose start is written too
                yield cell, disk.Written(one.sizes)
    if plan.rl and first is not None:
        yield from ((CellRecord(label="base", rate=None, seed=seed, role="report"), first) for seed in plan.seeds)
