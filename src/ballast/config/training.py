"""The recipe's ``training`` section as a `TrainingConfig`: names, types and ranges, checked before anything loads."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from ballast.config.recipe import Recipe
from ballast.config.source import Problem
from ballast.errors import suggest
from ballast.half import half_options
from ballast.options import OptionsError, shown
from ballast.packages import lacking
from ballast.sharding import is_set

if TYPE_CHECKING:
    from ballast.training import TrainingConfig

ELSEWHERE = {
    "output_dir": "set `output` at the top level",
    "seed": "set `seed` at the top level",
    "objective": "set `objective` at the top level",
    "reference": "set `reference` at the top level",
    "groups": "set `groups` at the top level",
    "resume_from_checkpoint": "use `ballast train --resume`",
    "model_init_kwargs": "set them under `model`",
    "trust_remote_code": "set `model.trust_remote_code`",
    "do_train": "`ballast train` trains",
    "do_eval": "set `data.eval` and `training.eval_strategy`",
    "do_predict": "use `ballast evaluate`",
}

NARROWER: dict[str, Any] = {
    "learning_rate": NonNegativeFloat,
    "weight_decay": NonNegativeFloat,
    "adam_epsilon": NonNegativeFloat,
    "max_grad_norm": NonNegativeFloat,
    "warmup_steps": NonNegativeFloat,
    "num_train_epochs": PositiveFloat,
    "per_device_train_batch_size": PositiveInt,
    "per_device_eval_batch_size": PositiveInt,
    "gradient_accumulation_steps": PositiveInt,
    "max_length": Annotated[int, Field(ge=2)] | None,
    "pad_to_multiple_of": PositiveInt | str | None,
    "dataloader_num_workers": NonNegativeInt,
    "dataset_num_proc": PositiveInt | None,
    "save_total_limit": PositiveInt | None,
}
"""Types of settings whose values the library itself looks at only after the weights are loaded, or never."""


def check_training(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Yield what is wrong with the names, types and values of the training section."""
    if is_set("ACCELERATE_USE_DEEPSPEED") and (problem := lacking("deepspeed", True)):
        yield Problem(("training", "deepspeed"), f"not possible: {problem}")
        return
    if "training" in broken or not recipe.training:
        return
    problems = [
        Problem(("training", key), message)
        for key, value in recipe.training.items()
        if (message := _problem(key, value)) is not None
    ]
    problems += _half_problems(recipe.training.get("half"))
    yield from problems
    elsewhere = broken & {"objective", "reference", "groups", "seed", "output"}
    if not problems and not elsewhere and not (recipe.objective and recipe.objective.problems()):
        yield from _construct(recipe)


def training_config(recipe: Recipe, **changes: Any) -> TrainingConfig:
    """Return the `TrainingConfig` that the recipe describes; ``changes`` are set over it."""
    import torch

    from ballast.training import TrainingConfig

    settings: dict[str, Any] = {"output_dir": recipe.output or ".", "seed": recipe.seed, **recipe.training}
    settings.setdefault("disable_tqdm", not sys.stderr.isatty())
    if not torch.accelerator.is_available():
        settings.setdefault("dataloader_pin_memory", False)
    if recipe.objective is not None:
        settings["objective"] = recipe.objective.build()
    if recipe.groups is not None:
        settings["groups"] = recipe.groups.to_dict()
    with warnings.catch_warnings():
        # Names that TRL itself still uses; nothing that a recipe could do about.
        warnings.simplefilter("ignore", FutureWarning)
        return TrainingConfig(**{**settings, **changes})


def _construct(recipe: Recipe) -> Iterable[Problem]:
    """Let transformers, TRL and ballast look at the settings together, without those already found at fault."""
    from ballast.data import PrepareOptions
    from ballast.data.refusals import refuse_options
    from ballast.training.refusals import refuse_arguments

    left = dict(recipe.training)
    while True:
        try:
            args = training_config(recipe.model_copy(update={"training": left}))
            refuse_arguments(args)
            refuse_options(PrepareOptions.from_training_args(args))
            return
        except (ValueError, TypeError, ImportError, NotImplementedError) as error:
            message = " ".join(str(error).split())
        named = next((key for key in sorted(left, key=len, reverse=True) if key in message), None)
        yield Problem(("training", *([named] if named else [])), message.removeprefix(f"training.{named} is "))
        if named is None:
            return
        del left[named]


def _half_problems(given: Any) -> list[Problem]:
    try:
        half_options({} if given is None else given)
    except OptionsError as error:
        return [Problem(("training", "half", *where), message) for where, message in error.problems]
    return []


def _problem(key: str, value: Any) -> str | None:
    hints = _hints()
    if key in ELSEWHERE:
        return f"would be overridden here; {ELSEWHERE[key]}"
    if key == "deepspeed" and value and (problem := lacking(key, True)):
        return f"not possible: {problem}"
    return misfit(value, hints[key]) if key in hints else f"unknown key{suggest(key, tuple(hints))}"


def misfit(value: Any, hint: Any) -> str | None:
    """Return how a value fails a type, without conversion; None where it fits."""
    choices = _choices(hint)
    if choices and isinstance(value, str):
        return None if value in choices else f"{value!r} is not allowed{suggest(value, choices)}"
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        wanted = sorted({details["msg"].removeprefix("Input should be ") for details in error.errors()})
        return f"should be {' or '.join(wanted)}; got {shown(value)}"
    return None


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the texts that a hint such as ``SchedulerType | str`` or ``Literal["a", "b"]`` means."""
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Enum)]
    named = [str(member.value) for kind in kinds for member in kind]
    return (*named, *(get_args(hint) if get_origin(hint) is Literal else ()))


@cache
def _hints() -> Mapping[str, Any]:
    from dataclasses import fields

    from ballast.training import TrainingConfig

    hints = get_type_hints(TrainingConfig)
    return {field.name: NARROWER.get(field.name, hints[field.name]) for field in fields(TrainingConfig) if field.init}
