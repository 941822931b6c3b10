"""`ballast evaluate`: models on the recipe's tasks, or their readiness for reinforcement learning alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.engines.options import Engine, TransformersEngine, is_fixed
from ballast.errors import BallastError
from ballast.evaluation.tasks import GenerateTask, NllTask, ReadinessTask, SampledTask, Task
from ballast.files import check_place, file_name, same_file
from ballast.limits import check_tokenizer
from ballast.pipeline import engines, sources
from ballast.pipeline.inputs import silent
from ballast.pipeline.tasks import Tasks, load_tasks
from ballast.progress import on_stderr
from ballast.protocols import Model, Say, Tokenizer
from ballast.ranks import ALONE, Ranks, join
from ballast.records.schema import EngineRecord, Estimate, EvalRecord, TaskRecord
from ballast.records.write import EVALS, append_jsonl

if TYPE_CHECKING:
    from rich.table import Table

    from ballast.evaluation import TaskResult

BASE, TRAINED = "base", "trained"
READINESS = "readiness"
KEPT = (
    *("verifier", "verifier_seconds", "max_new_tokens", "stop", "top_p"),
    *("limit", "split", "columns", "seed", "batch_tokens"),
)
"""Options that the readiness task takes over from the task it is made of."""


@dataclass(frozen=True)
class Measured:
    """One model's results on the recipe's tasks."""

    name: str
    results: tuple[TaskResult, ...]
    sources: Mapping[str, Mapping[str, str]]
    digests: Mapping[str, str]
    engine: EngineRecord | None = None

    def record(self, **beside: Any) -> EvalRecord:
        """Return the results without the single answers, and other fields of the record."""
        sampled: dict[str, Any] = {} if self.engine is None else {"engine": self.engine}
        return EvalRecord(model=self.name, tasks=tuple(map(self._task, self.results)), **sampled, **beside)

    def _task(self, result: TaskResult) -> TaskRecord:
        return TaskRecord(
            name=result.name,
            kind=result.kind,
            metrics={name: Estimate.of(estimate) for name, estimate in result.metrics.items()},
            counts=dict(result.counts),
            settings={**result.settings, **self.sources[result.name]},
            seconds=result.seconds,
            rows=self.digests[result.name],
        )

    def write_items(self, folder: Path) -> None:
        """Write every prompt, answer and score, one file per task."""
        from ballast.evaluation.results import write_items

        for result in self.results:
            write_items(folder / file_name(self.name) / f"{file_name(result.name)}.jsonl", result)


@dataclass(frozen=True)
class Sampled:
    """What samples a model's answers.

    Attributes:
        engine: by the recipe.
        section: where the model lies on disk, as it is in memory.
    """

    engine: Engine
    section: ModelSection


@sources.read_once()
def run_evaluate(
    recipe: Recipe, *, paths: Sequence[str] = (), items: str | Path | None = None, say: Say = print
) -> list[Measured]:
    """Measure models on the recipe's tasks, and return one entry per model.

    Ranks that a launcher started share the work; each returns all, and the first says and writes it.

    Args:
        paths: models to measure; by default the recipe's model (as ``base``), then the checkpoint in its output.
        items: folder for every prompt, answer and score.

    Raises:
        BallastError: a model or a task cannot be used.
    """
    chosen = check_measurement(recipe, paths=paths, items=items)
    tasks, measured, ranks = load_tasks(recipe), list[Measured](), join()
    say = say if ranks.main else silent
    base: Model | None = None
    for name, section in chosen:
        path = section.adapter or section.path
        say(name if name == path else f"{name}: {path}")
        tokenizer = models.load_tokenizer(section, recipe.training)
        model = models.load_model(section, device=models.default_device())
        for line in check_prompts(tasks, model, tokenizer):
            say(f"{name}: {line}")
        if base is None:
            base = model if name == BASE else base_model(tasks, recipe.model, model)
        sampled = Sampled(recipe.engine, section)
        measured.append(measure(tasks, model, tokenizer, name=name, base=base, sampled=sampled, ranks=ranks))
        if not ranks.main:
            continue
        if (asked := measured[-1].engine) is not None and (told := engines.line(asked)):
            say(f"{name}: {told}")
        if name == TRAINED:
            append_jsonl(Path(str(recipe.output)) / EVALS, [measured[-1].record().plain()])
        if items is not None:
            measured[-1].write_items(Path(items))
    return measured


def check_measurement(
    recipe: Recipe, *, paths: Sequence[str] = (), items: str | Path | None = None
) -> list[tuple[str, ModelSection]]:
    """Return the models that `run_evaluate` measures with these arguments, by name; no weight is read.

    Raises:
        BallastError: one of them cannot be used, or the answers have no place of their own.
    """
    chosen = _chosen(recipe, paths)
    for name, section in chosen:
        problem = models.check_folder(section.path) or (section.adapter and models.check_adapter(section.adapter))
        if problem:
            raise BallastError(f"model {name}: {problem}")
    if clash := same_file(name for name, _ in chosen):
        raise BallastError(
            f"models {clash[1]} and {chosen[clash[0]][0]}: their answers would go to one folder, the first one's lost; "
            "measure them one at a time"
        )
    sampled = any(isinstance(task, SampledTask) for task in recipe.evaluation.tasks)
    if len(chosen) > 1 and sampled and is_fixed(recipe.engine):
        names = ", ".join(name for name, _ in chosen)
        raise BallastError(
            f"engine: serves one model, and {len(chosen)} are measured ({names}): the same answers would count as "
            "those of each; name one with --model, or take engine.kind=vllm without base_url, which starts a server "
            "for each"
        )
    check_place("--items", items)
    for name, section in chosen:
        if problem := models.attention_problem(section):
            raise BallastError(f"model {name}: {problem}")
        check_tokenizer(section.path, models.load_config(section), models.load_tokenizer(section))
    return chosen


def measure(
    tasks: Tasks,
    model: Model,
    tokenizer: Tokenizer,
    *,
    name: str,
    base: Model | None,
    sampled: Sampled,
    progress: bool = True,
    ranks: Ranks = ALONE,
) -> Measured:
    """Return one model's results.

    Args:
        base: the model before training, where `tasks` measure divergences from it.
        sampled: by what, where `tasks` sample answers.
        progress: show bars on a terminal, a line now and then elsewhere.
        ranks: who shares the work.
    """
    from ballast.evaluation import evaluate

    options = sampled.engine if tasks.sample else TransformersEngine()
    with (
        on_stderr("rows", show=progress) as tell,
        engines.opened(options, model, tokenizer, sampled.section) as engine,
    ):
        results = evaluate(
            model,
            tokenizer,
            tasks.loaded,
            base=base,
            revisers=revisers(tasks, model),
            sampler=engine.generate,
            progress=lambda task, done, total: tell(f"{name}: {task}", done, total),
            ranks=ranks,
        )
        record = engine.record() if tasks.sample else None
    return Measured(name, tuple(results), tasks.sources, tasks.digests, record)


def revisers(tasks: Tasks, like: Model) -> dict[str, tuple[Model, Tokenizer]]:
    """Return the revisers that tasks name, on the device and in the dtype of the model that is measured."""
    found: dict[str, tuple[Model, Tokenizer]] = {}
    for path in filter(None, (task.reviser for task in tasks.loaded)):
        section = models.resolve(models.section_of(path)).changed({"dtype": str(like.dtype).removeprefix("torch.")})
        if path not in found:
            found[path] = models.load_model(section, device=like.device), models.load_tokenizer(section)
    return found


def base_model(tasks: Tasks, section: ModelSection | None, model: Model) -> Model | None:
    """Return the model before training, loaded beside `model`; None where no task measures a divergence from it.

    Raises:
        BallastError: if there is no such model.
    """
    if not tasks.need_base:
        return None
    if section is None:
        raise BallastError("a task with base_kl compares with the model before training; name it: model=PATH")
    return models.load_model(models.resolve(section), device=model.device)


def check_prompts(tasks: Tasks, model: Model, tokenizer: Tokenizer) -> list[str]:
    """Refuse prompts without room for their answers, and stop strings that cannot be found, before training.

    Returns:
        What the chat template leaves out of prompts, as lines to print.

    Raises:
        BallastError: naming the task and the row.
    """
    from ballast.data.prompts import left_out_of_prompts
    from ballast.evaluation.generation import encode_prompts
    from ballast.evaluation.stopping import check_stop

    found = []
    for task in tasks.loaded:
        if isinstance(task, SampledTask) and not isinstance(task.data, str):
            try:
                check_stop(tokenizer, task.stop)
                encode_prompts(model, tokenizer, rows := list(task.data), task.max_new_tokens)
                found += [f"task {task.name!r}: {note}" for note in left_out_of_prompts(rows, tokenizer)]
            except BallastError as error:
                raise BallastError(f"evaluation task {task.name!r}: {error}") from error
    return found


def table(measured: Sequence[Measured]) -> Table:
    """Return a row per task and metric, a column per model, each value with its interval."""
    return table_of([entry.record() for entry in measured])


def table_of(records: Sequence[EvalRecord]) -> Table:
    """Return the same of measurements that were kept."""
    from rich.box import SIMPLE
    from rich.table import Column, Table

    names = (Column(name, no_wrap=True) for name in ("task", "metric", "n"))
    view = Table(*names, *(record.model for record in records), box=SIMPLE, pad_edge=False)
    columns = [{(r.name, metric): e for r in record.tasks for metric, e in r.metrics.items()} for record in records]
    for task, metric in dict.fromkeys(key for column in columns for key in column):
        cells = [column.get((task, metric)) for column in columns]
        count = next(str(cell.n) for cell in cells if cell is not None)
        view.add_row(task, metric, count, *(_cell(cell) for cell in cells))
    return view


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
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
    found = [task for task in tasks if isinstance(task, ReadinessTask)] or [_readiness_of(recipe)]
    given = {name: value for name, value in (("group", group), ("samples", samples)) if value is not None}
    changed = [task.changed(given) for task in found]
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"tasks": tuple(changed)})})


def _readiness_of(recipe: Recipe) -> ReadinessTask:
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
        kept["demonstrations"] = sources.TRAIN
    text = next((task for task in recipe.evaluation.tasks if _is_text(task)), None)
    return ReadinessTask(name=READINESS, data=start.data, forgetting=text.data if text else None, **kept)


def _is_text(task: Task) -> bool:
    """Whether a task reads plain texts that need no renaming; one of kind ``nll`` may also read demonstrations."""
    if not isinstance(task, NllTask) or task.columns is not None or task.split is not None:
        return False
    return "text" in sources.load(task.sources()["data"], limit=task.limit).column_names


def readiness_lines(measured: Sequence[Measured]) -> list[str]:
    """Return for every model and task of kind ``readiness`` what was spent and what it says, in sentences."""
    found = [(entry.name, result) for entry in measured for result in entry.results if result.kind == READINESS]
    return [line for model, result in found for line in (_budget(model, result), _gradient(model, result))]


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
