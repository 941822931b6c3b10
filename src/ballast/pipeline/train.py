"""`ballast train`: from a recipe to a checkpoint in Hugging Face format and a run record beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.pipeline import inputs, sources
from ballast.pipeline.evaluate import BASE, TRAINED, check_prompts
from ballast.pipeline.run import Outcome, Run
from ballast.pipeline.run_folder import log_writer
from ballast.pipeline.score import score
from ballast.pipeline.tasks import load_tasks
from ballast.pipeline.warnings import of_groups
from ballast.protocols import Say
from ballast.records.schema import CellRecord, RowsRecord
from ballast.records.write import METRICS, read_jsonl

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from ballast.reference import ReferenceCache


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
    run = Run(recipe, load_tasks(recipe), BASE, TRAINED, recipe.model, cell=cell, say=say, progress=progress)
    with run.stoppable():
        return _run(run, resume)


def _run(run: Run, resume: bool) -> Outcome:
    recipe, say = run.recipe, run.say
    if resume and (record := run.trained()) is not None:
        if run.is_over(record):
            return Outcome(record)
        section = models.resolve(models.section_of(str(run.output), recipe.model))
        model = models.load_model(section, device=models.default_device())
        return run.finish(record, model, models.load_tokenizer(section))
    made = inputs.ready(recipe, say)
    _check_steps(made)
    run.clock.lap("prepare")
    model = models.load_model(made.model, trainable=True)
    check_prompts(run.tasks, model, made.tokenizer)
    run.clock.lap("load")
    cache = None
    if recipe.reference.cache is not None:
        cache = score(made, model, say)
        run.clock.lap("score")
    return run.do(_FineTuning(made, model, cache, run.progress), resume=resume)


def _check_steps(made: inputs.Ready) -> None:
    """Refuse settings under which these rows make no step; packing makes fewer of them, and the trainer looks again."""
    from ballast.training.refusals import refuse_no_steps

    rows = made.prompts if made.train is None else made.train.dataset
    if rows is not None:
        refuse_no_steps(made.args, len(rows))


class _FineTuning:
    """A `ballast.Trainer` on the rows of a recipe."""

    def __init__(
        self, made: inputs.Ready, model: PreTrainedModel | PeftModel, cache: ReferenceCache | None, progress: bool
    ) -> None:
        self._made, self._cache, self._progress = made, cache, progress
        self.section, self.model, self.tokenizer, self.args = made.model, model, made.tokenizer, made.args
        rows = {report.name: RowsRecord(**asdict(report)) for report in made.reports}
        self.facts: Mapping[str, Any] = {"objective": made.args.objective, "data": rows}
        self.trainer: Any = None

    def start(self) -> Sequence[str]:
        from transformers import PrinterCallback, ProgressCallback

        notes = inputs.notes(self._made.recipe, self.model, self.tokenizer)
        self.trainer = self._trainer()
        if not self._progress:
            self.trainer.remove_callback(PrinterCallback)
            self.trainer.remove_callback(ProgressCallback)
        groups = self.trainer.groups
        return [*notes, *(groups.rows.lines() if groups is not None and groups.rows is not None else ())]

    def train(self, checkpoint: Path | None) -> Mapping[str, float]:
        return self.trainer.train(None if checkpoint is None else str(checkpoint)).metrics

    def saved(self, output: Path) -> Mapping[str, Any]:
        return {}

    def warnings(self, output: Path) -> Sequence[str]:
        return () if self.trainer.groups is None else of_groups(read_jsonl(output / METRICS))

    def _trainer(self) -> Any:
        from ballast.training import Trainer

        made = self._made
        # The rows carry their labels, and TRL refuses the option for rows that are tokens already.
        args = copy.copy(made.args)
        args.assistant_only_loss = False
        try:
            return Trainer(
                self.model,
                args=args,
                train_dataset=made.prompts if made.train is None else made.train.dataset,
                eval_dataset=None if made.eval is None else made.eval.dataset,
                processing_class=made.tokenizer,
                peft_config=models.lora_config(made.model),
                reference=self._reference(),
                callbacks=[log_writer(Path(str(args.output_dir)) / METRICS)],
            )
        except BallastError:
            raise
        except ValueError as error:
            # TRL and transformers refuse settings that do not go together; nothing has been trained.
            raise BallastError(f"training: {' '.join(str(error).split())}") from error

    def _reference(self) -> Any:
        """Return what `Trainer` takes for the recipe's reference section."""
        from ballast.training.reference import ScoredCache

        section = self._made.recipe.reference
        if self._cache is not None:
            return ScoredCache(self._cache, self.model)
        if section.model is not None:
            return models.load_model(models.resolve(ModelSection(path=section.model, dtype=self.section.dtype)))
        return section.use
