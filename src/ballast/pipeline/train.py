"""`ballast train`: from a recipe to a checkpoint in Hugging Face format and a run record beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.pipeline import inputs as groups
from ballast.pipeline.evaluate import BASE, TRAINED, Measured, check_prompts, measure, table
from ballast.pipeline.prepare import Ready, ready
from ballast.pipeline.run_folder import Clock, no_empty_folder, now, save_final, write_evals
from ballast.pipeline.score import score
from ballast.protocols import Say
from ballast.records import write as records
from ballast.records.schema import SCHEMA, CellRecord


def run_train(
    recipe: Recipe,
    *,
    resume: bool = False,
    cell: CellRecord | None = None,
    say: Say = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Train as the recipe says and return the run record; checkpoint and record lie in ``recipe.output``.

    The output folder appears when the first step is about to run: input that cannot be used leaves nothing behind.
    Without `progress` neither bars nor the logs are shown; the metrics file has them all the same.

    Raises:
        BallastError: the input cannot be used.
    """
    from transformers import PrinterCallback, ProgressCallback

    clock = Clock()
    made = ready(recipe, say)
    clock.lap("prepare")
    model = models.load_model(made.model, trainable=True)
    check_prompts(recipe, model, made.tokenizer)
    clock.lap("load")
    if recipe.reference.cache is not None:
        score(made, model, say)
        clock.lap("score")
    evals: list[Measured] = []
    if recipe.evaluation.tasks and recipe.evaluation.base and not resume:
        evals = measure(recipe, model.to(made.args.device), made.tokenizer, name=BASE, progress=progress)
    clock.lap("evaluate_base")
    output = Path(str(recipe.output))
    with no_empty_folder(output):
        notes = groups.notes(made.recipe, model, made.tokenizer)
        trainer = _trainer(made, model)
        if not progress:
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
        record = _record(made, model) | ({} if cell is None else {"cell": cell.plain()})
        main = trainer.is_world_process_zero()
        if main:
            rows = None if trainer.groups is None else trainer.groups.rows
            for line in (*notes, *(rows.lines() if rows is not None else ())):
                say(line)
            records.write_json(output / records.RUN, {**record, "status": "running"})
            write_evals(output, evals, step=0)
    result = trainer.train(resume_from_checkpoint=resume or None)
    clock.lap("train")
    save_final(trainer, output)
    clock.lap("save")
    if not main:
        return record
    finished = {**record, "status": "trained", "finished": now(), "train": result.metrics, "seconds": clock.laps}
    records.write_json(output / records.RUN, finished)
    after = _measure_trained(trainer, made, say, progress)
    clock.lap("evaluate")
    if after:
        write_evals(output, after, step=trainer.state.global_step)
    finished["status"] = "finished"
    records.write_json(output / records.RUN, finished)
    if after:
        say(table([*evals, *after]))
    say(f"{output}: checkpoint and run record written ({clock.total:.0f} s)")
    return {**finished, "evals": [entry.record() for entry in (*evals, *after)]}


def _trainer(made: Ready, model: Any) -> Any:
    from ballast.training import Trainer

    # The rows carry their labels, and TRL refuses the option for rows that are tokens already.
    args = copy.copy(made.args)
    args.assistant_only_loss = False
    try:
        return Trainer(
            model,
            args=args,
            train_dataset=made.prompts if made.train is None else made.train.dataset,
            eval_dataset=None if made.eval is None else made.eval.dataset,
            processing_class=made.tokenizer,
            peft_config=models.lora_config(made.model),
            reference=_reference(made),
            callbacks=[_metrics_writer(Path(args.output_dir) / records.METRICS)],
        )
    except BallastError:
        raise
    except ValueError as error:
        # TRL and transformers refuse settings that do not go together; nothing has been trained.
        raise BallastError(f"training: {' '.join(str(error).split())}") from error


def _metrics_writer(path: Path) -> Any:
    """Return a callback that keeps the metrics file in step with the trainer's log."""
    from transformers import TrainerCallback

    class MetricsWriter(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                records.write_jsonl(path, state.log_history)

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                records.extend_jsonl(path, state.log_history[-1:])

    return MetricsWriter()


def _reference(made: Ready) -> Any:
    """Return what `Trainer` takes for the recipe's reference section."""
    section = made.recipe.reference
    if section.cache is not None:
        return {"cache": section.cache}
    if section.model is not None:
        return models.load_model(models.resolve(ModelSection(path=section.model, dtype=made.model.dtype)))
    return section.use


def _record(made: Ready, model: Any) -> dict[str, Any]:
    recipe = made.recipe
    return {
        "schema": SCHEMA,
        "recipe": recipe.resolved(),
        "objective": made.args.objective,
        "model": {
            "path": made.model.path,
            "type": model.config.model_type,
            "parameters": model.num_parameters(),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "data": {report.name: _plain(report) for report in made.reports},
        "versions": records.versions(),
        "commit": records.git_commit(),
        "device": str(made.args.device),
        "processes": made.args.world_size,
        "bf16": bool(made.args.bf16),
        "gradient_checkpointing": bool(made.args.gradient_checkpointing),
        "started": now(),
    }


def _measure_trained(trainer: Any, made: Ready, say: Say, progress: bool) -> list[Measured]:
    if trainer.is_fsdp_enabled and made.recipe.evaluation.tasks:
        # One rank holds a part of the weights only.
        say("the model is sharded: measure it with `ballast evaluate` afterwards")
        return []
    return measure(made.recipe, trainer.model, made.tokenizer, name=TRAINED, progress=progress)


def _plain(report: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)
