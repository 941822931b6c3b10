"""The evaluation tasks of a recipe, with their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ballast import models
from ballast.config.recipe import DataSection, Recipe
from ballast.errors import BallastError
from ballast.evaluation.tasks import LmEvalTask, SampledTask, Task
from ballast.pipeline import sources
from ballast.pipeline.digests import task_digest


@dataclass(frozen=True)
class Tasks:
    """Tasks with their rows, and by the name of each where these come from and a digest of them."""

    loaded: tuple[Task, ...]
    sources: Mapping[str, Mapping[str, str]]
    digests: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.loaded)

    @property
    def sample(self) -> bool:
        """Whether one of them samples answers."""
        return any(isinstance(task, SampledTask) for task in self.loaded)

    @property
    def need_base(self) -> bool:
        """Whether one of them measures a divergence from the model before training."""
        return any(task.needs_base for task in self.loaded)


def load_tasks(recipe: Recipe) -> Tasks:
    """Return the recipe's tasks with their rows read and checked.

    Raises:
        BallastError: the verifier or a row of one cannot be used.
    """
    tasks = recipe.evaluation.tasks
    loaded = tuple(load_task(task, recipe.data) for task in tasks)
    digests = {task.name: task_digest(task) for task in loaded}
    return Tasks(loaded, {task.name: task.sources() for task in tasks}, digests)


def load_task(task: Task, data: DataSection | None = None) -> Task:
    """Return a task with its rows read and checked.

    Args:
        data: what ``data.train`` means as a source of demonstrations.

    Raises:
        BallastError: the verifier or a row cannot be used.
    """
    from ballast.evaluation.run import ROWS_BESIDE, check_rows, load_rows_beside, load_task_rows

    if task.reviser is not None and (problem := models.folder_problem(task.reviser)):
        raise BallastError(f"revise.reviser: {problem}")
    if isinstance(task, LmEvalTask):
        return task.changed({"data": load_task_rows(task)})
    named = task.sources()
    source = named.pop("data")
    if problem := sources.check_source(source):
        raise BallastError(problem)
    rows = sources.load(source, split=task.split, columns=task.columns, limit=task.limit)
    beside = {}
    for name, other in named.items():
        try:
            beside[name] = sources.read_source(other, data, task.limit or ROWS_BESIDE)
        except BallastError as error:
            raise BallastError(f"{name}: {error}") from error
    loaded = task.changed({"data": list(rows), **beside})
    check_rows(loaded, load_task_rows(loaded), load_rows_beside(loaded))
    return loaded
