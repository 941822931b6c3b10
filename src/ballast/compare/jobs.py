"""The single pieces of work of a comparison, each of which leaves a folder that is done or none."""

from __future__ import annotations

import gc
import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ballast.compare.cells import cell_recipe, rl_recipe, seeded
from ballast.compare.plan import BASE, REPORT, TUNING, Cell, Plan
from ballast.config.recipe import EvaluationSection, Recipe
from ballast.errors import BallastError
from ballast.records import write as records
from ballast.records.folder import (
    ERROR,
    FULL,
    MARK,
    Store,
    differing_key,
    discard,
    drop_weights,
    mark_done,
    read_run,
    room,
    writing,
)
from ballast.records.runs import FAILED, read_failure, read_lines

FINE_TUNE, REINFORCE = "train", "rl"


@dataclass(frozen=True)
class Work:
    """One piece: fine-tune a cell, or follow a cell (or the start, without one) with RL."""

    kind: str
    seed: int
    cell: Cell | None = None

    @property
    def name(self) -> str:
        """What the user sees."""
        of = BASE if self.cell is None else self.cell.name
        return of if self.kind == FINE_TUNE else f"{of}-s{self.seed}, RL" if self.cell is None else f"{of}, RL"

    @property
    def label(self) -> str:
        """The row that it belongs to."""
        return BASE if self.cell is None else self.cell.label

    def folder(self, store: Store) -> Path:
        """Return where its record lies."""
        if self.cell is None:
            return store.base_rl(self.seed)
        return store.cell(self.cell.name) if self.kind == FINE_TUNE else store.rl(self.cell.name)

    def mark(self) -> dict[str, Any]:
        """Return which part of the comparison it is, as its record says it."""
        start = {"label": BASE, "rate": None, "seed": self.seed, "role": REPORT}
        return start if self.cell is None else self.cell.record()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Work:
        """Return the work that `to_dict` wrote out."""
        cell = values["cell"]
        return cls(values["kind"], values["seed"], None if cell is None else Cell(**cell))


@dataclass(frozen=True)
class Bench:
    """What every piece of work needs: the matrix, where it lies, and the steps of its budget."""

    plan: Plan
    store: Store
    steps: int | None = None

    def recipe(self, work: Work) -> Recipe:
        """Return the recipe of a piece of work."""
        if work.kind == REINFORCE:
            return rl_recipe(self.plan, work.seed, work.folder(self.store))
        assert work.cell is not None
        return cell_recipe(self.plan, work.cell, self.store, steps=self.steps)

    def is_done(self, work: Work) -> bool:
        """Whether a piece of work is done, by this recipe.

        Raises:
            BallastError: it was done by another one.
        """
        folder = work.folder(self.store)
        record = read_run(folder)
        if record is None:
            return False
        if (key := differing_key(record.get("recipe") or {}, self.recipe(work).resolved())) is not None:
            raise BallastError(
                f"{folder}: was run with another {key} than the recipe now says, so its results would be mixed with "
                "others; choose another output, set it back, or remove the folder to have it done again"
            )
        return True

    def seconds(self, work: Work) -> float | None:
        """Return how long a piece of work took, None where no record says so."""
        record = read_run(work.folder(self.store)) or {}
        laps = record.get("seconds")
        return sum(laps.values()) if laps else None

    def run(self, work: Work) -> None:
        """Do a piece of work from the start, and mark it as done.

        Raises:
            BallastError: its input cannot be used.
        """
        folder = work.folder(self.store)
        discard(folder)
        KINDS[work.kind](self, work, folder)
        mark_done(folder, work.mark())
        _forget()

    def fail(self, work: Work, error: BaseException) -> str:
        """Keep a record of work that broke off; return the error in one line.

        Raises:
            BallastError: the disk is full or takes no record, which would break off every other run too.
        """
        folder = work.folder(self.store)
        message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        with writing(folder), room(folder):
            discard(folder)
            if FULL in message:
                raise error
            folder.mkdir(parents=True)
            (folder / ERROR).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            record = {"status": FAILED, "error": message, "recipe": self.recipe(work).resolved(), MARK: work.mark()}
            records.write_json(folder / records.RUN, record)
        _forget()
        return message

    def has_failed(self, work: Work) -> bool:
        """Whether the record says that it broke off."""
        return read_failure(work.folder(self.store)) is not None


def _fine_tune(bench: Bench, work: Work, folder: Path) -> None:
    from ballast.pipeline import run_train

    run_train(bench.recipe(work), say=_silent, progress=False)
    assert work.cell is not None
    if work.cell.role == TUNING and not bench.plan.compare.keep_tuning:
        drop_weights(folder)


def _reinforce(bench: Bench, work: Work, folder: Path) -> None:
    from ballast.pipeline import run_rl

    start = None if work.cell is None else bench.store.cell(work.cell.name)
    run_rl(bench.recipe(work), start=start, output=folder, say=_silent, progress=False)


KINDS: dict[str, Callable[[Bench, Work, Path], None]] = {FINE_TUNE: _fine_tune, REINFORCE: _reinforce}


def measure_start(bench: Bench, *, progress: bool) -> None:
    """Measure the recipe's model on all tasks, unless that is done: answers first, the results last."""
    from ballast import models
    from ballast.pipeline.evaluate import check_prompts, default_device, measure

    plan, folder = bench.plan, bench.store.base
    recipe = start_recipe(plan)
    if (folder / records.EVALS).is_file():
        found = read_lines(folder / records.EVALS)
        recorded = found[0].get("recipe") if found else None
        if recorded is not None and (key := differing_key(recorded, recipe.resolved())) is not None:
            raise BallastError(
                f"{folder}: the start was measured with another {key} than the recipe now says; choose another output, "
                "set it back, or remove the folder to have it measured again"
            )
        return
    shutil.rmtree(folder / "evals", ignore_errors=True)
    for leftover in folder.glob("*.tmp"):
        leftover.unlink(missing_ok=True)
    assert recipe.model is not None
    section = models.resolve(recipe.model)
    tokenizer = models.load_tokenizer(section)
    model = models.load_model(section).to(default_device())
    check_prompts(recipe, model, tokenizer)
    [measured] = measure(recipe, model, tokenizer, name=BASE, progress=progress)
    measured.write_items(folder / "evals")
    made = {"versions": records.versions(), "commit": records.git_commit(), "device": str(model.device)}
    records.write_jsonl(folder / records.EVALS, [measured.record(step=0, recipe=recipe.resolved(), **made)])
    _forget()


def start_recipe(plan: Plan) -> Recipe:
    """Return the recipe that the start is measured with: every task, with the samples of the first seed."""
    tasks = seeded(plan.recipe.evaluation.tasks, plan.recipe.seed)
    changes = {
        "evaluation": EvaluationSection(tasks=tasks),
        "compare": None,
        "rl": None,
        "training": {},
        "groups": None,
    }
    return plan.recipe.model_copy(update=changes)


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


def _forget() -> None:
    """Give memory back before the next model is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
