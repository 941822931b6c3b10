"""What is wrong with a recipe's groups, as far as the recipe, the verifier and a manifest tell."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ballast.config.recipe import Recipe
from ballast.config.source import Problem
from ballast.errors import BallastError
from ballast.pipeline.inputs import stored_settings
from ballast.stats import GROUP_FIELDS

FOR_ANY_FILE = ("file",)
"""Options that mean something beside answers that were sampled elsewhere."""

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
    if "groups" in broken or "objective" in broken:
        return
    needs = _needed_fields(recipe)
    if needs is None:
        return
    if recipe.groups is None:
        if needs:
            yield Problem(
                ("groups",),
                f"is required and missing: objective {_name(recipe)} trains on groups of answers with rewards; say "
                "what judges them, such as groups.verifier=math",
            )
        return
    if not needs:
        yield Problem(
            ("groups",),
            f"objective {_name(recipe)} trains on demonstrations, so groups would be ignored; leave them out, or take "
            "objective=gft",
        )
        return
    yield from _check_options(recipe)
    yield from _check_surroundings(recipe, broken)


def check_sampling(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether there is something to sample, and a place for it."""
    if "groups" in broken:
        return
    if recipe.groups is None:
        yield Problem(("groups",), "is required and missing; say what judges the answers, such as groups.verifier=math")
        return
    if "data" not in broken and not recipe.data.train:
        yield Problem(("data", "train"), "is required and missing; name the rows with the prompts")
    yield from _check_judged(recipe)
    file = recipe.groups.file
    if file is None:
        yield Problem(("groups", "file"), "is required and missing; name the folder to fill: groups.file=PATH")
    else:
        from ballast.groups.store import check_target

        try:
            check_target(Path(file))
        except BallastError as error:
            yield Problem(("groups", "file"), str(error))
    yield from _check_training(recipe, broken)


def _needed_fields(recipe: Recipe) -> list[str] | None:
    if recipe.objective is None:
        return None
    try:
        return [name for name in recipe.objective.build().needs if name in GROUP_FIELDS]
    except (BallastError, TypeError):
        return None


def _name(recipe: Recipe) -> str:
    return recipe.objective.name if recipe.objective is not None else "none"


def _check_options(recipe: Recipe) -> Iterable[Problem]:
    options = recipe.groups
    if options is None:
        return
    if options.file is None:
        yield from _check_judged(recipe)
        return
    try:
        stored = stored_settings(options.file)
    except BallastError as error:
        yield Problem(("groups", "file"), str(error))
        return
    if stored is None:
        for key in options.model_fields_set:
            if key not in FOR_ANY_FILE:
                yield Problem(
                    ("groups", key),
                    f"would be ignored: the answers of {options.file} are judged already, and nothing is sampled; "
                    "leave it out",
                )
        if recipe.data.train:
            yield Problem(
                ("data", "train"),
                f"would be ignored: the prompts are those of groups.file {options.file}; leave one of the two out",
            )


def _check_judged(recipe: Recipe) -> Iterable[Problem]:
    options = recipe.groups
    if options is not None:
        yield from check_verifier("groups", options.verifier, options.seconds)


def check_verifier(section: str, name: str | None, seconds: float) -> Iterable[Problem]:
    """A section that samples answers names a verifier, and there is one of that name."""
    from ballast.evaluation import verifier

    if name is None:
        yield Problem(
            (section, "verifier"),
            "is required and missing: without one no answer has a reward; name one, such as math, exact or "
            "your_module:function",
        )
        return
    try:
        verifier(name, seconds=seconds)
    except BallastError as error:
        yield Problem((section, "verifier"), str(error).removeprefix(f"verifier {name!r}: "))


def _check_surroundings(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    yield from _check_training(recipe, broken)
    if "training" in broken:
        return
    options = recipe.groups
    if recipe.training.get("fsdp") and options is not None and options.file is None and options.own:
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
