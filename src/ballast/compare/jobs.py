"""The jobs of a comparison, each of which leaves a folder that is done or none."""

from __future__ import annotations

import gc
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ballast.compare import trackers
from ballast.compare.inputs import Inputs
from ballast.compare.plan import Plan, cell_recipe, prompt_settings, rl_recipe, seeded
from ballast.config.recipe import EvaluationSection, Recipe
from ballast.errors import BallastError
from ballast.protocols import Say
from ballast.records.folder import BASE, ERROR, REPORT, TUNING, Store, differing_key, discard, drop_weights
from ballast.records.read import read_lines
from ballast.records.runs import read_record
from ballast.records.schema import SCHEMA, CellRecord, EvalRecord, Record, RunRecord
from ballast.records.write import (
    EVALS,
    RUN,
    disk_full_as_error,
    git_commit,
    is_disk_full,
    unwritable_as_error,
    versions,
    write_json,
    write_jsonl,
)

MESSAGE = 500
"""Characters of an error that a record keeps; the rest is in ``error.txt``."""


class Job(Record):
    """Fine-tune a cell, or follow it with RL; measure the base model or score the rows, which all runs share.

    The cell of what is shared is the base model's, which is followed with RL alone.
    """

    kind: Literal["train", "rl", "base", "score"]
    cell: CellRecord

    @property
    def shared(self) -> bool:
        """Whether it is no run of its own but what runs share: without it there is no comparison."""
        return self.kind in ("base", "score")

    @property
    def name(self) -> str:
        """What the user sees."""
        if self.shared:
            return BASE if self.kind == "base" else "reference"
        of = f"{BASE}-s{self.cell.seed}" if self.cell.label == BASE else self.cell.name
        return of if self.kind == "train" else f"{of}, RL"

    @property
    def order(self) -> str:
        """As a line for another process; what is not set stays so, since records hold what was set."""
        return self.model_dump_json(exclude_unset=True)

    def line(self, problem: object) -> str:
        """Return what is wrong with the input of all, with the name of the run that found it."""
        return str(problem) if self.shared else f"{self.name}: {problem}"

    @property
    def label(self) -> str:
        """The row that it belongs to."""
        return self.cell.label

    def folder(self, store: Store) -> Path:
        """Return where its record lies."""
        if self.shared:
            return store.base if self.kind == "base" else store.cache
        if self.cell.label == BASE:
            return store.base_rl(self.cell.seed)
        return store.cell(self.cell.name) if self.kind == "train" else store.rl(self.cell.name)


