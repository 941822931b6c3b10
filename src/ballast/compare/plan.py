"""From a recipe to the runs of a comparison: which objective, rate and seed, for what, and the recipe of each.

A rate is chosen by separate runs (other seeds) on a separate task; what is reported was chosen by nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from ballast.config.recipe import DataSection, EvaluationSection, ModelSection, Recipe, ReferenceSection
from ballast.config.sections import CompareSection, MethodSection, ObjectiveSection
from ballast.errors import BallastError
from ballast.evaluation.tasks import SampledTask, Task
from ballast.groups.options import ROUND
from ballast.objectives import Objective
from ballast.records.folder import RANDOM, REPORT, TUNING, Store
from ballast.records.schema import CellRecord, Role
from ballast.statistics import is_pair
from ballast.stats import GROUP_FIELDS

TUNING_OFFSET = 1000
"""Distance of the tuning seeds from the reported ones: constant, so that more seeds can be added later."""

LENGTH = ("max_steps", "num_train_epochs")
"""Training settings that say how long a run is; a row that has one is not bound by the budget."""

PROMPTS = ("chat_template_path", "eos_token")
"""Training settings that change what a prompt is, or where an answer ends: all models of a table have the same."""

QUIET = {"save_strategy": "no", "report_to": "none"}
"""A run that was stopped is done again, so it needs no checkpoints; its record is kept here."""

BETTER: tuple[tuple[str, int], ...] = (
    (r"accuracy(_per_token|_per_character)?|mean@\d+|pass@\d+|maj@\d+", 1),
    (r"nll|bits_per_character|perplexity|base_kl|forgetting", -1),
    # Of kind lm-eval: TASK/METRIC, or TASK/METRIC,FILTER.
    (r"[^/]+/(\w*acc(_norm|_mutual_info)?|exact_match|em|f1|mc1|mc2)(,.+)?", 1),
    (r"[^/]+/(word_perplexity|byte_perplexity|bits_per_byte|perplexity)(,.+)?", -1),
)
"""Patterns of metrics, and whether more of them is better (1) or less (-1); of others neither is."""


def direction(metric: str) -> int:
    """Return 1 where more of a metric is better, -1 where less is, 0 where neither (entropy, answer length)."""
    return next((sign for pattern, sign in BETTER if re.fullmatch(pattern, metric)), 0)


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        label: its name in results and folders.
        section: its objective, and what it has instead of the recipe's groups and training.
        rates: learning rates to choose from; a single one is taken without tuning.
        random: whether it starts from random weights instead of the recipe's model.
    """

    label: str
    section: MethodSection
    rates: tuple[float, ...]
    random: bool = False


