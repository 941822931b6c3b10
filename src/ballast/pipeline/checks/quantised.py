"""What is wrong with weights in few bits, as far as recipe and configuration tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.config.source import Problem
from ballast.errors import BallastError
from ballast.packages import lacking
from ballast.quantised import NO_ADAPTER

SHARDING = ("fsdp", "deepspeed")


def check_loading(section: ModelSection, config: Any) -> Iterable[Problem]:
    """Whether a model can be loaded as its section says: by a package that is there, from weights in full precision."""
    if section.quantization is None:
        return
    where = ("model", "quantization")
    if problem := lacking("quantization", "bitsandbytes"):
        yield Problem(where, f"not possible: {problem}")
    elif getattr(config, "quantization_config", None):
        yield Problem(where, f"would be ignored: the weights of {section.path} are quantised already; leave it out")


def check_training(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether a quantised model has an adapter that trains, and is whole on each rank."""
    if recipe.model is None or "model" in broken:
        return
    section, training = models.resolve(recipe.model), {} if "training" in broken else recipe.training
    asked = section.quantization is not None
    try:
        if not asked and not getattr(models.load_config(section), "quantization_config", None):
            return
    except BallastError:
        return  # told of the model
    where = ("model", "quantization") if asked else ("model",)
    if section.lora is None and section.adapter is None:
        yield Problem(where, f"{NO_ADAPTER}; set model.lora, or {'leave it out' if asked else 'take other weights'}")
    for key in SHARDING:
        if training.get(key):
            yield Problem(
                ("training", key), "would shard codes of quantised weights as numbers; train with DDP instead"
            )
