"""What can be known to be wrong with a comparison before a weight is read or a file written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from ballast.compare.halving import lengths, pairs_of
from ballast.compare.numbers import counted
from ballast.compare.plan import (
    LENGTH,
    PROMPTS,
    Plan,
    direction,
    has_length,
    label_of,
    method_recipe,
    on_groups,
    row_data,
)
from ballast.config import training as settings
from ballast.config.recipe import Check, Recipe
from ballast.config.sections import ChooseSection, CompareSection, MethodSection
from ballast.config.source import Problem
from ballast.errors import BallastError, suggest
from ballast.evaluation.tasks import CodeTask, GenerateTask, Task
from ballast.files import place_problem
from ballast.objectives import Objective
from ballast.options import Where
from ballast.pipeline.checks import common as checks
from ballast.pipeline.checks import engine as engine_checks
from ballast.pipeline.checks import groups as group_checks
from ballast.pipeline.checks import half as half_checks
from ballast.pipeline.checks import quantised as quantised_checks
from ballast.pipeline.checks import rl as rl_checks
from ballast.pipeline.sources import TRAIN
from ballast.records.folder import BASE, CACHE, CELLS, JOBS_LOG, PLAN, REPORT, RESERVED, SUMMARY, TUNING
from ballast.verifiers.options import judge

OWN_FILES = (PLAN, SUMMARY, CELLS, BASE, CACHE, "report.html", "report.md", JOBS_LOG)
ROW_CHECKS: tuple[Check, ...] = (
    checks.check_reference,
    group_checks.check_groups,
    settings.check_training,
    half_checks.check_half,
)
LABEL = 100
"""Letters of a label: names of folders end at 255 bytes."""
ROWS, CHOOSE, HALVING = ("compare", "objectives"), ("compare", "choose_by"), ("compare", "budget", "halving")


def check_section(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether there is something to compare; labels, baseline, and what a matrix leaves no room for."""
    if "compare" in broken:
        return
    if recipe.compare is None:
        remedy = "say what to compare: compare.objectives=[sft, dft] compare.rates=[1e-4, 3e-4]"
        yield Problem(("compare",), f"is required and missing; {remedy}")
        return
    if recipe.objective is not None and "objective" not in broken:
        yield Problem(("objective",), "would be ignored: compare.objectives lists what is trained; leave it out")
    yield from _check_labels(recipe.compare)
    if recipe.compare.random and recipe.model is not None and (recipe.model.lora is not None or recipe.model.adapter):
        yield Problem(
            ("compare", "random"),
            "an adapter on random weights learns nothing that says what the model's own are worth; leave one out",
        )


def _check_labels(section: CompareSection) -> Iterable[Problem]:
    labels = [label_of(one) for one in section.objectives]
    for index, label in enumerate(labels):
        where: Where = (*ROWS, index, *(["label"] if section.objectives[index].label else []))
        if not re.fullmatch(rf"\w[\w.-]{{,{LABEL - 1}}}", label):
            yield Problem(where, f"label {label!r} cannot name a folder; use up to {LABEL} letters, digits and . _ -")
        elif label.casefold() in RESERVED:
            yield Problem(where, f"label {label!r} is the name of another row; choose another")
        elif label.casefold() in [other.casefold() for other in labels[:index]]:
            yield Problem(
                where, f"a second row labelled {label!r}, whose runs would pass for the first one's; add label:"
            )
    named = section.baseline
    if named is not None and named not in labels:
        yield Problem(("compare", "baseline"), f"no row is labelled {named!r}{suggest(named, labels)}")


