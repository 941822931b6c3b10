"""Token views of a report that nobody asked `ballast inspect` for: the first rows, through its objectives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.objectives import Objective
from ballast.report.source import TOKENS
from ballast.stats import GROUP_FIELDS

ROWS = (1, 2, 3)


def write_tokens(recipe: Recipe, objectives: Sequence[Objective], folder: str | Path) -> str:
    """Write what objectives make of the first rows as ``tokens.json``; return why not where that cannot be, else "".

    Objectives on groups have no weights of a row by itself and are left out; one that stands twice is shown once.
    A file that is there is kept: somebody chose its rows.
    """
    from ballast.pipeline.inspect import inspect_rows
    from ballast.records.write import write_json

    path = Path(folder) / TOKENS
    alone: list[Objective] = []
    for one in objectives:
        if one not in alone and not set(one.needs) & set(GROUP_FIELDS):
            alone.append(one)
    if path.exists() or not alone:
        return ""
    try:
        write_json(path, inspect_rows(recipe, ROWS, objectives=alone))
    except BallastError as error:
        return str(error)
    return ""
