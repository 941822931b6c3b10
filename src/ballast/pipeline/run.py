"""One run of training, whatever trains: measured, recorded as it goes, trained, saved, and measured again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import checkpoints, models
from ballast.config.recipe import ModelSection, Recipe
from ballast.engines.options import is_local
from ballast.errors import BallastError
from ballast.pipeline import disk, sources
from ballast.pipeline.digests import inputs_of
from ballast.pipeline.evaluate import Measured, Sampled, base_model, measure, table
from ballast.pipeline.run_folder import alone, is_trained, save_final, write_card, write_evals, write_record
from ballast.pipeline.stopping import Stop, stoppable
from ballast.pipeline.tasks import Tasks
from ballast.protocols import Model, Say, Tokenizer
from ballast.ranks import join, speaks
from ballast.records import write as records
from ballast.records.runs import read_record
from ballast.records.schema import SCHEMA, CellRecord, InputRecord, ModelRecord, RunRecord
from ballast.sharding import shards_weights

if TYPE_CHECKING:
    import torch


class Clock:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        """Keep the seconds since the last lap under a name."""
        moment = time.monotonic()
        self.laps[name], self._since = round(moment - self._since, 3), moment


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
        section: the model that training starts from.
        base: the model that divergences are measured from.
        names: what the model is called in the measurements before and after.
        cell: which run of a comparison it is.
        resume: whether it goes on from the last checkpoint.
        progress: show bars while measuring.
        stop: whether the run was asked to end at the next step.
        held: what the run holds until it ends: its folder.
    """

    recipe: Recipe
    tasks: Tasks
    section: ModelSection
    base: ModelSection | None
    names: tuple[str, str]
    cell: CellRecord | None = None
    resume: bool = False
    say: Say = print
    progress: bool = True
    clock: Clock = field(default_factory=Clock)
    made_of: dict[str, InputRecord] = field(default_factory=dict)
    stop: Stop = field(default_factory=Stop)
    held: ExitStack = field(default_factory=ExitStack)

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return Path(str(self.recipe.output))

    @property
    def keeps_weights_alone(self) -> bool:
        """Whether checkpoints have no state of the optimiser, by the recipe's wish."""
        return bool(self.recipe.training.get("save_only_model"))

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Give the block that a run takes place in; a comparison says itself how it goes on.

        Raises:
            BallastError: the disk is full.
        """
        stops: AbstractContextManager[None] = nullcontext()
        if self.cell is None:
            stops = stoppable(self.output, self.stop, weights_only=self.keeps_weights_alone)
        with stops, records.disk_full_as_error(self.output), self.held:
            yield

    def _hold(self) -> None:
        # A comparison holds the folder of all its runs.
        if self.cell is None:
            self.held.enter_context(alone(self.output, resume=self.resume))

    def announce_disk(self, args: Any, steps: int, epochs: int = 1) -> None:
        """Say how much a run of so many steps and epochs writes to disk.

        Raises:
            BallastError: less is free.
        """
        found = disk.written(self.section, args, steps, epochs=epochs, seed=self.recipe.seed)
        line = disk.refuse_full(self.output, found.total, found.line())
        if speaks():
            self.say(line)

    def measure_before(self, model: Model, tokenizer: Tokenizer, device: torch.device) -> list[Measured]:
        """Return how the model does that training starts from, where the recipe asks for it."""
        found = []
        if self.tasks and self.recipe.evaluation.base and not self.resume:
            model = model.to(device)
            base = model if self.base == self.section else base_model(self.tasks, self.base, model)
            found = [self._measure(model, tokenizer, self.names[0], base, self.section)]
        self.clock.lap("evaluate_before")
        self.made_of.update(inputs_of(self.recipe))
        sources.forget()
        return found

    def begin(self, trainer: Any, before: Sequence[Measured], lines: Sequence[str], **own: Any) -> RunRecord:
        """Say lines and return the record, written as ``running``; `own` are fields that not every run has."""
        if trainer.half is not None:
            own, lines = {**own, "half": trainer.half.record()}, [*lines, trainer.half.line()]
        record = self._record(trainer.model, trainer.args, own if self.cell is None else {**own, "cell": self.cell})
        if trainer.is_world_process_zero():
            for line in lines:
                self.say(line)
            self._hold()
            write_record(self.output, record)
            write_evals(self.output, before, step=0)
        return record

    def checkpoint(self, trainer: Any) -> Path | None:
        """Return the checkpoint that a resumed run goes on from; SIGTERM now lets the trainer finish its step.

        Raises:
            BallastError: none is whole.
        """
        trainer.add_callback(self.stop.callback())
        if not self.resume:
            return None
        last = checkpoints.last_whole(self.output, weights_only=self.keeps_weights_alone)
        if last.path is None:
            raise BallastError("; ".join([f"{self.output}: has no checkpoint to resume from", *last.lines()]))
        for line in last.lines() if trainer.is_world_process_zero() else ():
            self.say(line)
        return last.path

    def save(self, trainer: Any) -> None:
        """Write the trained model."""
        self.clock.lap("train")
        save_final(trainer, self.output)
        self.clock.lap("save")

    def end(
        self, trainer: Any, tokenizer: Tokenizer, record: RunRecord, before: list[Measured], **found: Any
    ) -> Outcome:
        """Write the record as ``trained`` with what was found, measure the trained model, and finish."""
        if speaks():
            record = record.model_copy(update={"status": "trained", "seconds": dict(self.clock.laps), **found})
            write_record(self.output, record)
        if self.tasks and shards_weights(trainer.args):
            # One rank holds a part of the weights only.
            if speaks():
                self.say("the model is sharded: measure it with `ballast evaluate` afterwards")
            return self._finish(record, before)
        return self._measure_after(record, trainer.model, tokenizer, before)

    def measure_again(self) -> Outcome | None:
        """Measure and finish a resumed run that has trained, where it was not; None where it is to train (further)."""
        record = read_record(self.output) if self.resume else None
        if record is None or not is_trained(record, self.recipe):
            return None
        if record.status == "finished" and record.recipe.get("evaluation") == self._evaluation:
            if speaks():
                self.say(f"{self.output}: finished at step {last_step(self.output)} already; nothing is left to do")
            return Outcome(record)
        # The first may begin to write once all have read.
        join().gather(None)
        if speaks():
            self._hold()
        section = self._trained
        model = models.load_model(section, device=models.default_device())
        return self._measure_after(record, model, models.load_tokenizer(section), [])

    def _measure_after(self, record: RunRecord, model: Model, tokenizer: Tokenizer, before: list[Measured]) -> Outcome:
        after = []
        if self.tasks:
            base, section = base_model(self.tasks, self.base, model), self._trained
            after = [self._measure(model, tokenizer, self.names[1], base, section)]
            if speaks():
                write_evals(self.output, after, step=last_step(self.output))
        self.clock.lap("evaluate")
        return self._finish(record, [*before, *after])

    @property
    def _evaluation(self) -> Any:
        return self.recipe.resolved()["evaluation"]

    def _finish(self, record: RunRecord, measured: Sequence[Measured]) -> Outcome:
        if not speaks():
            return Outcome(record)
        seconds, recipe = {**record.seconds, **self.clock.laps}, {**record.recipe, "evaluation": self._evaluation}
        ended = {"status": "finished", "finished": now(), "seconds": seconds, "recipe": recipe}
        record = record.model_copy(update=ended)
        write_record(self.output, record)
        self._write_card(record)
        if measured:
            self.say(table(measured))
        for warning in record.warnings:
            self.say(f"warning: {warning}")
        total = sum(self.clock.laps.values())
        self.say(f"{self.output}: {_reward(record)}checkpoint and run record written ({total:.0f} s)")
        return Outcome(record, tuple(measured))

    def _write_card(self, record: RunRecord) -> None:
        try:
            write_card(self.output, record, self.section)
        except Exception as error:  # whatever the base's folder or the disk has: the run itself is through
            why = " ".join(f"{type(error).__name__}: {error}".split())
            self.say(f"warning: {self.output}: the model card is not written ({why}); the run is whole without it")

    @property
    def _trained(self) -> ModelSection:
        """The model that was saved."""
        return models.resolve(models.section_of(str(self.output), self.section))

    def _measure(
        self, model: Model, tokenizer: Tokenizer, name: str, base: Model | None, section: ModelSection
    ) -> Measured:
        """Return a model's results; ranks share the work where each has the whole model, and samples with it."""
        from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

        sampled, ranks = Sampled(self.recipe.engine, section), join()
        work = partial(
            measure, self.tasks, model, tokenizer, name=name, base=base, sampled=sampled, progress=self.progress
        )
        if models.on_rank_0_alone() or (self.tasks.sample and not is_local(self.recipe.engine)):
            return ranks.first(work)
        # Under ZeRO-3 transformers' `generate` waits for all ranks at each token: none may have fewer rows.
        return work() if is_deepspeed_zero3_enabled() else work(ranks=ranks)

    def _record(self, model: Model, args: Any, own: dict[str, Any]) -> RunRecord:
        return RunRecord(
            schema=SCHEMA,
            status="running",
            recipe=self.recipe.resolved(),
            model=ModelRecord(
                path=self.section.path,
                type=model.config.model_type,
                parameters=sum(weight.numel() for weight in model.parameters()),
                dtype=str(model.dtype).removeprefix("torch."),
            ),
            inputs=dict(self.made_of),
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