def one_line(error: BaseException) -> str:
    """Return an error in one line, cut where it is long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE]


def base_rl(seed: int) -> Job:
    """Return the RL that starts from the base model."""
    return Job(kind="rl", cell=_base_cell(seed))


def measuring(plan: Plan) -> Job:
    """Return the measurement of the base model."""
    return Job(kind="base", cell=_base_cell(plan.recipe.seed))


def scoring(plan: Plan) -> Job:
    """Return the scoring of the rows under the reference, for all runs that read it from the cache."""
    return Job(kind="score", cell=_base_cell(plan.recipe.seed))


def _base_cell(seed: int) -> CellRecord:
    return CellRecord(label=BASE, rate=None, seed=seed, role=REPORT)


@dataclass(frozen=True)
class JobContext:
    """What every job needs: the matrix, where it lies, the steps of its budget, and what it is made of."""

    plan: Plan
    store: Store
    steps: int | None = None
    inputs: Inputs = field(default_factory=dict)

    def recipe(self, job: Job) -> Recipe:
        """Return the recipe of a job."""
        if job.kind == "rl":
            made = rl_recipe(self.plan, job.cell.seed, job.folder(self.store))
        else:
            made = cell_recipe(self.plan, job.cell, self.store, steps=self.steps)
        return trackers.named(made, job.name, self.plan.recipe)

    def is_done(self, job: Job) -> bool:
        """Whether a job is done, by this recipe.

        Raises:
            BallastError: it was done by another one.
        """
        if job.shared:
            return job.kind == "base" and is_measured(self)
        record = self._finished(job)
        if record is None:
            return False
        if (key := differing_key(record.recipe, self.recipe(job).resolved())) is not None:
            raise BallastError(
                f"{job.folder(self.store)}: was run with another {key} than the recipe now says, so its results would "
                "be mixed with others; choose another output, set it back, or remove the folder to have it done again"
            )
        return True

    def seconds(self, job: Job) -> float | None:
        """Return how long a job took, None where no record says so."""
        record = self._finished(job)
        return sum(record.seconds.values()) if record is not None and record.seconds else None

    def _finished(self, job: Job) -> RunRecord | None:
        record = read_record(job.folder(self.store))
        return record if record is not None and record.cell is not None and record.status == "finished" else None

    def run(self, job: Job, say: Say) -> None:
        """Do a job from its beginning.

        Args:
            say: takes what there is to say of what all runs share.

        Raises:
            BallastError: its input cannot be used.
        """
        folder = job.folder(self.store)
        if not job.shared:
            discard(folder)
        KINDS[job.kind](self, job, folder, say)
        _free_memory()

    def fail(self, job: Job, error: BaseException) -> str:
        """Keep a record of a job that broke off; return the error in one line.

        Raises:
            BallastError: the disk is full or takes no record, which would break off every other run too.
        """
        folder = job.folder(self.store)
        message = one_line(error)
        with unwritable_as_error(folder), disk_full_as_error(folder):
            discard(folder)
            if is_disk_full(error):
                raise error
            folder.mkdir(parents=True)
            (folder / ERROR).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            recipe = self.recipe(job).resolved()
            record = RunRecord(schema=SCHEMA, status="failed", error=message, recipe=recipe, cell=job.cell)
            write_json(folder / RUN, record.plain())
        _free_memory()
        return message

    def drop_tuning_weights(self, job: Job) -> None:
        """Remove the weights of a run that chooses a rate, unless the recipe keeps them."""
        if job.cell.role == TUNING and not self.plan.compare.keep_tuning:
            drop_weights(job.folder(self.store))


def _fine_tune(context: JobContext, job: Job, folder: Path, say: Say) -> None:
    from ballast.pipeline import run_train

    if context.plan.method(job.label).random:
        make_random(context.plan, job.cell.seed, context.store.random(job.cell.seed))
    recipe = context.recipe(job)
    with trackers.tracked(recipe, trackers.group_of(context.plan.recipe)):
        run_train(recipe, cell=job.cell, say=_silent, progress=False)
    context.drop_tuning_weights(job)


def _reinforce(context: JobContext, job: Job, folder: Path, say: Say) -> None:
    from ballast.pipeline import run_rl

    start = None if job.cell.label == BASE else context.store.cell(job.cell.name)
    recipe = context.recipe(job)
    with trackers.tracked(recipe, trackers.group_of(context.plan.recipe)):
        run_rl(recipe, start=start, output=folder, cell=job.cell, say=_silent, progress=False)


def _score_rows(context: JobContext, job: Job, folder: Path, say: Say) -> None:
    from ballast.pipeline import run_score

    cached = next((recipe for recipe in row_recipes(context) if recipe.reference.cache is not None), None)
    if cached is not None:
        with disk_full_as_error(context.store.root):
            run_score(cached, say=say)


def _measure_base(context: JobContext, job: Job, folder: Path, say: Say) -> None:
    """Measure the base model on all tasks: answers first, the results last."""
    from ballast import models
    from ballast.pipeline.digests import inputs_of
    from ballast.pipeline.evaluate import Sampled, check_prompts, measure
    from ballast.pipeline.tasks import load_tasks

    recipe = base_recipe(context.plan)
    shutil.rmtree(folder / "evals", ignore_errors=True)
    for leftover in folder.glob("*.tmp"):
        leftover.unlink(missing_ok=True)
    assert recipe.model is not None
    section, tasks = models.resolve(recipe.model), load_tasks(recipe)
    tokenizer = models.load_tokenizer(section, recipe.training)
    model = models.load_model(section, device=models.default_device())
    for line in check_prompts(tasks, model, tokenizer):
        say(line)
    sampled = Sampled(recipe.engine, section)
    made = {"versions": versions(), "commit": git_commit(), "device": str(model.device)}
    with disk_full_as_error(context.store.root):
        measured = measure(tasks, model, tokenizer, name=BASE, base=model, sampled=sampled, progress=False)
        measured.write_items(folder / "evals")
        made_of = inputs_of(recipe)
        write_jsonl(folder / EVALS, [measured.record(step=0, recipe=recipe.resolved(), inputs=made_of, **made).plain()])


KINDS: dict[str, Callable[[JobContext, Job, Path, Say], None]] = {
    "train": _fine_tune,
    "rl": _reinforce,
    "base": _measure_base,
    "score": _score_rows,
}


def row_recipes(context: JobContext) -> list[Recipe]:
    """Return the recipe of one run of each row."""
    plan = context.plan
    cells = [CellRecord(label=row.label, rate=row.rates[0], seed=plan.recipe.seed, role=REPORT) for row in plan.methods]
    return [cell_recipe(plan, cell, context.store, steps=context.steps) for cell in cells]


def is_measured(context: JobContext) -> bool:
    """Whether the base model is measured.

    Raises:
        BallastError: it was measured by another recipe.
    """
    folder, recipe = context.store.base, base_recipe(context.plan)
    if not (folder / EVALS).is_file():
        return False
    found = read_lines(folder / EVALS, EvalRecord, remedy=f"remove {folder} to have it measured again")
    recorded = found[0].recipe if found else None
    if recorded is not None and (key := differing_key(recorded, recipe.resolved())) is not None:
        raise BallastError(
            f"{folder}: the base model was measured with another {key} than the recipe now says; choose another "
            "output, set it back, or remove the folder to have it measured again"
        )
    return True


def base_recipe(plan: Plan) -> Recipe:
    """Return the recipe that the base model is measured with: every task, with the samples of the first seed."""
    tasks = seeded(plan.recipe.evaluation.tasks, plan.recipe.seed)
    evaluation = EvaluationSection(tasks=tasks)
    others: dict[str, Any] = {"compare": None, "rl": None, "training": prompt_settings(plan.recipe), "groups": None}
    return plan.recipe.model_copy(update={"evaluation": evaluation, **others})


def make_random(plan: Plan, seed: int, folder: Path) -> None:
    """Write a model like the recipe's with random weights, unless it is there; the folder appears whole."""
    import torch
    from transformers import AutoModelForCausalLM

    from ballast import models

    if folder.is_dir():
        return
    assert plan.recipe.model is not None
    section = models.resolve(plan.recipe.model)
    config = models.load_config(section)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, trust_remote_code=section.trust_remote_code, dtype=torch.float32
        )
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    models.load_tokenizer(section).save_pretrained(temporary)
    temporary.rename(folder)


def _silent(_: object) -> None:
    return None


def _free_memory() -> None:
    """Give memory back before the next model is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
