"""One run of training, whatever trains: measured, recorded as it goes, trained, saved, and measured again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from ballast import checkpoints
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.pipeline import sources
from ballast.pipeline.evaluate import Measured, base_model, measure, table
from ballast.pipeline.run_folder import (
    is_trained,
    no_empty_folder,
    read_record,
    save_final,
    write_evals,
    write_record,
)
from ballast.pipeline.stopping import Stop, stoppable
from ballast.pipeline.tasks import Tasks
from ballast.protocols import Model, Say, Tokenizer
from ballast.records import write as records
from ballast.records.schema import SCHEMA, CellRecord, ModelRecord, RunRecord


class Clock:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        """Keep the seconds since the last lap under a name."""
        moment = time.monotonic()
        self.laps[name], self._since = round(moment - self._since, 3), moment

    @property
    def total(self) -> float:
        """Seconds of all laps."""
        return sum(self.laps.values())


class Training(Protocol):
    """What trains in a run, from the model that `section` names.

    Attributes:
        args: settings of the trainer.
        facts: further fields of the record.
        trainer: transformers' own, from `start` on.
    """

    section: ModelSection
    args: Any
    facts: Mapping[str, Any]
    trainer: Any

    @property
    def model(self) -> Model: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def start(self) -> Sequence[str]:
        """Put the trainer together, which the model then belongs to; return lines on what it trains on."""

    def train(self, checkpoint: Path | None) -> Mapping[str, float]:
        """Train, or go on from a checkpoint, and return the trainer's totals."""

    def saved(self, output: Path) -> Mapping[str, Any]:
        """Complete what was saved, and return further fields of the record."""

    def warnings(self, output: Path) -> Sequence[str]:
        """Return what makes the training worth nothing although it came to its end, read off the run's log."""


