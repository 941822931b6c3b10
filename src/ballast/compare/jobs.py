"""The jobs of a comparison, each of which leaves a folder that is done or none."""

from __future__ import annotations

import gc
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    """Fine-tune a cell, or follow it with RL; the cell of the base model is followed with RL alone."""

    kind: Literal["train", "rl"]
    cell: CellRecord

    @property
    def name(self) -> str:
        """What the user sees."""
        of = f"{BASE}-s{self.cell.seed}" if self.cell.label == BASE else self.cell.name
        return of if self.kind == "train" else f"{of}, RL"

    @property
    def label(self) -> str:
        """The row that it belongs to."""
        return self.cell.label

    def folder(self, store: Store) -> Path:
        """Return where its record lies."""
        if self.cell.label == BASE:
            return store.base_rl(self.cell.seed)
        return store.cell(self.cell.name) if self.kind == "train" else store.rl(self.cell.name)


def base_rl(seed: int) -> Job:
    """Return the RL that starts from the base model."""
    return Job(kind="rl", cell=CellRecord(label=BASE, rate=None, seed=seed, role=REPORT))


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
            return rl_recipe(self.plan, job.cell.seed, job.folder(self.store))
        return cell_recipe(self.plan, job.cell, self.store, steps=self.steps)

    def is_done(self, job: Job) -> bool:
        """Whether a job is done, by this recipe.

        Raises:
            BallastError: it was done by another one.
        """
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

    def has_failed(self, job: Job) -> bool:
        """Whether the record says that it broke off."""
        record = read_record(job.folder(self.store))
        return record is not None and record.status == "failed"

    def run(self, job: Job) -> None:
        """Do a job from its beginning.

        Raises:
            BallastError: its input cannot be used.
        """
        folder = job.folder(self.store)
        discard(folder)
        KINDS[job.kind](self, job, folder)
        _free_memory()

    def fail(self, job: Job, error: BaseException) -> str:
        """Keep a record of a job that broke off; return the error in one line.

        Raises:
            BallastError: the disk is full or takes no record, which would break off every other run too.
        """
        folder = job.folder(self.store)
        message = " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE]
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


def _fine_tune(context: JobContext, job: Job, folder: Path) -> None:
    from ballast.pipeline import run_train

    run_train(context.recipe(job), cell=job.cell, say=_silent, progress=False)
    context.drop_tuning_weights(job)


def _reinforce(context: JobContext, job: Job, folder: Path) -> None:
    from ballast.pipeline import run_rl

    start = None if job.cell.label == BASE else context.store.cell(job.cell.name)
    run_rl(context.recipe(job), start=start, output=folder, cell=job.cell, say=_silent, progress=False)


KINDS: dict[str, Callable[[JobContext, Job, Path], None]] = {"train": _fine_tune, "rl": _reinforce}


def measure_base(context: JobContext, say: Say, *, progress: bool) -> None:
    """Measure the base model on all tasks, unless that is done: answers first, the results last."""
    from ballast import models
    from ballast.pipeline.digests import inputs_of
    from ballast.pipeline.evaluate import Sampled, check_prompts, measure
    from ballast.pipeline.tasks import load_tasks

    folder, recipe = context.store.base, base_recipe(context.plan)
    if (folder / EVALS).is_file():
        _check_base(folder, recipe)
        return
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
    measured = measure(tasks, model, tokenizer, name=BASE, base=model, sampled=sampled, progress=progress)
    measured.write_items(folder / "evals")
    made = {"versions": versions(), "commit": git_commit(), "device": str(model.device)}
    made_of = inputs_of(recipe)
    write_jsonl(folder / EVALS, [measured.record(step=0, recipe=recipe.resolved(), inputs=made_of, **made).plain()])
    _free_memory()


def _check_base(folder: Path, recipe: Recipe) -> None:
    """Refuse measurements of the base model that another recipe made."""
    found = read_lines(folder / EVALS, EvalRecord, remedy=f"remove {folder} to have it measured again")
    recorded = found[0].recipe if found else None
    if recorded is not None and (key := differing_key(recorded, recipe.resolved())) is not None:
        raise BallastError(
            f"{folder}: the base model was measured with another {key} than the recipe now says; choose another "
            "output, set it back, or remove the folder to have it measured again"
        )


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


def _silent(_: Any) -> None:
    return None


def _free_memory() -> None:
    """Give memory back before the next model is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