def check_rows(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Every row's reference, groups and training settings, as `ballast train` checks them."""
    if recipe.compare is None or broken & {"compare", "model", "reference", "groups", "training"}:
        return
    section = recipe.compare
    yield from _check_rate(recipe.training, ("training",))
    yield from _check_budget(recipe, section)
    built = {index: row.build() for index, row in enumerate(section.objectives) if not row.problems()}
    for index, row in enumerate(section.objectives):
        yield from _check_rate(row.training, (*ROWS, index, "training"))
        for key in (key for key in PROMPTS if key in row.training):
            message = f"the base model and other rows would be asked other prompts; set training.{key} for all of them"
            yield Problem((*ROWS, index, "training", key), message)
        if index not in built:  # reported with the recipe
            continue
        yield from _check_groups(row, index, built[index], section)
        try:
            one = method_recipe(recipe, row, steps=_any_steps(section), cache=str(Path(recipe.output or ".") / CACHE))
        except BallastError:  # reported with the recipe
            continue
        yield from _check_data(recipe, row, index, broken)
        for check in ROW_CHECKS:
            yield from (_relocated(problem, index, row, recipe) for problem in check(one, broken))
    if recipe.groups is not None and not any(map(on_groups, built.values())):
        yield Problem(("groups",), "no row trains on groups, so they would be ignored; leave them out")


def _check_groups(row: MethodSection, index: int, objective: Objective, section: CompareSection) -> Iterable[Problem]:
    if row.groups and not on_groups(objective):
        message = f"objective {row.name} trains on demonstrations, so groups would be ignored; leave them out"
        yield Problem((*ROWS, index, "groups"), message)
    by_tokens = section.budget is not None and section.budget.tokens is not None
    if by_tokens and on_groups(objective) and not has_length(row.training):
        yield Problem(
            (*ROWS, index),
            f"objective {row.name} reads answers that are not sampled yet, so compare.budget.tokens does not give its "
            "steps; add training: {max_steps: N} to the row",
        )


def _check_data(recipe: Recipe, row: MethodSection, index: int, broken: frozenset[str]) -> Iterable[Problem]:
    """The row's own training rows, and what would no longer be the same for all rows."""
    if not row.data:
        return
    here: Where = (*ROWS, index, "data")
    for problem in checks.check_data(recipe.model_copy(update={"data": row_data(recipe, row)}), broken):
        if problem.where[:2] == ("data", "train"):
            yield Problem((*here, *problem.where[2:]), problem.message)
    if recipe.compare and recipe.compare.budget and recipe.compare.budget.tokens:
        yield Problem(here, "compare.budget.tokens counts the tokens of one set of rows; give compare.budget.steps")
    for task in recipe.evaluation.tasks:
        if task.sources().get("demonstrations") == TRAIN:
            message = f"task {task.name!r} asks each row its own demonstrations, which do not compare; name a source"
            yield Problem(here, message)


def _any_steps(section: CompareSection) -> int | None:
    return None if section.budget is None else section.budget.steps or 1


def _check_rate(training: dict[str, Any], where: Where) -> Iterable[Problem]:
    if "learning_rate" in training:
        message = "would be overridden by the rates that are compared; set compare.rates, or rates in the row"
        yield Problem((*where, "learning_rate"), message)


def _check_budget(recipe: Recipe, section: CompareSection) -> Iterable[Problem]:
    budget = section.budget
    if budget is None:
        return
    if all(has_length(row.training) for row in section.objectives):
        message = f"would be ignored: every row has its own {' or '.join(LENGTH)}; leave one of the two out"
        yield Problem(("compare", "budget"), message)
    for key in LENGTH:
        if key in recipe.training:
            yield Problem(("training", key), "would be overridden by compare.budget; keep one of the two")
    if budget.tokens and recipe.training.get("packing"):
        yield Problem(("compare", "budget", "tokens"), "packing decides how many tokens a step reads; give steps")


def check_halving(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether the rungs of a halving are runs that can be told apart, and leave something to halve."""
    budget = None if recipe.compare is None or broken & {"compare", "training"} else recipe.compare.budget
    if recipe.compare is None or budget is None or budget.halving is None:
        return
    eta, least = budget.halving.eta, budget.halving.min_steps
    if budget.steps is None:
        yield Problem(HALVING, "divides steps, which a budget of tokens does not give beforehand; give budget.steps")
        return
    longest, pairs = budget.steps // eta, len(pairs_of(Plan(recipe)))
    if longest < 1:
        yield Problem(
            (*HALVING, "eta"), f"{budget.steps} / {eta} is less than one step; take a smaller eta or more steps"
        )
    elif least is not None and least > longest:
        message = f"leaves no rung below the budget: the longest has {budget.steps} / {eta} steps; take at most"
        yield Problem((*HALVING, "min_steps"), f"{message} {longest}")
    elif pairs < eta:
        message = (
            f"{counted(pairs, 'pair')} of objective and rate cannot be cut to 1/{eta}, so there is nothing to halve"
        )
        yield Problem(HALVING, f"{message}; list more of them, or leave it out")
    else:
        found = _check_rungs(recipe, lengths(Plan(recipe))[0], budget.steps)
        # What the recipe says for all rows is wrong with each of them.
        yield from {problem.where: problem for problem in found}.values()


def _check_rungs(recipe: Recipe, shortest: int, steps: int) -> Iterable[Problem]:
    """Whether the shortest run of each row has steps, some of them after its warm-up."""
    assert recipe.compare is not None
    for index, row in enumerate(recipe.compare.objectives):
        here: Where = (*ROWS, index, "training")
        own = row.training.get("max_steps", steps)
        if "num_train_epochs" in row.training or not isinstance(own, int) or own < 1:
            key = "num_train_epochs" if "num_train_epochs" in row.training else "max_steps"
            message = "a rung of compare.budget.halving is a share of a row's steps, which this does not give"
            yield Problem((*here, key), f"{message}; give max_steps: N")
        elif own * shortest < steps:
            message = f"{own} steps leave less than one for the rung of {shortest} of {steps}; give the row more, or"
            yield Problem((*here, "max_steps"), f"{message} raise compare.budget.halving.min_steps")
        else:
            yield from _check_warmup(recipe, row, here, math.ceil(own * shortest / steps))


def _check_warmup(recipe: Recipe, row: MethodSection, here: Where, steps: int) -> Iterable[Problem]:
    warmup = row.training.get("warmup_steps", recipe.training.get("warmup_steps", 0))
    if isinstance(warmup, int | float) and warmup >= steps:
        yield Problem(
            (*(here if "warmup_steps" in row.training else ("training",)), "warmup_steps"),
            f"a rung of {steps} steps would end within a warm-up of {warmup:g}, and rank rates that it never reached; "
            "give a share of the run (0.1), or raise compare.budget.halving.min_steps",
        )


def _relocated(problem: Problem, index: int, row: MethodSection, recipe: Recipe) -> Problem:
    """Move a problem to the row, unless it is with what the recipe says for all rows."""
    head, *rest = problem.where
    groups = recipe.groups.model_fields_set if recipe.groups else set()
    shared: dict[str, Container[str]] = {"groups": groups, "training": recipe.training, "objective": {}}
    own = {"groups": row.groups, "training": row.training, "objective": {}}
    if head not in shared or (rest and rest[0] in shared[head] and rest[0] not in own[head]):
        return problem
    where = (*ROWS, index, *rest) if head == "objective" else (*ROWS, index, head, *rest)
    return Problem(where, problem.message, problem.place)


def check_choice(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether rates are chosen by something that is measured, has a better end, and is not reported."""
    if recipe.compare is None or broken & {"compare", "evaluation"}:
        return
    section = recipe.compare
    halved = section.budget is not None and section.budget.halving is not None
    tuned = halved or any(len(row.rates or section.rates) > 1 for row in section.objectives)
    if section.choose_by is not None and tuned:
        yield from _check_choice(recipe, section.choose_by)
    elif section.choose_by is not None:
        yield Problem(CHOOSE, "every row has one rate, so there is nothing to choose; leave it out")
    elif tuned:
        remedy = "name a task that is not reported: {task: validation, metric: accuracy}"
        several = "pairs of objective and rate some" if halved else "rates one"
        yield Problem(CHOOSE, f"is required and missing: of several {several} is to be chosen; {remedy}")


def _check_choice(recipe: Recipe, by: ChooseSection) -> Iterable[Problem]:
    tasks = {task.name: task for task in recipe.evaluation.tasks}
    if by.task not in tasks:
        yield Problem((*CHOOSE, "task"), f"no evaluation task is named {by.task!r}{suggest(by.task, tuple(tasks))}")
        return
    known = _metrics(tasks[by.task])
    if known is not None and by.metric not in known:
        message = f"task {by.task!r} does not measure {by.metric!r}{suggest(by.metric, known)}"
        yield Problem((*CHOOSE, "metric"), message)
    elif not direction(by.metric):
        remedy = "take accuracy, mean@N, pass@K, maj@K or nll"
        yield Problem((*CHOOSE, "metric"), f"neither more nor less of {by.metric!r} is better; {remedy}")
    plan = Plan(recipe)
    if not plan.tasks(REPORT):
        yield Problem(("evaluation", "tasks"), f"{by.task!r} chooses the rate, and no other is there to report")
    yield from _check_apart(plan, by.task)


def _check_apart(plan: Plan, chosen: str) -> Iterable[Problem]:
    """No item that chooses a rate is reported."""
    try:
        asked = {item for task in plan.tasks(TUNING) for item in _items(task)}
        shared = {task.name: len(asked & _items(task)) for task in plan.tasks(REPORT)}
    except BallastError:  # reported with the tasks
        return
    for name, count in shared.items():
        if count:
            yield Problem(
                (*CHOOSE, "task"),
                f"{chosen!r} and the reported task {name!r} share {count} items: the rate would be chosen on what is "
                "reported, which flatters every row; choose by other rows",
            )


def _items(task: Task) -> set[str]:
    """Return what a task asks, row by row; texts and questions are asked too."""
    from ballast.pipeline.tasks import load_task

    keys = ("prompt", "question", "text", "completion")
    rows = load_task(task).data
    assert not isinstance(rows, str)
    return {json.dumps(next((row[key] for key in keys if key in row), None), default=str) for row in rows}


def _reads(task: GenerateTask) -> bool:
    try:
        return judge(task, task.verifier_seconds).read is not None
    except BallastError:  # the task's own check says so
        return False


def _metrics(task: Task) -> tuple[str, ...] | None:
    """Return the metrics of a task that can choose, None where they are not known beforehand."""
    divergence = ("base_kl",) if task.needs_base else ()
    if isinstance(task, GenerateTask | CodeTask):
        several = (f"mean@{task.samples}", *(f"pass@{k}" for k in task.k))
        if isinstance(task, GenerateTask) and _reads(task):
            several += tuple(f"maj@{k}" for k in task.k if k > 1)
        return (*(("accuracy",) if task.samples == 1 else several), *divergence)
    return {
        "choice": ("accuracy", "accuracy_per_token", "accuracy_per_character"),
        "nll": ("nll", "perplexity", "bits_per_character", *divergence),
    }.get(task.kind)


def check_then(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """The RL that follows, as `ballast rl` checks it."""
    if recipe.compare is None or broken & {"compare", "rl"}:
        return
    if recipe.compare.then is None:
        if recipe.rl is not None:
            yield Problem(("rl",), "would be ignored: nothing says that RL follows; add compare.then.rl")
        return
    own, shared_rl = recipe.compare.then.rl, recipe.rl.model_fields_set if recipe.rl else ()
    try:
        after = recipe.model_copy(update={"rl": recipe.rl_of(recipe.compare.then)})
    except BallastError:  # reported with the recipe
        return
    for problem in (*rl_checks.check_rl(after, broken), *_check_half(after, broken)):
        shared = problem.where[1:2] and problem.where[1] in shared_rl and problem.where[1] not in own
        here = problem.where[0] == "rl" and not shared
        yield Problem(("compare", "then", *problem.where) if here else problem.where, problem.message, problem.place)


def _check_half(after: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    if after.rl is not None and after.model is not None and "model" not in broken:
        yield from half_checks.check_drawn(("rl", "half"), after.rl.half, after.model, after.seed)


def check_place(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """The output is new, or a comparison's."""
    if recipe.output is None or "output" in broken:
        return
    output = Path(recipe.output)
    if problem := place_problem(output, checks.bytes_needed(recipe, broken)):
        yield Problem(("output",), problem)
    elif output.is_dir() and not (output / PLAN).exists():
        foreign = sorted(file.name for file in output.iterdir() if not _is_own(file.name))
        if foreign:
            yield Problem(
                ("output",), f"{output}: holds {foreign[0]!r}, which is no comparison's; choose a new or empty folder"
            )


def _is_own(name: str) -> bool:
    return name in OWN_FILES or name.startswith(".") or name.endswith(".tmp")


COMPARE_CHECKS: tuple[Check, ...] = (
    check_place,
    checks.check_required("model", "output"),
    check_section,
    checks.check_model,
    quantised_checks.check_training,
    checks.check_data,
    checks.check_cache_folder,
    check_rows,
    check_halving,
    checks.check_evaluate,
    checks.check_tasks,
    *engine_checks.TRAINING,
    check_choice,
    check_then,
)
