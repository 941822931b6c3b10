"""`ballast rounds`: commands that are repeated, each round from the model that the round before ended with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ballast import models
from ballast.config.recipe import Recipe
from ballast.config.sections import TRAINERS
from ballast.errors import BallastError, Interrupted
from ballast.pipeline.digests import inputs_of
from ballast.pipeline.evaluate import BASE, READINESS, Sampled, base_model, measure, table_of
from ballast.pipeline.revise import run_revise
from ballast.pipeline.reward import run_reward
from ballast.pipeline.rl import run_rl
from ballast.pipeline.round_recipes import Round
from ballast.pipeline.run_folder import alone, write_evals
from ballast.pipeline.sample import run_sample
from ballast.pipeline.stopping import INTERRUPTED
from ballast.pipeline.tasks import load_tasks
from ballast.pipeline.train import run_train
from ballast.protocols import Say
from ballast.records import write as records
from ballast.records.folder import differing_key, discard
from ballast.records.read import read, read_lines
from ballast.records.runs import read_record
from ballast.records.schema import SCHEMA, EvalRecord, InputRecord, RoundsRecord

ROUNDS = "rounds.json"
SHRINK = ("entropy", "pass@", "mixed@", "distinct@")
"""Beginnings of the metrics of readiness that repeated rounds on a model's own answers tend to lower."""
Step = Callable[["Round"], Any]


def _sample(one: Round) -> None:
    # A sample that was stopped as it ended may have left them; they are made of the folder, and the same again.
    one.folder(one.right).unlink(missing_ok=True)
    run_sample(one.sampling(), say=one.say)


def _revise(one: Round) -> None:
    run_revise(one.revising(), say=one.say)


def _reward(one: Round) -> None:
    record = read_record(one.folder("reward"))
    if record is None or record.status != "finished":
        discard(one.folder("reward"))
        run_reward(one.learning_reward(), say=one.say, progress=one.progress)


def _train(one: Round) -> None:
    run_train(one.training(), resume=one.resumes("train"), say=one.say, progress=one.progress)


def _rl(one: Round) -> None:
    run_rl(one.reinforcing(), resume=one.resumes("rl"), say=one.say, progress=one.progress)


def _evaluate(one: Round) -> None:
    _measure(one, f"round {one.number}", one.number)


STEPS: dict[str, Step] = {
    "sample": _sample,
    "revise": _revise,
    "reward": _reward,
    "train": _train,
    "rl": _rl,
    "evaluate": _evaluate,
}


def run_rounds(recipe: Recipe, *, say: Say = print, progress: bool = True) -> list[EvalRecord]:
    """Run what is missing of the recipe's rounds below its output, and return what was measured of the base and each.

    Round n lies in ``round-n/VERB`` and has the seed plus n - 1. A command that is through is not run again; one that
    was stopped goes on as it would by itself, to the same result.

    Raises:
        BallastError: the input cannot be used, or the output belongs to other rounds or another process.
        Interrupted: on Ctrl-C and SIGTERM.
    """
    assert recipe.rounds is not None
    assert recipe.model is not None
    root = Path(str(recipe.output))
    with _going_on(root), alone(root, resume=True), records.disk_full_as_error(root):
        begun = _begin(recipe, root)
        done = [list(verbs) for verbs in begun.done]
        one = Round(recipe, 1, models.resolve(recipe.model), say, progress)
        if "evaluate" in recipe.rounds.steps and recipe.evaluation.base and not _measured(root):
            _measure(one, BASE, 0)
        for number in range(1, recipe.rounds.count + 1):
            done += [[]] if len(done) < number else []
            for verb in recipe.rounds.steps:
                one = Round(recipe, number, one.model, say, progress)
                if verb not in done[number - 1]:
                    say(f"round {number} of {recipe.rounds.count}: {verb}")
                    STEPS[verb](one)
                    done[number - 1].append(verb)
                    _write(recipe, root, done, begun.inputs)
                if verb in TRAINERS:
                    section = models.section_of(str(one.folder(verb)), recipe.model)
                    one = Round(recipe, number, models.resolve(section), say, progress)
        found = _measured(root)
    if found:
        say(table_of(found))
        for line in shrinking(found):
            say(line)
    say(f"{root}: {recipe.rounds.count} rounds; the last model is in {one.model.adapter or one.model.path}")
    return found


