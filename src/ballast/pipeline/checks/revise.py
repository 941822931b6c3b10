"""What is wrong with a recipe's revisions, as far as the recipe, the templates and the folders tell."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ballast import models
from ballast.config import training as settings
from ballast.config.recipe import Check, Recipe
from ballast.config.source import Problem
from ballast.errors import BallastError
from ballast.files import place_problem
from ballast.parts import Revisions, check_target
from ballast.pipeline import sources
from ballast.pipeline.checks import engine
from ballast.pipeline.checks.common import check_data, check_model, check_required
from ballast.pipeline.checks.groups import check_verifier
from ballast.pipeline.pairs import SUMMARY
from ballast.revise.options import ReviseOptions
from ballast.revise.templates import load_templates

GIVEN = ("own", "completion")
"""Drafts that are no source of answers."""


def check_revising(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether there is something to revise, somebody to do it, and a place for it."""
    if "revise" in broken:
        return
    options = recipe.revise
    if options is None:
        yield Problem(("revise",), "is required and missing; name at least the folder to fill: revise.file=PATH")
        return
    groups = recipe.groups is not None and bool(recipe.groups.file)
    if groups and options.pairs is None and "data" not in broken and not recipe.data.train:
        yield Problem(("data", "train"), "is required and missing; name the rows with the prompts")
    for key, message in _problems(options):
        yield Problem(("revise", key), message)
    # The answers of groups are judged already.
    if options.pairs is None or not groups:
        yield from _check_judge(options)


def _problems(options: ReviseOptions) -> Iterable[tuple[str, str]]:
    try:
        load_templates(options, hinted=options.hint == "completion")
    except BallastError as error:
        yield "templates", str(error)
    if options.reviser is not None and (problem := models.folder_problem(options.reviser)):
        yield "reviser", problem
    if options.draft not in GIVEN and (problem := sources.check_source(options.draft)):
        yield "draft", problem
    if options.pairs is not None:
        yield from _pair_problems(options, Path(options.pairs))
        return
    try:
        if options.file is None:
            raise BallastError("is required and missing; name the folder to fill: revise.file=PATH")
        if problem := place_problem(options.file):
            raise BallastError(problem)
        check_target(Path(options.file), Revisions.holds)
    except BallastError as error:
        yield "file", str(error)


def _pair_problems(options: ReviseOptions, path: Path) -> Iterable[tuple[str, str]]:
    if options.how != "reviser":
        yield "how", "must be reviser where revise.pairs is written: the rows are a reviser's; set how: reviser"
    if there := next((one for one in (path, path.with_suffix(SUMMARY)) if one.exists()), None):
        yield "pairs", f"{there}: is there already and would be written over; name another file, or remove it"
    elif path.suffix != ".jsonl":
        yield "pairs", f"{path}: is written as JSONL; let its name end in .jsonl"
    elif problem := place_problem(path.parent):
        yield "pairs", problem
    if options.label == "difficulty" and options.reviser is None:
        yield (
            "reviser",
            "is required and missing: difficulty is what a reviser that was trained without labels finds likely; "
            "write pairs with label: none, train on them, and name the result",
        )


def _check_judge(options: ReviseOptions) -> Iterable[Problem]:
    """There is a verifier where one is asked."""
    if options.verifier is None:
        for key in options.asks_verifier[:1]:
            yield Problem(
                ("revise", "verifier"),
                f"is required and missing: revise.{key} asks it; name one, such as math or your_module:function, or "
                f"set revise.{key} otherwise",
            )
    else:
        yield from check_verifier("revise", options)


REVISE_CHECKS: tuple[Check, ...] = (
    check_required("model"),
    check_model,
    check_data,
    check_revising,
    settings.check_training,
    engine.check_engine,
    engine.check_revising,
)
