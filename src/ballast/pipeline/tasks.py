"""The evaluation tasks of a recipe, with their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ballast.config.recipe import DataSection, Recipe, TaskSection
from ballast.errors import BallastError
from ballast.pipeline import sources

if TYPE_CHECKING:
    from ballast.evaluation import Task


@dataclass(frozen=True)
class Tasks:
    """Tasks with their rows, and by the name of each where these come from."""

    loaded: tuple[Task, ...]
    sources: Mapping[str, Mapping[str, str]]

    def __bool__(self) -> bool:
        return bool(self.loaded)

    @property
    def need_base(self) -> bool:
        """Whether one of them measures a divergence from the model before training."""
        return any(task.base_kl for task in self.loaded)


def load_tasks(recipe: Recipe) -> Tasks:
    """Return the recipe's tasks with their rows read and checked.

    Raises:
        BallastError: an option, the verifier or a row of one cannot be used.
    """
    loaded = tuple(load_task(section, recipe.data) for section in recipe.evaluation.tasks)
    named = zip(loaded, recipe.evaluation.tasks, strict=True)
    return Tasks(loaded, {task.name: _sources(section) for task, section in named})


def load_task(section: TaskSection, data: DataSection | None = None) -> Task:
    """Return a task with its rows read and checked.

    Args:
        data: what ``data.train`` means as a source of demonstrations.

    Raises:
        BallastError: an option, the verifier or a row cannot be used.
    """
    from ballast.evaluation import Task
    from ballast.evaluation.run import ROWS_BESIDE, check_rows, load_rows_beside, load_task_rows

    settings = section.settings()
    if problem := sources.check_source(section.data):
        raise BallastError(problem)
    task = Task.from_dict(settings)
    read: dict[str, Any] = {
        "data": sources.load(section.data, split=task.split, columns=task.columns, limit=task.limit)
    }
    for name, source in _sources(section).items():
        if name != "data":
            try:
                read[name] = sources.read_source(source, data, task.limit or ROWS_BESIDE)
            except BallastError as error:
                raise BallastError(f"{name}: {error}") from error
    loaded = Task.from_dict({**settings, **read, "data": list(read["data"])})
    check_rows(loaded, load_task_rows(loaded), load_rows_beside(loaded))
    return loaded


def _sources(section: TaskSection) -> dict[str, str]:
    """Return the sources that a task names, by option."""
    from ballast.evaluation.tasks import SOURCES

    settings = section.settings()
    return {name: settings[name] for name in SOURCES if settings.get(name) is not None}
