"""What is wrong with rounds: the commands' own checks, on what a first round has before any of them has run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ballast.config.recipe import Check, Recipe
from ballast.config.source import Problem
from ballast.engines.options import TransformersEngine
from ballast.files import place_problem
from ballast.options import Options, Where
from ballast.pipeline.checks import common, engine, revise, reward, rl
from ballast.pipeline.inputs import silent
from ballast.pipeline.round_recipes import Round, on_groups
from ballast.pipeline.rounds import problem_with

SECTIONS = {"sample": "groups", "revise": "revise", "train": "objective", "rl": "rl"}
"""What a command cannot do without."""

READ_BY = {"rows": "sample", "revise": "revise", "reward": "reward", "rl": "rl"}
"""Sections that one command alone reads."""


@dataclass(frozen=True)
class Command:
    """How a command is checked.

    Attributes:
        checks: its own, but for the place of its output.
        stub: the recipe that they see: what earlier commands are to make is not there.
        unseen: sections that are not looked at, since they will name such things.
    """

    checks: tuple[Check, ...]
    stub: Callable[[Round], Recipe] = lambda one: one.recipe
    unseen: Callable[[Round], frozenset[str]] = lambda one: frozenset()


def _revising(one: Round) -> Recipe:
    assert one.recipe.revise is not None
    changed = one.recipe.revise.changed({"file": str(one.folder("revise"))})
    return one.recipe.model_copy(update={"revise": changed})


def _training(one: Round) -> Recipe:
    if one.source is None:
        return one.recipe
    # What trains reads what was made before it, and samples nothing.
    changes = {"engine": TransformersEngine(), **({} if on_groups(one.recipe) else {"groups": None})}
    return one.recipe.model_copy(update=changes)


def _reinforcing(one: Round) -> Recipe:
    options = one.recipe.rl
    assert options is not None
    judged = options.verifier is not None or not one.rounds.before("rl", ("reward",))
    # The reward that will be learnt needs no verifier.
    return one.recipe if judged else one.recipe.model_copy(update={"rl": options.changed({"verifier": "exact"})})


COMMANDS = {
    "sample": Command(common.SAMPLE_CHECKS, Round.sampling),
    "revise": Command(revise.REVISE_CHECKS, _revising),
    "reward": Command(reward.REWARD_CHECKS[1:], unseen=lambda one: frozenset({"groups"})),
    "train": Command(
        common.RESUME_CHECKS[:-1],
        _training,
        lambda one: frozenset({"groups"} if one.source == "revise" and on_groups(one.recipe) else ()),
    ),
    "rl": Command(rl.RL_RESUME_CHECKS[:-1], _reinforcing),
    "evaluate": Command((*common.TASK_CHECKS, engine.check_one_model)),
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
    needed = {SECTIONS.get(verb, "rounds") for verb in steps} | {"model", "output", "objective"}
    if recipe.model is None or recipe.output is None or broken & needed:
        return
    if recipe.objective is not None and recipe.objective.problems():  # reported with the recipe
        return
    # Of a round whose folder is never there.
    one = Round(recipe, 0, recipe.model, silent)
    ignored = list(_ignored(one))
    yield from ignored
    for verb in (verb for verb in steps if not lacking and not ignored):
        command = COMMANDS[verb]
        for check in command.checks:
            yield from check(command.stub(one), broken | command.unseen(one))


def _ignored(one: Round) -> Iterator[Problem]:
    """What a recipe sets and the rounds decide."""
    recipe, before = one.recipe, one.rounds.before
    own = "would be ignored: each round has a folder of its own for that; leave it out"
    if recipe.evaluation.tasks and "evaluate" not in one.rounds.steps:
        yield Problem(("evaluation", "tasks"), "would be ignored: rounds.steps lacks evaluate; add it as the last step")
    steps = set(one.rounds.steps)
    for name, verb in READ_BY.items():
        if getattr(recipe, name) is not None and verb not in steps:
            yield Problem((name,), f"would be ignored: rounds.steps lacks {verb}; add it, or leave {name} out")
    if recipe.groups is not None and "revise" in steps and not steps & {"sample", "reward"}:
        message = "would be ignored: revise makes what train reads, and no step samples; leave it out, or add sample"
        yield Problem(("groups",), message)
    found: list[tuple[Where, Options | None, bool, str]] = [
        (("groups", "file"), recipe.groups, "sample" in one.rounds.steps, own),
        (("revise", "file"), recipe.revise, "revise" in one.rounds.steps, own),
        (("revise", "pairs"), recipe.revise, "revise" in one.rounds.steps, "makes pairs, not rows; leave it out"),
        (("revise", "draft"), recipe.revise, bool(before("revise", ("sample",))), _by("sample")),
        (("rl", "reward"), recipe.rl, bool(before("rl", ("reward",))), _by("reward")),
        (("rl", "reward_model"), recipe.rl, bool(before("rl", ("reward",))), _by("reward")),
    ]
    for where, section, decided, message in found:
        if (
            decided
            and section is not None
            and getattr(section, str(where[-1]))
            and where[-1] in section.model_fields_set
        ):
            yield Problem(where, message)
    if recipe.rows is not None and Path(recipe.rows.file).name != recipe.rows.file:
        yield Problem(("rows", "file"), "would be written over by the next round; give a name without a folder")


def _by(verb: str) -> str:
    return f"would be ignored: {verb} comes before, and what it makes is read; leave it out"


def check_place(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether the output is new, or holds these rounds."""
    if recipe.output is None or broken or recipe.rounds is None:
        return
    problem = place_problem(recipe.output, common.bytes_needed(recipe, broken)) or problem_with(recipe)
    if problem:
        yield Problem(("output",), problem)


ROUNDS_CHECKS: tuple[Check, ...] = (
    common.check_required("model", "output"),
    check_rounds,
    engine.check_rounds,
    check_place,
)
