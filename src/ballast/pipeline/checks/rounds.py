"""What is wrong with rounds: the commands' own checks, on what the first round gives them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ballast.config.recipe import Check, Recipe
from ballast.config.source import Problem
from ballast.files import place_problem
from ballast.pipeline.checks import common, rl
from ballast.pipeline.inputs import silent
from ballast.pipeline.rounds import Round, problem_with

SECTIONS = {"sample": "groups", "train": "objective", "rl": "rl"}
"""What a command cannot do without."""
CHECKS: dict[str, tuple[Check, ...]] = {
    "sample": common.SAMPLE_CHECKS,
    "train": common.RESUME_CHECKS[:-1],
    "rl": rl.RL_RESUME_CHECKS[:-1],
    "evaluate": common.TASK_CHECKS,
}


def check_rounds(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether there are rounds, their commands have what they need, and nothing that is set would be ignored."""
    if "rounds" in broken:
        return
    if recipe.rounds is None:
        remedy = "say what is repeated: rounds.steps=[sample, train] rounds.count=3"
        yield Problem(("rounds",), f"is required and missing; {remedy}")
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield Problem(("rounds",), "go in one process, several would write the same files; start one")
    steps = recipe.rounds.steps
    lacking = [verb for verb in steps if (key := SECTIONS.get(verb)) and key not in broken and not getattr(recipe, key)]
    for verb in lacking:
        yield Problem((SECTIONS[verb],), f"is required and missing: rounds.steps has {verb}")
    if recipe.evaluation.tasks and "evaluate" not in steps and "evaluation" not in broken:
        yield Problem(("evaluation", "tasks"), "would be ignored: rounds.steps lacks evaluate; add it as the last step")
    if "sample" in steps and "groups" not in broken and recipe.groups is not None and recipe.groups.file:
        message = "would be ignored: each round samples into a folder of its own; leave it out"
        yield Problem(("groups", "file"), message)
        return
    if recipe.model is None or recipe.output is None or broken & {"model", "output"}:
        return
    one = Round(recipe, 1, recipe.model, silent)
    for verb in (verb for verb in steps if verb not in lacking):
        part = one.sampling() if verb == "sample" else recipe
        for check in CHECKS[verb]:
            yield from check(part, broken)


def check_place(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether the output is new, or holds these rounds."""
    if recipe.output is None or broken or recipe.rounds is None:
        return
    problem = place_problem(recipe.output, common.bytes_needed(recipe, broken)) or problem_with(recipe)
    if problem:
        yield Problem(("output",), problem)


ROUNDS_CHECKS: tuple[Check, ...] = (common.check_required("model", "output"), check_rounds, check_place)
