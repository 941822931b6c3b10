"""`ballast score`: the demonstrations, once, under the frozen reference."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ballast import models
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.pipeline import sources
from ballast.pipeline.inputs import Ready, ready
from ballast.protocols import Model, Say
from ballast.ranks import join
from ballast.records.write import disk_full_as_error

if TYPE_CHECKING:
    from ballast.reference import CacheKey, ReferenceCache


@sources.read_once()
def run_score(recipe: Recipe, *, say: Say = print) -> ReferenceCache:
    """Score the rows that the recipe's cache lacks under its reference, and return the cache.

    Raises:
        BallastError: the input cannot be used, or the cache belongs to something else or is damaged.
    """
    made = ready(recipe, say)
    return score(made, models.load_model(made.model), say)


def score(made: Ready, model: Model, say: Say) -> ReferenceCache:
    """Fill the recipe's cache with statistics of all prepared rows that are not in it yet.

    They are those of the model that training starts from, or of the recipe's `reference.model`, which is loaded for as
    long as that takes.

    Several ranks share the rows; the weights are hashed by the first.

    Raises:
        BallastError: the cache is another model's, or that model has another vocabulary.
    """
    from datasets import concatenate_datasets

    from ballast.reference import ReferenceCache, score_rows

    if made.recipe.reference.model is not None:
        model = _teacher(made, made.recipe.reference.model, model)
    path = made.recipe.reference.cache
    if path is None:
        raise BallastError("reference.cache: name the folder to fill")
    rows = concatenate_datasets([part.dataset for part in made.parts])
    start, ranks = time.monotonic(), join()
    with disk_full_as_error(Path(path)):
        key = ranks.first(lambda: cache_key(made, model))
        if models.on_rank_0_alone() and ranks.size > 1:
            ranks.first(lambda: len(score_rows(model, rows, path, key, device=made.args.device)))
            cache = ReferenceCache.open(path, key, verify=False)
        else:
            cache = score_rows(model, rows, path, key, device=made.args.device, ranks=ranks)
    if ranks.main:
        say(f"{path}: holds {len(cache):,} rows, {cache.tokens:,} tokens ({time.monotonic() - start:.1f} s)")
    return cache


def opened(made: Ready, model: Model, say: Say) -> ReferenceCache:
    """Return the recipe's cache as it stands: later rows that it lacks are found missing when they are read.

    Raises:
        BallastError: there is none, it is another model's, or it lacks one of the first rows.
    """
    from ballast.data import Streamed
    from ballast.reference import ReferenceCache

    reference = made.recipe.reference
    assert reference.cache is not None
    if reference.model is not None:
        model = _teacher(made, reference.model, model)
    cache = ReferenceCache.open(reference.cache, cache_key(made, model))
    first = made.train.first if isinstance(made.train, Streamed) else ()
    if missing := cache.missing(first):
        raise BallastError(
            f"reference.cache: {reference.cache}: has no values for {len(missing):,} of the first {len(first):,} rows, "
            "and those of a stream are not scored as they come; fill it with `ballast score` and data.streaming=false"
        )
    if made.args.process_index == 0:
        say(f"{reference.cache}: holds {len(cache):,} rows, {cache.tokens:,} tokens")
    return cache


def _teacher(made: Ready, name: str, model: Model) -> Model:
    from ballast.reference.providers import AsItStands, check_vocabulary

    teacher = models.load_model(models.resolve(models.section_of(name, made.model)))
    check_vocabulary(model, AsItStands(teacher), len(made.tokenizer))
    return teacher


def cache_key(made: Ready, model: Model) -> CacheKey:
    """Return what the cache of this run depends on: weights, tokenizer, and the dtype that training computes in."""
    from ballast.reference import CacheKey
    from ballast.training.config import autocast_dtype

    return CacheKey.of(model, made.tokenizer, autocast=autocast_dtype(made.args))
