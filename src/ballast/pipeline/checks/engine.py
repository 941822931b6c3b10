"""What is wrong with a recipe's engine, as far as recipe and machine tell; nothing is asked of a server."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ballast.config.recipe import Check, Recipe
from ballast.config.source import Problem
from ballast.engines.options import ServerOptions, VllmEngine, gives_ids, is_fixed, is_local
from ballast.errors import BallastError
from ballast.evaluation.tasks import SampledTask
from ballast.options import Where
from ballast.packages import refuse_without

OF_TOKENS = ("entropy", "base_kl")
"""What tasks measure of the tokens of answers."""


def check_engine(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether a server can be asked: its client, its key, its program."""
    engine = recipe.engine
    if "engine" in broken or not isinstance(engine, ServerOptions):
        return
    from ballast.engines.client import key_problem
    from ballast.engines.server import command_problem

    try:
        refuse_without("openai", "engine", "a server", "engine=transformers")
    except BallastError as error:
        yield Problem(("engine",), str(error))
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        yield Problem(
            ("engine",),
            f"each of the {processes} processes would have a server give it the same answers; train with "
            "engine=transformers or without evaluation.tasks, and measure with `ballast evaluate` in one process",
        )
    variable = engine.key_variable
    if variable is not None and not os.environ.get(variable, "").strip():
        yield Problem(("engine", "key_variable"), key_problem(variable).removeprefix("engine.key_variable: "))
    if isinstance(engine, VllmEngine) and engine.base_url is None and (problem := command_problem(engine)):
        yield Problem(("engine", "command"), problem)


def check_tasks(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether the engine can give what tasks read of answers."""
    if broken & {"engine", "evaluation"} or is_local(recipe.engine):
        return
    for place, task in enumerate(recipe.evaluation.tasks):
        where: Where = ("evaluation", "tasks", place)
        if not isinstance(task, SampledTask):
            continue
        for name in OF_TOKENS if not gives_ids(recipe.engine) else ():
            if getattr(task, name):
                yield Problem(
                    (*where, name),
                    "is of the tokens of answers, and engine.kind openai gives text, which would be tokenised anew; "
                    "set it to false, or take engine.kind=vllm",
                )
        if task.reviser is not None:
            yield Problem(
                (*where, "revise", "reviser"),
                "is a second model, and an engine serves one: its texts would be the other's; measure this task with "
                "engine=transformers",
            )


def check_one_model(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether the engine can follow a model that changes from one measurement to the next."""
    if broken & {"engine", "evaluation"} or not is_fixed(recipe.engine):
        return
    if any(isinstance(task, SampledTask) for task in recipe.evaluation.tasks):
        yield Problem(
            ("engine",),
            "serves one model, and several are measured here: the same answers would count as those of each; take "
            "engine.kind=vllm without base_url, which starts a server for each",
        )


def check_rounds(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether the engine can follow the model from round to round."""
    if broken & {"engine", "rounds"} or recipe.rounds is None or not is_fixed(recipe.engine):
        return
    if sampling := [verb for verb in recipe.rounds.steps if verb in ("sample", "revise")]:
        yield Problem(
            ("engine",),
            f"serves one model, and {sampling[0]} asks each round's own; take engine.kind=vllm without base_url, which "
            "starts a server for each",
        )


def check_sampling(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether the answers of groups come as the ids that were sampled."""
    if "engine" not in broken and not gives_ids(recipe.engine):
        yield Problem(
            ("engine", "kind"),
            "openai gives text: groups train on the tokens that were sampled, and text tokenised anew may have others; "
            "take engine.kind=vllm, or transformers",
        )


def check_revising(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether one model writes."""
    if broken & {"engine", "revise"} or is_local(recipe.engine) or recipe.revise is None:
        return
    for key in ("reviser", "pairs"):
        if getattr(recipe.revise, key) is not None:
            message = {
                "reviser": "is a second model, and an engine serves one: its texts would be the other's",
                "pairs": "samples nothing, so the engine would be ignored",
            }[key]
            yield Problem(("revise", key), f"{message}; take engine=transformers")


MEASURING: tuple[Check, ...] = (check_engine, check_tasks)
TRAINING: tuple[Check, ...] = (*MEASURING, check_one_model)
"""For whatever measures a model before and after."""
