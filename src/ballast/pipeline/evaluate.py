"""`ballast evaluate`: models on the recipe's tasks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import DataSection, ModelSection, Recipe, TaskSection
from ballast.errors import BallastError
from ballast.pipeline import sources
from ballast.pipeline.readiness import read_source
from ballast.protocols import Say
from ballast.records.write import EVALS, append_jsonl, file_name

if TYPE_CHECKING:
    from ballast.evaluation import Task, TaskResult

BASE, TRAINED = "base", "trained"


@dataclass(frozen=True)
class Measured:
    """One model's results on the recipe's tasks."""

    name: str
    results: tuple[TaskResult, ...]
    data: Mapping[str, Mapping[str, str]]

    def record(self, **extra: Any) -> dict[str, Any]:
        """Return the results as plain values, without the single answers."""
        tasks = [result.to_dict() for result in self.results]
        named = [{**task, "settings": {**task["settings"], **self.data[task["name"]]}} for task in tasks]
        return {"model": self.name, **extra, "tasks": named}

    def write_items(self, folder: Path) -> None:
        """Write every prompt, answer and score, one file per task."""
        from ballast.evaluation.tasks import write_items

        for result in self.results:
            write_items(folder / file_name(self.name) / f"{file_name(result.name)}.jsonl", result)


def run_evaluate(
    recipe: Recipe, *, paths: Sequence[str] = (), items: str | Path | None = None, say: Say = print
) -> list[Measured]:
    """Measure models on the recipe's tasks, and return one entry per model.

    Args:
        paths: models to measure; by default the recipe's start (as ``base``), then the checkpoint in its output.
        items: folder for every prompt, answer and score.

    Raises:
        BallastError: a model or a task cannot be used.
    """
    chosen = _chosen(recipe, paths)
    for name, section in chosen:
        problem = models.check_folder(section.path) or (section.adapter and models.check_adapter(section.adapter))
        if problem:
            raise BallastError(f"model {name}: {problem}")
    measured = []
    for name, section in chosen:
        say(f"{name}: {section.adapter or section.path}")
        tokenizer = models.load_tokenizer(section)
        models.check_vocabulary(section.path, models.load_config(section), tokenizer)
        model = models.load_model(section).to(default_device())
        measured += measure(recipe, model, tokenizer, name=name)
        if name == TRAINED:
            append_jsonl(Path(str(recipe.output)) / EVALS, [measured[-1].record()])
        if items is not None:
            measured[-1].write_items(Path(items))
    return measured


def measure(recipe: Recipe, model: Any, tokenizer: Any, *, name: str, progress: bool = True) -> list[Measured]:
    """Return one model's results, none where the recipe has no task; `progress` shows bars on a terminal."""
    from ballast.evaluation import evaluate

    tasks = [load_task(section, recipe.data) for section in recipe.evaluation.tasks]
    if not tasks:
        return []
    base = _base(recipe, model, name) if any(task.base_kl for task in tasks) else None
    with _progress(name) if progress else nullcontext() as bars:
        results = evaluate(model, tokenizer, tasks, base=base, progress=bars)
    named = {section.settings()["name"]: _sources(section) for section in recipe.evaluation.tasks}
    return [Measured(name, tuple(results), named)]


def check_prompts(recipe: Recipe, model: Any, tokenizer: Any) -> None:
    """Refuse prompts without room for their answers in the model's context, before training rather than after it.

    Raises:
        BallastError: naming the task and the row.
    """
    from ballast.evaluation.generation import encode_prompts
    from ballast.evaluation.tasks import SAMPLING

    for task in (load_task(section, recipe.data) for section in recipe.evaluation.tasks):
        if task.kind in SAMPLING:
            try:
                encode_prompts(model, tokenizer, list(task.data), task.max_new_tokens)
            except BallastError as error:
                raise BallastError(f"evaluation task {task.name!r}: {error}") from error


def load_task(section: TaskSection, data: DataSection | None = None) -> Task:
    """Return a task with its rows read and checked.

    Args:
        data: what ``data.train`` means as a source of demonstrations.

    Raises:
        BallastError: an option, the verifier or a row cannot be used.
    """
    from ballast.evaluation import Task
    from ballast.evaluation.evaluate import check_rows, load_rows_beside, load_task_rows

    settings = section.settings()
    if problem := sources.check_source(section.data):
        raise BallastError(problem)
    task = Task.from_dict(settings)
    if section.data.startswith(sources.LAB):
        rows = list(sources.load(section.data, split=task.split, columns=task.columns, limit=task.limit))
    else:
        rows = load_task_rows(task)
    read = {name: read_source(source, data) for name, source in _sources(section).items() if name != "data"}
    loaded = Task.from_dict({**settings, "data": rows, **read})
    check_rows(loaded, rows, load_rows_beside(loaded))
    return loaded


def _sources(section: TaskSection) -> dict[str, str]:
    """Return the sources that a task names, by option."""
    from ballast.evaluation.tasks import SOURCES

    settings = section.settings()
    return {name: settings[name] for name in SOURCES if settings.get(name) is not None}


def table(measured: Sequence[Measured]) -> Any:
    """Return a rich table: a row per task and metric, a column per model, each value with its interval."""
    from rich.box import SIMPLE
    from rich.table import Column, Table

    names = (Column(name, no_wrap=True) for name in ("task", "metric", "n"))
    view = Table(*names, *(entry.name for entry in measured), box=SIMPLE, pad_edge=False)
    columns = [{(r.name, metric): e for r in entry.results for metric, e in r.metrics.items()} for entry in measured]
    for task, metric in dict.fromkeys(key for column in columns for key in column):
        cells = [column.get((task, metric)) for column in columns]
        count = next(str(cell.n) for cell in cells if cell is not None)
        view.add_row(task, metric, count, *(_cell(cell) for cell in cells))
    return view


def _cell(estimate: Any) -> str:
    if estimate is None:
        return "–"
    interval = "" if estimate.low is None else f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    return f"{estimate.value:.3g}{interval}"


def _chosen(recipe: Recipe, paths: Sequence[str]) -> list[tuple[str, ModelSection]]:
    if paths:
        return [(path, models.resolve(models.section_of(path, recipe.model))) for path in dict.fromkeys(paths)]
    found = [(BASE, models.resolve(recipe.model))] if recipe.model is not None and recipe.evaluation.base else []
    output = Path(recipe.output) if recipe.output else None
    if output and any((output / name).is_file() for name in ("config.json", models.ADAPTER_CONFIG)):
        found.append((TRAINED, models.resolve(models.section_of(str(output), recipe.model))))
    if not found:
        raise BallastError("no model to evaluate; name one: --model PATH, or model=PATH")
    return found


def _base(recipe: Recipe, model: Any, name: str) -> Any:
    """Return the model before training, which divergences are measured from."""
    if name == BASE:
        return model
    if recipe.model is None:
        raise BallastError("a task with base_kl compares with the model before training; name it: model=PATH")
    return models.load_model(models.resolve(recipe.model)).to(model.device)


@contextmanager
def _progress(model: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a callback that moves a bar per task; None off a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    bars: dict[str, Any] = {}
    with Progress(console=Console(stderr=True), transient=True) as shown:

        def advance(task: str, done: int, total: int) -> None:
            if task not in bars:
                bars[task] = shown.add_task(f"{model}: {task}", total=total)
            shown.update(bars[task], completed=done, total=total)

        yield advance


def default_device() -> Any:
    """Return the accelerator where there is one, else the CPU."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