@dataclass(frozen=True)
class Plan:
    """The whole matrix. `tuning` lists the runs that choose, `report` those at the chosen rates."""

    recipe: Recipe

    @property
    def compare(self) -> CompareSection:
        """The recipe's section."""
        assert self.recipe.compare is not None
        return self.recipe.compare

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """The rows: the objectives as listed, then the one from random weights where asked."""
        section = self.compare
        rows = [Method(label_of(one), one, one.rates or section.rates) for one in section.objectives]
        if section.random:
            like = next(row for row in rows if row.label == self.baseline)
            # A floor, not a contestant: from nothing the largest step goes furthest.
            rows.append(Method(RANDOM, like.section, (max(like.rates),), random=True))
        return tuple(rows)

    @property
    def baseline(self) -> str:
        """The label that differences are taken to."""
        return baseline_of(self.compare)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the reported runs."""
        return tuple(self.recipe.seed + place for place in range(self.compare.seeds))

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds of the runs that choose a rate; never among `seeds`."""
        return tuple(self.recipe.seed + TUNING_OFFSET + place for place in range(self.compare.tuning_seeds))

    def method(self, label: str) -> Method:
        """Return the row of a label."""
        return next(row for row in self.methods if row.label == label)

    def tuning(self, label: str, rates: Sequence[float] | None = None) -> list[CellRecord]:
        """Return the runs that choose among some rates of a row (None: all), none where there is a single one."""
        rates = self.method(label).rates if rates is None else rates
        if len(rates) < 2:
            return []
        pairs = product(self.tuning_seeds, rates)
        return [CellRecord(label=label, rate=rate, seed=seed, role=TUNING) for seed, rate in pairs]

    def report(self, rates: Mapping[str, float]) -> list[CellRecord]:
        """Return the reported runs of the rows that have a rate, seed by seed, so that what is there pairs up."""
        pairs = product(self.seeds, [row.label for row in self.methods if row.label in rates])
        return [CellRecord(label=label, rate=rates[label], seed=seed, role=REPORT) for seed, label in pairs]

    def tasks(self, role: Role) -> tuple[Task, ...]:
        """Return the tasks that runs of a role are measured on: never the same ones."""
        chosen = None if self.compare.choose_by is None else self.compare.choose_by.task
        wanted = role == TUNING
        return tuple(task for task in self.recipe.evaluation.tasks if (task.name == chosen) == wanted)

    @property
    def rl(self) -> bool:
        """Whether RL follows the base model and every reported run of a method."""
        return self.compare.then is not None

    def followed(self, cell: CellRecord) -> bool:
        """Whether RL follows a run: not from random weights, whose answers earn no reward to learn from."""
        return self.rl and cell.role == REPORT and not self.method(cell.label).random

    @property
    def sign(self) -> int:
        """Whether more (1) or less (-1) of what chooses the rate is better; 0 where nothing is chosen."""
        return 0 if self.compare.choose_by is None else direction(self.compare.choose_by.metric)


def label_of(section: MethodSection) -> str:
    """Return a row's name: its label, else its objective's name without its module."""
    return section.label or re.split(r"[.:]", section.name)[-1]


def baseline_of(section: CompareSection) -> str:
    """Return the label that differences are taken to: the one named, else ``sft``'s, else the first."""
    labels = [label_of(one) for one in section.objectives]
    plain = next((label_of(one) for one in section.objectives if one.name == "sft"), labels[0])
    return section.baseline or plain


@dataclass(frozen=True)
class Part:
    """Part ``i`` of ``n`` of a matrix. A row that is tuned stays together: its rate depends on all of its runs."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part that ``i/n`` names.

        Raises:
            BallastError: it is not such a pair.
        """
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text.strip())
        if match is None or int(match[1]) > int(match[2]):
            raise BallastError(f"--only {text}: is not a part of a whole; write 1/2 on one machine and 2/2 on another")
        return cls(int(match[1]), int(match[2]))

    def check(self, plan: Plan) -> None:
        """Refuse more parts than there are things to do, and parts that need each other.

        Raises:
            BallastError: naming how many parts there can be, or what to do instead.
        """
        budget = plan.compare.budget
        if self.of > 1 and budget is not None and budget.halving is not None:
            raise BallastError(
                f"--only {self.number}/{self.of}: compare.budget.halving ranks all rows together, which no part could; "
                "run it whole, with --jobs or --ray, or set compare.budget.halving=false"
            )
        units = sum(1 for _ in _units(plan))
        if self.of > units:
            raise BallastError(
                f"--only {self.number}/{self.of}: some machines would have nothing to do; this matrix splits into at "
                f"most {units} parts"
            )

    def takes(self, plan: Plan, cell: CellRecord) -> bool:
        """Whether a run belongs to this part."""
        tuned = len(plan.method(cell.label).rates) > 1
        return self._takes(plan, (cell.label, None if tuned else cell.seed))

    def takes_base(self, plan: Plan, seed: int | None = None) -> bool:
        """Whether this part measures the base model, or, with a seed, follows it with RL."""
        return self.number == 1 if seed is None else (plan.seeds.index(seed) % self.of) + 1 == self.number

    def _takes(self, plan: Plan, unit: tuple[str, int | None]) -> bool:
        return list(_units(plan)).index(unit) % self.of + 1 == self.number


