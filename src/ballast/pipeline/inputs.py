"""The rows that a recipe's groups are made of, or the answers sampled beforehand: read, and checked row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.groups.options import GroupOptions
from ballast.pipeline import sources

if TYPE_CHECKING:
    from datasets import Dataset

    from ballast.groups.store import StoreSettings
    from ballast.training import TrainingConfig


def stored_settings(file: str) -> StoreSettings | None:
    """Return what a folder of groups was sampled with, None for a file of the user's own.

    Raises:
        BallastError: if there is no such file or folder, or its manifest cannot be read.
    """
    from ballast.groups.store import MANIFEST, read_settings

    path = Path(file)
    if not path.exists():
        raise BallastError(f"{file}: no such file or folder; `ballast sample` fills it")
    return read_settings(path) if (path / MANIFEST).exists() else None


def load(recipe: Recipe, tokenizer: Any, args: TrainingConfig, say: Callable[[str], Any]) -> Dataset | None:
    """Return the raw rows that groups are made of, checked; None where `groups.file` has the answers, checked too.

    Raises:
        BallastError: naming the source and the first row that cannot be used.
    """
    from ballast.data import PrepareOptions, trl

    options = GroupOptions.from_dict(recipe.groups or {})
    ready = trl.training_tokenizer(tokenizer, PrepareOptions.from_training_args(args))
    context = _context(recipe)
    if options.file is not None:
        _check_file(recipe, options, ready, args.max_length, context, say)
        return None
    rows = sources.load_train(recipe.data)
    check_rows(rows, recipe.data.train, ready, options, args.max_length, context)
    return rows


def check_rows(
    rows: Dataset,
    named: Sequence[str],
    tokenizer: Any,
    options: GroupOptions,
    max_length: int | None,
    context: int | None,
) -> None:
    """Refuse rows that cannot have a group, before the weights are loaded and the start is measured.

    Raises:
        BallastError: naming the source and the first such row.
    """
    from ballast.groups import members
    from ballast.verifiers.registry import check_rows as check_judged
    from ballast.verifiers.registry import verifier

    plain = list(rows.with_format(None))
    try:
        members.check_prompts(plain, options)
        check_judged(verifier(str(options.verifier), seconds=options.seconds), plain)
        _check_room(plain, tokenizer, options, max_length, context)
    except BallastError as error:
        raise BallastError(f"data.train ({', '.join(named)}): {error}") from error


def _check_room(
    rows: Sequence[dict[str, Any]], tokenizer: Any, options: GroupOptions, max_length: int | None, context: int | None
) -> None:
    from ballast.evaluation.generation import encode_prompt

    new = options.max_new_tokens if options.own else 0
    limits = (
        (max_length, "training.max_length", "own answers would be cut after they were judged"),
        (context, "the model's context", "positions beyond it are untrained"),
    )
    for index, row in enumerate(rows):
        size = len(encode_prompt(tokenizer, row))
        for limit, what, why in limits:
            if limit is None:
                continue
            if size >= limit:
                raise BallastError(f"row {index + 1}: prompt of {size} tokens leaves nothing of {what} {limit}")
            if size + new > limit:
                raise BallastError(
                    f"row {index + 1}: prompt of {size} tokens + groups.max_new_tokens {new} exceeds {what} {limit}: "
                    f"{why}; shorten the prompt, or lower groups.max_new_tokens"
                )


def _check_file(
    recipe: Recipe,
    options: GroupOptions,
    tokenizer: Any,
    max_length: int | None,
    context: int | None,
    say: Callable[[str], Any],
) -> None:
    from ballast.groups.store import read_groups

    file = str(options.file)
    stored = stored_settings(file)
    if stored is not None:
        _check_stored(recipe, options, stored, max_length)
    try:
        groups = read_groups(file, tokenizer, max_length=max_length)
    except BallastError as error:
        raise BallastError(f"groups.file: {error}") from error
    longest = max(len(member.ids) for group in groups for member in group.members)
    if context is not None and longest > context:
        raise BallastError(f"groups.file: {file}: a sequence of {longest} tokens exceeds the model's context {context}")
    answers = sum(len(group.members) for group in groups)
    say(f"groups: {len(groups):,} prompts, {answers:,} answers from {file}")


def _check_stored(recipe: Recipe, options: GroupOptions, stored: StoreSettings, max_length: int | None) -> None:
    """Refuse a recipe that says other than what the groups were sampled with: it would be ignored."""
    from ballast.groups.store import NOT_KEPT, data_digest

    now = options.to_dict()
    for key in recipe.groups or ():
        if key not in NOT_KEPT and now[key] != stored.groups.get(key):
            raise BallastError(
                f"groups.{key}: {now[key]!r} would be ignored: {options.file} was sampled with "
                f"{stored.groups.get(key)!r}; leave it out, or sample into another folder"
            )
    if max_length != stored.max_length:
        raise BallastError(
            f"training.max_length: {max_length}, but the answers of {options.file} were cut at {stored.max_length} and "
            "judged so; set it back, or sample into another folder"
        )
    if recipe.data.train and data_digest(sources.load_train(recipe.data).with_format(None)) != stored.data:
        raise BallastError(
            f"data.train ({', '.join(recipe.data.train)}): would be ignored: {options.file} was sampled for other "
            "rows; leave it out, or sample into another folder"
        )


def notes(recipe: Recipe, model: Any, tokenizer: Any) -> list[str]:
    """Return what a user should know of the answers in `groups.file` and would not see, as lines to print."""
    from ballast.reference import CacheKey

    file = (recipe.groups or {}).get("file")
    stored = None if file is None else stored_settings(file)
    if stored is None or not stored.groups["own"] or CacheKey.of(model, tokenizer).model == stored.model:
        return []
    return [
        f"groups: the own answers of {file} are another model's than the one that training starts from: they are "
        "off-policy from the first step"
    ]


def _context(recipe: Recipe) -> int | None:
    """Return the number of positions that the model was built for, from its configuration alone."""
    from ballast.evaluation.scoring import context_length

    assert recipe.model is not None
    return context_length(SimpleNamespace(config=models.load_config(models.resolve(recipe.model))))