@dataclass(frozen=True)
class Outcome:
    """A run that is through: its record, and what was measured before and after."""

    record: RunRecord
    measured: tuple[Measured, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run, and how it is measured.

    Attributes:
        recipe: as the record has it; it names the output.
        tasks: what is measured.
        before, after: what the model is called in the measurements.
        base: the model that divergences are measured from.
        at_base: whether training starts from that model.
        cell: which run of a comparison it is.
        progress: show bars while measuring.
        stop: whether the run was asked to end at the next step.
    """

    recipe: Recipe
    tasks: Tasks
    before: str
    after: str
    base: ModelSection | None
    at_base: bool = True
    cell: CellRecord | None = None
    say: Say = print
    progress: bool = True
    clock: Clock = field(default_factory=Clock)
    stop: Stop = field(default_factory=Stop)

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return Path(str(self.recipe.output))

    def stoppable(self) -> AbstractContextManager[None]:
        """Return the block that a run takes place in; a comparison says itself how it goes on."""
        if self.cell is not None:
            return nullcontext()
        return stoppable(self.output, self.stop, weights_only=bool(self.recipe.training.get("save_only_model")))

    def do(self, training: Training, *, resume: bool) -> Outcome:
        """Measure, train and measure again; the record says ``running``, then ``trained``, then ``finished``."""
        before = []
        if self.tasks and self.recipe.evaluation.base and not resume:
            model = training.model.to(training.args.device)
            base = model if self.at_base else base_model(self.tasks, self.base, model)
            before = [self._measure(model, training.tokenizer, self.before, base)]
        self.clock.lap("evaluate_before")
        sources.forget()
        last = self._last_checkpoint() if resume else None
        with no_empty_folder(self.output):
            lines, record = training.start(), self._record(training)
            if main := training.trainer.is_world_process_zero():
                for line in [*lines, *(() if last is None else last.lines())]:
                    self.say(line)
                write_record(self.output, record)
                write_evals(self.output, before, step=0)
        training.trainer.add_callback(self.stop.callback())
        totals = dict(training.train(None if last is None else last.path))
        self.clock.lap("train")
        save_final(training.trainer, self.output)
        self.clock.lap("save")
        if not main:
            return Outcome(record)
        found = {"train": totals, "seconds": dict(self.clock.laps), **training.saved(self.output)}
        warnings = tuple(training.warnings(self.output))
        record = record.model_copy(update={"status": "trained", **found, "warnings": warnings})
        write_record(self.output, record)
        if self.tasks and training.trainer.is_fsdp_enabled:
            # One rank holds a part of the weights only.
            self.say("the model is sharded: measure it with `ballast evaluate` afterwards")
            return self._end(record, before)
        return self.finish(record, training.trainer.model, training.tokenizer, before)

    def trained(self) -> RunRecord | None:
        """Return the record of this run where its weights are the last ones, None where it is to train.

        A run that is now to train further or otherwise is another one.
        """
        record = read_record(self.output)
        return record if is_trained(record, self.recipe) else None

    def is_over(self, record: RunRecord) -> bool:
        """Return whether a run that has trained was measured as well, as this recipe asks; say so."""
        measured = record.recipe.get("evaluation") == self.recipe.resolved()["evaluation"]
        if record.status != "finished" or not measured:
            return False
        self.say(f"{self.output}: finished at step {last_step(self.output)} already; nothing is left to do")
        return True

    def _last_checkpoint(self) -> checkpoints.Last:
        """Return the checkpoint to go on from.

        Raises:
            BallastError: none is whole.
        """
        last = checkpoints.last_whole(self.output, weights_only=bool(self.recipe.training.get("save_only_model")))
        if last.path is None:
            raise BallastError("; ".join([f"{self.output}: has no checkpoint to resume from", *last.lines()]))
        return last

    def finish(self, record: RunRecord, model: Model, tokenizer: Tokenizer, before: Sequence[Measured] = ()) -> Outcome:
        """Measure the trained model of a record that says ``trained``."""
        after = []
        if self.tasks:
            after = [self._measure(model, tokenizer, self.after, base_model(self.tasks, self.base, model))]
            write_evals(self.output, after, step=last_step(self.output))
        self.clock.lap("evaluate")
        return self._end(record, [*before, *after])

    def _end(self, record: RunRecord, measured: Sequence[Measured]) -> Outcome:
        seconds = {**record.seconds, **self.clock.laps}
        recipe = {**record.recipe, "evaluation": self.recipe.resolved()["evaluation"]}
        ended = {"status": "finished", "finished": now(), "seconds": seconds, "recipe": recipe}
        record = record.model_copy(update=ended)
        write_record(self.output, record)
        if measured:
            self.say(table(measured))
        for warning in record.warnings:
            self.say(f"warning: {warning}")
        self.say(f"{self.output}: {_reward(record)}checkpoint and run record written ({self.clock.total:.0f} s)")
        return Outcome(record, tuple(measured))

    def _measure(self, model: Model, tokenizer: Tokenizer, name: str, base: Model | None) -> Measured:
        return measure(self.tasks, model, tokenizer, name=name, base=base, progress=self.progress)

    def _record(self, training: Training) -> RunRecord:
        model, args = training.model, training.args
        own = training.facts if self.cell is None else {**training.facts, "cell": self.cell}
        return RunRecord(
            schema=SCHEMA,
            status="running",
            recipe=self.recipe.resolved(),
            model=ModelRecord(
                path=training.section.path,
                type=model.config.model_type,
                parameters=sum(weight.numel() for weight in model.parameters()),
                dtype=str(model.dtype).removeprefix("torch."),
            ),
            versions=records.versions(),
            commit=records.git_commit(),
            device=str(args.device),
            processes=args.world_size,
            bf16=bool(args.bf16),
            gradient_checkpointing=bool(args.gradient_checkpointing),
            started=now(),
            **own,
        )


def last_step(output: Path) -> int:
    """Return the optimiser step that the log of a run ends with."""
    return int(records.read_jsonl(output / records.METRICS)[-1]["step"])


def now() -> str:
    """Return the time in UTC as a record has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _reward(record: RunRecord) -> str:
    reward = record.reward
    return "" if reward is None else f"reward {reward.first:.3f} → {reward.last:.3f}; "
