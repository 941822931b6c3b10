"""What is wrong with a recipe's groups, as far as the recipe, the verifier and a manifest tell."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ballast.config.recipe import Recipe
from ballast.config.source import Problem
from ballast.engines.options import is_local
from ballast.errors import BallastError
from ballast.files import place_problem
from ballast.groups.options import GroupOptions
from ballast.objectives import Objective
from ballast.pipeline.inputs import stored_settings
from ballast.revise.options import ReviseOptions
from ballast.rl.options import RLOptions
from ballast.stats import GROUP_FIELDS, JUDGED_FIELDS
from ballast.verifiers.options import judge

TRAINING: dict[str, tuple[Any, str]] = {
    "packing": (True, "the answers of a group are laid out when they are sampled; use padding_free"),
    "truncation_mode": ("keep_end", "an answer is cut at its end, or its prompt would be lost; use keep_start"),
    "completion_only_loss": (False, "an advantage is of an answer, not of its prompt; leave it out"),
    "assistant_only_loss": (True, "an answer is one completion, trained as a whole; leave it out"),
    "shuffle_dataset": (True, "it would be ignored: prompts are drawn in random order in any case; leave it out"),
}
"""Training settings that do not go with groups: the value that is refused, and why."""


def check_groups(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether the objective has the groups it trains on, and something to judge them by."""
    section, options = recipe.objective, recipe.groups
    if broken & {"groups", "objective"} or section is None or section.problems():
        return
    needed = any(name in GROUP_FIELDS for name in section.build().needs)
    if options is None and needed:
        yield Problem(
            ("groups",),
            f"is required and missing: objective {section.name} trains on groups of answers; say what they are made "
            "of, such as groups={verifier: math, own: 4}",
        )
    elif options is not None and not needed:
        yield Problem(
            ("groups",),
            f"objective {section.name} trains on demonstrations, so groups would be ignored; leave them out, or take "
            "objective=gft",
        )
    elif options is not None:
        yield from _check_answers(recipe, options, section.build())
        yield from _check_surroundings(recipe, options, broken)


def check_sampling(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether there is something to sample, and a place for it."""
    from ballast.groups.rows import rows_problem
    from ballast.groups.store import HOLDS
    from ballast.parts import check_target

    if "groups" in broken:
        return
    options = recipe.groups
    if options is None:
        yield Problem(("groups",), "is required and missing; say what judges the answers, such as groups.verifier=math")
        return
    section = recipe.objective
    known = section is not None and "objective" not in broken and not section.problems()
    yield from _check_members(options.changed({"file": ()}), section.build() if section and known else None)
    if "data" not in broken and not recipe.data.train:
        yield Problem(("data", "train"), "is required and missing; name the rows with the prompts")
    try:
        if not options.file:
            raise BallastError("is required and missing; name the folder to fill: groups.file=PATH")
        if len(options.file) > 1:
            raise BallastError(f"names {len(options.file)} folders, and one is filled at a time; name one")
        if problem := place_problem(options.file[0]):
            raise BallastError(problem)
        check_target(Path(options.file[0]), HOLDS)
    except BallastError as error:
        yield Problem(("groups", "file"), str(error))
    if recipe.rows is not None and "rows" not in broken and (problem := rows_problem(recipe.rows)):
        yield Problem(("rows", "file"), problem)
    if recipe.rows is not None and options.verifier is None:
        yield Problem(("rows",), "needs groups.verifier: without one no answer is right, and no row would be written")
    yield from _check_training(recipe, broken)


def _check_members(options: GroupOptions, objective: Objective | None) -> Iterable[Problem]:
    """What an objective reads of the answers that are to be sampled; without one, a verdict on each."""
    name, origins = ("", ()) if objective is None else (objective.name, objective.origins)
    judged = objective is None or bool({*objective.needs} & {*JUDGED_FIELDS})
    if problem := options.lacking(name, origins, judged=judged):
        yield Problem(("groups", problem[0]), problem[1])
    elif options.verifier is not None:
        yield from check_verifier("groups", options)


def _check_answers(recipe: Recipe, options: GroupOptions, objective: Objective) -> Iterable[Problem]:
    """What the objective reads of answers, sampled as it goes or there already."""
    if not options.file:
        yield from _check_members(options, objective)
        return
    for file in options.file:
        yield from _check_file(recipe, options, file)


def _check_file(recipe: Recipe, options: GroupOptions, file: str) -> Iterable[Problem]:
    try:
        stored = stored_settings(file)
    except BallastError as error:
        yield Problem(("groups", "file"), str(error))
        return
    if stored is not None:
        return
    for key in sorted(options.model_fields_set - {"file"}):
        yield Problem(
            ("groups", key),
            f"would be ignored: the answers of {file} are judged already, and nothing is sampled; leave it out",
        )
    if recipe.data.train:
        yield Problem(
            ("data", "train"),
            f"would be ignored: the prompts are those of groups.file {file}; leave one of the two out",
        )


def check_verifier(section: str, options: GroupOptions | ReviseOptions | RLOptions) -> Iterable[Problem]:
    """A section that samples answers names a verifier, and there is one of that name."""
    if options.verifier is None:
        yield Problem(
            (section, "verifier"),
            "is required and missing: without one no answer has a reward; name one, such as math, exact or "
            "your_module:function",
        )
        return
    try:
        judge(options, options.seconds)
    except BallastError as error:
        yield Problem((section, "verifier"), str(error).removeprefix(f"verifier {options.verifier!r}: "))


def _check_surroundings(recipe: Recipe, options: GroupOptions, broken: frozenset[str]) -> Iterable[Problem]:
    yield from _check_training(recipe, broken)
    if "engine" not in broken and not is_local(recipe.engine) and not options.file and options.own:
        yield Problem(
            ("engine",),
            f"{recipe.engine.kind} would answer with the weights that its server once loaded, and those in training "
            "change; repeat `sample` and `train` with `ballast rounds`, name groups.file, or take engine=transformers",
        )
    if "training" in broken:
        return
    if recipe.training.get("fsdp") and not options.file and options.own:
        yield Problem(
            ("training", "fsdp"),
            "a sharded model cannot sample while it trains; sample beforehand with `ballast sample`, and train with "
            "groups.file",
        )
    if "reference" not in broken and recipe.reference.cache is not None:
        yield Problem(
            ("reference", "cache"),
            "holds demonstrations, not the answers of groups; leave it out, or take reference: model",
        )


def _check_training(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    if "training" in broken:
        return
    for key, (refused, reason) in TRAINING.items():
        value = recipe.training.get(key)
        if value == refused and isinstance(value, type(refused)):
            yield Problem(("training", key), f"{value} does not go with groups: {reason}")
