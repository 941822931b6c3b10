"""Half fine-tuning as far as a recipe and the model's configuration tell: whether it can be, and how much trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.config.source import Problem
from ballast.errors import BallastError
from ballast.half import HalfOptions, Split, half_options
from ballast.options import OptionsError, Where
from ballast.records.schema import RunRecord


def check_half(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether `training.half` can be drawn in the recipe's model."""
    if not broken & {"training", "model"} and recipe.model is not None:
        yield from check_drawn(("training", "half"), recipe.training.get("half"), recipe.model, recipe.seed)


def check_drawn(where: Where, given: Any, section: ModelSection, seed: int) -> Iterable[Problem]:
    """Whether a half, if one is given, can be drawn in a model."""
    if given is None:
        return
    adapter = "lora" if section.lora is not None else "adapter" if section.adapter else None
    if adapter is not None:
        yield Problem(
            where,
            f"does not go with model.{adapter}: half of a model's matrices is another thing than an adapter on them, "
            "and one of the two would be ignored; leave one out",
        )
        return
    try:
        _split(given, section, seed)
    except OptionsError:  # reported with the options
        return
    except BallastError as error:
        message = str(error)
        if message.startswith("half: "):  # all else is reported with the model
            yield Problem(where, message.removeprefix("half: "))


def _split(given: Any, section: ModelSection, seed: int) -> Split:
    options = given if isinstance(given, HalfOptions) else half_options(given)
    section = models.resolve(section)
    return Split.of(models.empty_model(section, models.load_config(section)), options, seed)


def same_half(record: RunRecord | None, recipe: Recipe) -> bool:
    """Return whether a run began with the half that a recipe trains."""
    if record is None:
        return True
    begun: Any = record.recipe["training"]
    try:
        first, now = (
            None if half is None else half_options(half)
            for half in [one.get("half") for one in (begun, recipe.training)]
        )
        return first == now
    except BallastError:  # reported with the settings
        return True


def half_lines(recipe: Recipe) -> list[str]:
    """Return how much trains, a line for each part of a checked recipe that trains half."""
    assert recipe.model is not None
    section, seed = recipe.model, recipe.seed
    return [f"{key}.{_split(given, section, seed).line()}" for key, given in _halves(recipe) if given is not None]


def _halves(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    shared = recipe.training.get("half")
    if recipe.compare is None:
        yield "training", shared
    for place, row in enumerate(recipe.compare.objectives if recipe.compare else ()):
        yield f"compare.objectives.{place}.training", row.training.get("half", shared)
    then = None if recipe.compare is None else recipe.compare.then
    rl = recipe.rl if then is None else recipe.rl_of(then)
    yield "rl", None if rl is None else rl.half