def problem_with(recipe: Recipe) -> str | None:
    """Return why the rounds of a recipe cannot go on in its output, None where they can; nothing is written."""
    root = Path(str(recipe.output))
    if not (root / ROUNDS).exists():
        foreign = sorted(path.name for path in root.iterdir() if path.name != ".lock") if root.is_dir() else []
        return f"{root}: holds {foreign[0]!r}, which is of no rounds; choose a new or empty folder" if foreign else None
    try:
        record = read(root / ROUNDS, RoundsRecord, remedy="name the output of `ballast rounds`")
    except BallastError as error:
        return str(error)
    wanted = recipe.resolved()
    rounds: Any = record.recipe["rounds"]
    # More rounds of the same kind go on from the last.
    begun = {**record.recipe, "rounds": {**rounds, "count": wanted["rounds"]["count"]}}
    key = differing_key(begun, wanted)
    if key is not None:
        return (
            f"{root}: its rounds began with another {key} and would change midway; set it back, or take another folder"
        )
    return None


def _begin(recipe: Recipe, root: Path) -> RoundsRecord:
    """Return the record of the rounds in a folder, which is made."""
    if problem := problem_with(recipe):
        raise BallastError(f"output: {problem}")
    inputs = inputs_of(recipe)
    if not (root / ROUNDS).exists():
        return _write(recipe, root, [], inputs)
    record = read(root / ROUNDS, RoundsRecord, remedy="name the output of `ballast rounds`")
    for key, found in record.inputs.items():
        if key in inputs and inputs[key].digest != found.digest:
            raise BallastError(
                f"{key}: {found.source} is another than when the rounds in {root} began, and would change midway; put "
                "it back, or choose another output"
            )
    return record


def _write(
    recipe: Recipe, root: Path, done: Sequence[Sequence[str]], inputs: Mapping[str, InputRecord]
) -> RoundsRecord:
    """Write what is through; the inputs stay those that the rounds began with."""
    record = RoundsRecord(
        schema=SCHEMA,
        recipe=recipe.resolved(),
        versions=records.versions(),
        commit=records.git_commit(),
        inputs=dict(inputs),
        done=tuple(tuple(verbs) for verbs in done),
    )
    records.write_json(root / ROUNDS, record.plain())
    return record


def _measure(one: Round, name: str, step: int) -> None:
    """Measure the round's model, divergences from the recipe's, and keep the answers and figures."""
    tasks = load_tasks(one.recipe)
    model = models.load_model(one.model, device=models.default_device())
    tokenizer = models.load_tokenizer(one.model, one.recipe.training)
    base = model if step == 0 else base_model(tasks, one.recipe.model, model)
    sampled = Sampled(one.recipe.engine, one.model)
    found = measure(tasks, model, tokenizer, name=name, base=base, sampled=sampled, progress=one.progress)
    write_evals(Path(str(one.recipe.output)), [found], step=step)


def _measured(root: Path) -> list[EvalRecord]:
    return sorted(read_lines(root / records.EVALS, EvalRecord), key=lambda record: record.step or 0)


def shrinking(found: Sequence[EvalRecord]) -> list[str]:
    """Return a line on each readiness task: how entropy, pass@k and what RL learns from went over the rounds."""
    if len(found) < 2:
        return []
    lines = []
    for first in (task for task in found[0].tasks if task.kind == READINESS):
        values = {
            metric: [task.metrics[metric].value for record in found for task in record.tasks if task.name == first.name]
            for beginning in SHRINK
            for metric in first.metrics
            if metric.startswith(beginning)
        }
        told = [f"{metric} {' → '.join(map(_number, course))}" for metric, course in values.items()]
        lines.append(f"{first.name}: {'; '.join(told)}")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@contextmanager
def _going_on(root: Path) -> Iterator[None]:
    """Say how the rounds go on when they are stopped."""
    try:
        yield
    except KeyboardInterrupt as stop:
        code = stop.code if isinstance(stop, Interrupted) else INTERRUPTED
        raise Interrupted(f"stopped; the same command goes on with the rounds in {root}", code) from None
