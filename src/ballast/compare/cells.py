"""The recipe of one run of a comparison: that of `ballast train`, with the run's objective, rate, seed and tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ballast.compare.plan import REPORT, Cell, Plan
from ballast.config.recipe import EvaluationSection, ModelSection, Recipe, ReferenceSection
from ballast.config.sections import MethodSection, ObjectiveSection
from ballast.evaluation.tasks import SampledTask, Task
from ballast.objectives import Objective
from ballast.records.folder import Store
from ballast.stats import GROUP_FIELDS, PAIR_FIELDS

LENGTH = ("max_steps", "num_train_epochs")
"""Training settings that say how long a run is; a row that has one goes its own way."""

QUIET = {"save_strategy": "no", "report_to": "none"}
"""A run that was stopped is done again, so it needs no checkpoints; its record is kept here."""


def cell_recipe(plan: Plan, cell: Cell, store: Store, *, steps: int | None = None) -> Recipe:
    """Return what `pipeline.run_train` runs for a cell.

    Args:
        steps: optimiser steps of the budget, where the recipe has one.
    """
    method = plan.method(cell.label)
    start = store.random(cell.seed) if method.random else None
    return method_recipe(plan.recipe, method.section, steps=steps, cache=str(store.cache), start=start).model_copy(
        update={
            "training": {**_training(plan.recipe, method.section, steps), "learning_rate": cell.rate},
            "evaluation": EvaluationSection(tasks=seeded(plan.tasks(cell.role), cell.seed), base=False),
            "output": str(store.cell(cell.name)),
            "seed": cell.seed,
        }
    )


def method_recipe(
    recipe: Recipe, section: MethodSection, *, steps: int | None = None, cache: str, start: Path | None = None
) -> Recipe:
    """Return the recipe of a row, as it is for all of its rates and seeds.

    Args:
        cache: folder of the reference's statistics, for objectives that a cache serves.
        start: another model to start from.
    """
    objective = section.build()
    assert recipe.model is not None
    groups = recipe.groups_of(section) if on_groups(objective) else None
    return recipe.model_copy(
        update={
            "objective": ObjectiveSection(name=section.name, **section.options),
            "groups": groups,
            "training": _training(recipe, section, steps),
            "reference": _reference(recipe.reference, objective, None if start else cache),
            "model": recipe.model if start is None else ModelSection(path=str(start), dtype=recipe.model.dtype),
            "compare": None,
            "rl": None,
        }
    )


def has_length(training: Mapping[str, Any]) -> bool:
    """Whether training settings say how long a run is."""
    return any(key in training for key in LENGTH)


def on_groups(objective: Objective) -> bool:
    """Whether an objective trains on groups of answers rather than on demonstrations."""
    return bool(set(objective.needs) & set(GROUP_FIELDS))


def seeded(tasks: tuple[Task, ...], seed: int) -> tuple[Task, ...]:
    """Return tasks with samples of their own for every seed, the same for every method.

    So the spread over seeds has the luck of sampling in it, and differences on a seed have less of it.
    """
    return tuple(_seeded(task, seed) for task in tasks)


def _seeded(task: Task, seed: int) -> Task:
    sampled = isinstance(task, SampledTask) and task.temperature
    return task.changed({"seed": task.seed + seed}) if sampled else task


def _training(recipe: Recipe, section: MethodSection, steps: int | None) -> dict[str, Any]:
    budget = {} if steps is None or has_length(section.training) else {"max_steps": steps}
    return {**QUIET, **recipe.training, **budget, **section.training}


def _reference(reference: ReferenceSection, objective: Objective, cache: str | None) -> ReferenceSection:
    """Return the shared cache where it can serve; a live reference for whole distributions; what the recipe says."""
    live = ReferenceSection() if reference.cache else reference
    if reference.model or reference.use != "auto" or cache is None:
        return live
    if set(objective.needs) & {*PAIR_FIELDS, *GROUP_FIELDS}:
        return live
    return ReferenceSection(cache=reference.cache or cache)


def rl_recipe(plan: Plan, seed: int, output: Path) -> Recipe:
    """Return what `pipeline.run_rl` runs: the same after every cell, and from the recipe's model itself."""
    assert plan.compare.then is not None
    return plan.recipe.model_copy(
        update={
            "rl": plan.recipe.rl_of(plan.compare.then),
            "objective": None,
            "groups": None,
            "reference": ReferenceSection(),
            "training": {},
            "compare": None,
            "evaluation": EvaluationSection(tasks=seeded(plan.tasks(REPORT), seed), base=False),
            "output": str(output),
            "seed": seed,
        }
    )
