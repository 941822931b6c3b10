"""`ballast evaluate --readiness`: a recipe's tasks as one task of kind ``readiness``, and its result in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ballast.config.recipe import DataSection, Recipe
from ballast.errors import BallastError
from ballast.evaluation.tasks import AnyTask, GenerateTask, NllTask, ReadinessTask
from ballast.pipeline import sources

if TYPE_CHECKING:
    from ballast.evaluation import TaskResult
    from ballast.pipeline.evaluate import Measured

KIND = "readiness"
TRAIN = "data.train"
"""As a source of demonstrations: the recipe's own training rows."""

KEPT = ("verifier", "verifier_seconds", "max_new_tokens", "top_p", "limit", "split", "columns", "seed", "batch_tokens")
"""Options that the readiness task takes over from the task it is made of."""


def with_readiness(
    recipe: Recipe, *, wanted: bool = True, group: int | None = None, samples: int | None = None
) -> Recipe:
    """Return the recipe with its tasks of kind ``readiness`` alone, or with one made of its other tasks.

    That one asks the prompts of the first task that generates; its demonstrations are the recipe's training rows, its
    texts those of the first ``nll`` task.

    Args:
        wanted: False where `group` or `samples` were given without asking for readiness, which is refused.
        group, samples: set over those of the tasks.

    Raises:
        BallastError: if there is no task to make it of, or the numbers do not go together.
    """
    if not wanted:
        raise BallastError("--group and --samples belong to --readiness, without it they would be ignored; add it")
    tasks = recipe.evaluation.tasks
    found = [task for task in tasks if isinstance(task, ReadinessTask)] or [_made(recipe)]
    given = {name: value for name, value in (("group", group), ("samples", samples)) if value is not None}
    changed = [task.changed(given) for task in found]
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"tasks": tuple(changed)})})


def _made(recipe: Recipe) -> ReadinessTask:
    start = next((task for task in recipe.evaluation.tasks if isinstance(task, GenerateTask)), None)
    if start is None:
        raise BallastError(
            "evaluation.tasks: none generates answers, so there are no prompts to sample from; add a task with data "
            "and a verifier"
        )
    kept = {name: value for name in KEPT if (value := getattr(start, name)) is not None}
    if start.temperature:
        kept["temperature"] = start.temperature
    if recipe.model is None:
        kept["base_kl"] = False
    if recipe.data.train:
        kept["demonstrations"] = TRAIN
    text = next((task for task in recipe.evaluation.tasks if _is_text(task)), None)
    return ReadinessTask(name=KIND, data=start.data, forgetting=text.data if text else None, **kept)


def _is_text(task: AnyTask) -> bool:
    """Whether a task reads plain texts that need no renaming; one of kind ``nll`` may also read demonstrations."""
    if not isinstance(task, NllTask) or task.columns is not None or task.split is not None:
        return False
    return "text" in sources.load(task.sources()["data"], limit=1).column_names


def read_source(source: Any, data: DataSection | None) -> Any:
    """Return the rows of demonstrations or texts: `TRAIN`, a split of the lab, or a source, which is left as it is.

    Raises:
        BallastError: if the source cannot be used.
    """
    if not isinstance(source, str):
        return source
    if source == TRAIN:
        if data is None or not data.train:
            raise BallastError(f"demonstrations: {TRAIN} are the recipe's training rows, and it names none; set them")
        return list(_demonstrations(sources.load_train(data)))
    if problem := sources.check_source(source):
        raise BallastError(problem)
    return list(sources.load(source)) if source.startswith(sources.LAB) else source


def _demonstrations(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield rows as prompt and completion; of a conversation the last turn is the completion."""
    for row in rows:
        turns = row.get("messages")
        yield {"prompt": turns[:-1], "completion": turns[-1:]} if turns and "completion" not in row else row


def readiness_lines(measured: Sequence[Measured]) -> list[str]:
    """Return for every model and task of kind ``readiness`` what was spent and what it says, in sentences."""
    lines = []
    for entry in measured:
        for result in entry.results:
            if result.kind == KIND:
                lines += [_budget(entry.name, result), _gradient(entry.name, result)]
    return lines


def _budget(model: str, result: TaskResult) -> str:
    settings, counts = result.settings, result.counts
    return (
        f"{model}: {counts['rows']:,} prompts × {settings['samples']} samples × at most {settings['max_new_tokens']} "
        f"tokens, {counts['generated_tokens']:,} generated; temperature {settings['temperature']:g}; "
        f"{counts['cut_off']:,} answers cut off"
    )


def _gradient(model: str, result: TaskResult) -> str:
    group = result.settings["group"]
    mixed, solved = result.metrics[f"mixed@{group}"], result.metrics[f"pass@{group}"]
    distinct = result.metrics[f"distinct@{group}"]
    return (
        f"{model}: in groups of {group}, {mixed.value:.0%} have mixed rewards, and so a gradient in GRPO; in "
        f"{1 - solved.value:.0%} no answer is right; {distinct.value:.1f} of {group} answers differ"
    )