def _units(plan: Plan) -> Iterator[tuple[str, int | None]]:
    for row in plan.methods:
        yield from ((row.label, seed) for seed in ((None,) if len(row.rates) > 1 else plan.seeds))


def cell_recipe(plan: Plan, cell: CellRecord, store: Store, *, steps: int | None = None) -> Recipe:
    """Return what `pipeline.run_train` runs for a cell.

    Args:
        steps: optimiser steps of the budget, where the recipe has one.
    """
    method = plan.method(cell.label)
    start = store.random(cell.seed) if method.random else None
    return method_recipe(plan.recipe, method.section, steps=steps, cache=str(store.cache), start=start).model_copy(
        update={
            "training": {
                **_training(plan.recipe, method.section, steps),
                **({} if cell.steps is None else {"max_steps": cell.steps}),
                "learning_rate": cell.rate,
            },
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
            "model": recipe.model if start is None else _random_start(recipe.model, start),
            "data": row_data(recipe, section),
            "compare": None,
            "rl": None,
        }
    )


def row_data(recipe: Recipe, section: MethodSection) -> DataSection:
    """Return the data of a row: the recipe's, with the row's own training rows where it has some."""
    return recipe.data.model_copy(update={"train": section.data}) if section.data else recipe.data


def _random_start(model: ModelSection, start: Path) -> ModelSection:
    """Return the section of random weights in a folder, which are loaded as the recipe's model is."""
    return model.model_copy(update={"path": str(start), "revision": None})


def has_length(training: Mapping[str, Any]) -> bool:
    """Whether training settings say how long a run is."""
    return any(key in training for key in LENGTH)


def on_groups(objective: Objective) -> bool:
    """Whether an objective trains on groups of answers rather than on demonstrations."""
    return bool(set(objective.needs) & set(GROUP_FIELDS))


def seeded(tasks: tuple[Task, ...], seed: int) -> tuple[Task, ...]:
    """Return tasks that sample with other random numbers for every seed, and the same for every method.

    So the spread over seeds has the luck of sampling in it, and differences on a seed have less of it.
    """
    return tuple(_seeded(task, seed) for task in tasks)


def _seeded(task: Task, seed: int) -> Task:
    sampled = isinstance(task, SampledTask) and task.temperature
    return task.changed({"seed": task.seed + seed}) if sampled else task


def own_steps(plan: Plan, label: str, steps: int) -> int:
    """Return the steps of a row in a rung of some steps: as large a share of its own, where it has steps of its own."""
    budget, own = plan.compare.budget, plan.method(label).section.training.get("max_steps")
    assert budget is not None
    assert budget.steps is not None
    return steps if own is None else math.ceil(int(own) * steps / budget.steps)


def _training(recipe: Recipe, section: MethodSection, steps: int | None) -> dict[str, Any]:
    budget = {} if steps is None or has_length(section.training) else {"max_steps": steps}
    return {**QUIET, **recipe.training, **budget, **section.training}


def prompt_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe's training settings holds for models that are not trained by it, too."""
    return {key: recipe.training[key] for key in PROMPTS if key in recipe.training}


def _reference(reference: ReferenceSection, objective: Objective, cache: str | None) -> ReferenceSection:
    """Return the shared cache where it can serve; a live reference for whole distributions; what the recipe says."""
    if reference.use == ROUND and not on_groups(objective):
        return ReferenceSection()
    live = ReferenceSection(model=reference.model) if reference.cache else reference
    if on_groups(objective) or any(map(is_pair, objective.needs)):
        return live
    if reference.cache and reference.model:
        return reference
    if reference.model or reference.use != "auto" or cache is None:
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
            "training": prompt_settings(plan.recipe),
            "compare": None,
            "evaluation": EvaluationSection(tasks=seeded(plan.tasks(REPORT), seed), base=False),
            "output": str(output),
            "seed": seed,
        }
    )
