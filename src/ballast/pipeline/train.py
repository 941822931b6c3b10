"""`ballast train`: from a recipe to a checkpoint in Hugging Face format and a run record beside it."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.pipeline import inputs, sources
from ballast.pipeline.evaluate import BASE, TRAINED, check_prompts
from ballast.pipeline.run import Outcome, Run
from ballast.pipeline.run_folder import log_writer, no_empty_folder
from ballast.pipeline.score import opened, score
from ballast.pipeline.step_lines import step_lines
from ballast.pipeline.tasks import load_tasks
from ballast.pipeline.warnings import of_groups
from ballast.protocols import Model, Say
from ballast.records.schema import CellRecord, RowsRecord, RunRecord
from ballast.records.write import METRICS, read_jsonl

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from ballast.reference import ReferenceCache
    from ballast.training import Trainer

SHOWN = ("loss", "nll", "entropy", "kl", "advantage", "learning_rate")
"""Metrics that a line of progress has."""


@sources.read_once()
def run_train(
    recipe: Recipe,
    *,
    cell: CellRecord | None = None,
    resume: bool = False,
    say: Say = print,
    progress: bool = True,
) -> Outcome:
    """Train as the recipe says; checkpoint, record, measurements and answers lie in ``recipe.output``.

    The output folder appears when the first step is about to run: input that cannot be used leaves nothing behind.
    A run that was stopped while its trained model was measured is measured again with `resume`, and not trained.

    Args:
        cell: which run of a comparison it is; goes into the record.
        resume: go on from the last checkpoint in the output.
        progress: show bars and the trainer's logs; the metrics file has them all the same.

    Raises:
        BallastError: the input cannot be used.
    """
    assert recipe.model is not None
    tasks, section, names = load_tasks(recipe), models.resolve(recipe.model), (BASE, TRAINED)
    run = Run(recipe, tasks, section, section, names, cell=cell, resume=resume, say=say, progress=progress)
    with run.stoppable():
        return _run(run)


def _run(run: Run) -> Outcome:
    recipe = run.recipe
    if (outcome := run.measure_again()) is not None:
        return outcome
    made = inputs.ready(recipe, run.say, streams=True)
    _check_steps(made)
    run.announce_disk(made.args, *_steps(made))
    run.clock.lap("prepare")
    model = models.load_model(made.model, trainable=True)
    for line in check_prompts(run.tasks, model, made.tokenizer):
        run.say(line)
    run.clock.lap("load")
    cache = None
    if recipe.reference.cache is not None:
        cache = (opened if recipe.data.streaming else score)(made, model, run.say)
        run.clock.lap("score")
    before = run.measure_before(model, made.tokenizer, made.args.device)
    with no_empty_folder(run.output):
        notes = inputs.notes(recipe, model, made.tokenizer)
        trainer = _trainer(made, model, cache, run.say if run.progress else None)
        if trainer.groups is not None and trainer.groups.rows is not None:
            notes += trainer.groups.rows.lines()
        rows = {report.name: RowsRecord(**asdict(report)) for report in made.reports}
        record = run.begin(trainer, before, notes, objective=made.args.objective, data=rows)
    checkpoint = run.checkpoint(trainer)
    totals = trainer.train(None if checkpoint is None else str(checkpoint)).metrics
    run.save(trainer)
    warnings = () if trainer.groups is None else of_groups(read_jsonl(run.output / METRICS))
    if recipe.data.streaming:
        record = _with_rows_read(record, made.train, run.say if trainer.is_world_process_zero() else inputs.silent)
    return run.end(trainer, made.tokenizer, record, before, train=totals, warnings=tuple(warnings))


def _with_rows_read(record: RunRecord, stream: Any, say: Say) -> RunRecord:
    """Return the record with what became of the rows that were read, in place of the first of them."""
    seen = stream.seen()
    for line in seen.lines():
        say(line)
    rows = RowsRecord(**asdict(seen))
    return record.model_copy(update={"data": {**record.data, seen.name: rows}})


def _check_steps(made: inputs.Ready) -> None:
    """Refuse settings under which these rows make no step; packing makes fewer of them, and the trainer looks again."""
    from ballast.training.refusals import refuse_no_steps

    if (rows := _rows(made)) is not None:
        refuse_no_steps(made.args, rows)


def _steps(made: inputs.Ready) -> tuple[int, int]:
    """Return optimiser steps and epochs; a stream has no epochs."""
    from ballast.training.refusals import planned_steps

    if (rows := _rows(made)) is None:
        return max(0, made.args.max_steps), 1
    steps, each = planned_steps(made.args, rows), made.args.train_batch_size * made.args.world_size
    return steps, math.ceil(steps * made.args.gradient_accumulation_steps / math.ceil(rows / each))


def _rows(made: inputs.Ready) -> int | None:
    rows: Any = made.prompts if made.train is None else made.train.dataset
    return len(rows) if hasattr(rows, "__len__") else None


def _trainer(
    made: inputs.Ready, model: PreTrainedModel | PeftModel, cache: ReferenceCache | None, say: Say | None
) -> Trainer:
    from transformers import PrinterCallback, ProgressCallback

    from ballast.training import Trainer
    from ballast.training.groups import StoredGroups

    # The rows carry their labels, and TRL refuses the option for rows that are tokens already.
    args, bar = copy.copy(made.args), say is not None and not made.args.disable_tqdm
    args.assistant_only_loss = False
    groups = made.recipe.groups
    try:
        trainer = Trainer(
            model,
            args=args,
            train_dataset=made.prompts if made.train is None else made.train,
            eval_dataset=made.eval,
            processing_class=made.tokenizer,
            peft_config=models.lora_config(made.model),
            reference=_reference(made, model, cache),
            groups=None if groups is None or made.groups is None else StoredGroups(groups, made.groups),
            callbacks=[log_writer(Path(str(args.output_dir)) / METRICS, tell=None if bar else step_lines(say, SHOWN))],
        )
    except BallastError:
        raise
    except ValueError as error:
        # TRL and transformers refuse settings that do not go together; nothing has been trained.
        raise BallastError(f"training: {' '.join(str(error).split())}") from error
    for callback in (PrinterCallback, *(() if bar else (ProgressCallback,))):
        trainer.remove_callback(callback)
    return trainer


def _reference(made: inputs.Ready, model: Model, cache: ReferenceCache | None) -> Any:
    """Return what `Trainer` takes for the recipe's reference section."""
    from ballast.training.reference import ScoredCache

    section = made.recipe.reference
    if cache is not None:
        return ScoredCache(cache, model)
    if section.model is not None:
        return models.load_model(models.resolve(models.section_of(section.model, made.model)))
    return section.use
