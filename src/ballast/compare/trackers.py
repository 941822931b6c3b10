"""What trackers are told of a comparison's runs: a name for each, one group for all, and where one ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ballast.config.recipe import Recipe

SHARED = ("report_to", "project")
"""Settings of ``training`` that the RL of a comparison takes over, unless it has its own."""

GROUPS = ("WANDB_RUN_GROUP", "MLFLOW_EXPERIMENT_NAME")
"""Variables that transformers' integrations read a group from; none that is set already is changed."""

RUNNING: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "wandb": (lambda wandb: wandb.run is not None, "finish"),
    "mlflow": (lambda mlflow: mlflow.active_run() is not None, "end_run"),
    "trackio": (lambda trackio: trackio.context_vars.current_run.get() is not None, "finish"),
}
"""By tracker with one run in a process at a time: whether there is one, and what ends it."""


def group_of(recipe: Recipe) -> str:
    """Return what the runs of a comparison are grouped under: ``training.run_name``, or the output's name."""
    return str(recipe.training.get("run_name") or Path(str(recipe.output)).resolve().name)


def named(recipe: Recipe, name: str, whole: Recipe) -> Recipe:
    """Return a run's recipe with the run's own name in it, where a tracker is told of the run; others as they are.

    Args:
        recipe: of the run.
        name: of the run, such as ``sft-lr0.001-s1``.
        whole: the recipe of the comparison, whose trackers RL takes over.
    """
    if recipe.rl is None:
        given = _named(recipe.training, name, whole)
        return recipe.model_copy(update={"training": given}) if given else recipe
    shared = {key: whole.training[key] for key in SHARED if key in whole.training}
    given = _named({**shared, **recipe.rl.trainer}, name, whole)
    return recipe.model_copy(update={"rl": recipe.rl.changed({"trainer": given})}) if given else recipe


def _named(settings: Mapping[str, Any], name: str, whole: Recipe) -> dict[str, Any] | None:
    found = reports(settings)
    if not found:
        return None
    # Trackio has no groups: a project takes their place.
    project = {"project": group_of(whole)} if {"trackio", "all"} & set(found) and "project" not in settings else {}
    return {**settings, **project, "run_name": name}


def reports(settings: Mapping[str, Any]) -> list[str]:
    """Return the trackers that settings of a trainer name."""
    given = settings.get("report_to") or []
    return [one for one in ([given] if isinstance(given, str) else given) if one != "none"]


@contextmanager
def tracked(recipe: Recipe, group: str) -> Iterator[None]:
    """Group what a block tells trackers, and end what it began: the next run would go on in it otherwise.

    Args:
        recipe: of the run; nothing is done where it names no tracker.
    """
    if not reports(recipe.training if recipe.rl is None else recipe.rl.trainer):
        yield
        return
    added = {name: group for name in GROUPS if name not in os.environ}
    before = _running()
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        for name in _running() - before:
            getattr(sys.modules[name], RUNNING[name][1])()


def _running() -> set[str]:
    return {name for name, (runs, _) in RUNNING.items() if name in sys.modules and runs(sys.modules[name])}
