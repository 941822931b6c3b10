"""`ballast rl`: GRPO or RLOO from a checkpoint, to another in Hugging Face format with a run record beside it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.pipeline import sources
from ballast.pipeline.checks import common as checks
from ballast.pipeline.checks import rl as rl_checks
from ballast.pipeline.evaluate import Measured, check_prompts
from ballast.pipeline.run import Outcome, Run
from ballast.pipeline.run_folder import log_writer, no_empty_folder
from ballast.pipeline.step_lines import step_lines
from ballast.pipeline.tasks import load_tasks
from ballast.pipeline.warnings import of_reinforcement
from ballast.protocols import Say, Tokenizer
from ballast.records.schema import CellRecord, RewardRecord
from ballast.records.write import METRICS, read_jsonl

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ballast.reward.scores import Scorer
    from ballast.rl import Prompts
    from ballast.rl import Run as Training
    from ballast.rl.options import RLOptions
    from ballast.verifiers.registry import Verifier

NAMES = ("before rl", "after rl")
"""What the model is called in the measurements."""
LINES = 10
"""The ends of the reward curve are means over one in so many steps."""
SHOWN = ("reward", "mixed", "entropy", "kl", "length")
"""Metrics that a line of progress has."""


@sources.read_once()
def run_rl(
    recipe: Recipe,
    *,
    start: str | Path | None = None,
    output: str | Path | None = None,
    cell: CellRecord | None = None,
    resume: bool = False,
    say: Say = print,
    progress: bool = True,
) -> Outcome:
    """Train as the recipe's ``rl`` section says; checkpoint, record, measurements and answers lie in the output.

    A run that was stopped while its trained model was measured is measured again with `resume`, and not trained.

    Args:
        start: folder of a model or an adapter to start from, instead of the recipe's model; that then stays what
            evaluation measures divergences from.
        output: folder for checkpoints and the record, instead of the recipe's.
        cell: which run of a comparison it is; goes into the record.
        resume: go on from the last checkpoint in the output.
        progress: say now and then how it goes, and show bars while measuring.

    Raises:
        BallastError: the input cannot be used; nothing has been written then.
    """
    recipe = recipe if output is None else recipe.model_copy(update={"output": str(output)})
    for check in (rl_checks.check_rl, *(() if resume else (checks.check_output,))):
        for problem in check(recipe, frozenset()):
            raise BallastError(f"{'.'.join(map(str, problem.where))}: {problem.message}")
    section, tasks = rl_checks.start_section(recipe, start), load_tasks(recipe)
    # An adapter's folder as the recipe's model is put on its base, here as for training.
    base = section if start is None else recipe.model
    run = Run(recipe, tasks, section, base, NAMES, cell=cell, resume=resume, say=say, progress=progress)
    with run.stoppable():
        return _run(run)


def _run(run: Run) -> Outcome:
    if (outcome := run.measure_again()) is not None:
        return outcome
    made = _ready(run.recipe, run.section)
    run.announce_disk(made.args, made.options.steps)
    run.clock.lap("prepare")
    model = models.load_model(run.section, trainable=True)
    for line in check_prompts(run.tasks, model, made.tokenizer):
        run.say(line)
    run.clock.lap("load")
    return _train(run, made, model, run.measure_before(model, made.tokenizer, made.args.device))


def _train(run: Run, made: _Ready, model: PreTrainedModel | PeftModel, before: list[Measured]) -> Outcome:
    from ballast.rl import trl

    options, start = made.options.to_dict(), run.section.adapter or run.section.path
    with no_empty_folder(run.output):
        training = _training(made, model, run.say if run.progress else None)
        trainer, prompts = training.trainer, len(made.prompts)
        said = [f"rl: {prompts:,} prompts; {_plan(made.options)}", *(f"rl: {note}" for note in made.prompts.notes)]
        record = run.begin(trainer, before, said, rl=options, start=start, data={"prompts": prompts})
    totals = training.train(resume=run.checkpoint(trainer) or False)
    found = dict[str, Any](training.counts())
    run.save(trainer)
    if trainer.is_world_process_zero():
        trl.without_reference_adapter(run.output)
        found["reward"] = _reward(run.output)
        found["warnings"] = tuple(of_reinforcement(read_jsonl(run.output / METRICS), made.options))
    return run.end(trainer, made.tokenizer, record, before, train=totals, **found)


@dataclass(frozen=True)
class _Ready:
    """Everything that a run needs beside the weights."""

    recipe: Recipe
    options: RLOptions
    section: ModelSection
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    verify: Verifier | None
    args: Any


def _ready(recipe: Recipe, section: ModelSection) -> _Ready:
    """Read and check everything but the weights."""
    from ballast.limits import check_tokenizer, positions
    from ballast.reward.scores import tokenizer_problem
    from ballast.rl import trl
    from ballast.rl.rewards import options_reward

    options = recipe.rl
    assert options is not None
    tokenizer, config = models.load_tokenizer(section, recipe.training), models.load_config(section)
    check_tokenizer(section.path, config, tokenizer)
    verify = options_reward(options)
    context = positions(config)
    if options.reward_model is not None:
        reward = models.load_config(models.section_of(options.reward_model))
        context = min(filter(None, (context, positions(reward))), default=None)
        if problem := tokenizer_problem(options.reward_model, tokenizer):
            raise BallastError(f"rl.reward_model: {problem}")
    prompts = _prompts(recipe, options, tokenizer, verify, context)
    args = trl.config(options, output_dir=str(recipe.output), seed=recipe.seed, model_init=_reference(section))
    return _Ready(recipe, options, section, tokenizer, prompts, verify, args)


def _training(made: _Ready, model: PreTrainedModel | PeftModel, say: Say | None) -> Training:
    from transformers import PrinterCallback, ProgressCallback

    from ballast.rl import Run as Training
    from ballast.rl.trl import metric_line

    tell = step_lines(say, SHOWN)
    try:
        training = Training(
            model,
            made.tokenizer,
            made.prompts,
            made.verify,
            made.options,
            made.args,
            peft_config=models.lora_config(made.section),
            callbacks=[log_writer(Path(made.args.output_dir) / METRICS, line=metric_line, tell=tell)],
            score=_scorer(made),
        )
    except BallastError:
        raise
    except (ValueError, ImportError) as error:
        raise BallastError(f"rl: {' '.join(str(error).split())}") from error
    for callback in (PrinterCallback, ProgressCallback):
        training.trainer.remove_callback(callback)
    return training


def _scorer(made: _Ready) -> Scorer | None:
    from ballast.reward.scores import load_scorer

    folder = made.options.reward_model
    return None if folder is None else load_scorer(folder, made.tokenizer, made.args.device)


def _prompts(
    recipe: Recipe, options: RLOptions, tokenizer: Tokenizer, verify: Verifier | None, context: int | None
) -> Prompts:
    from ballast.rl import Prompts

    if options.data is None:
        key, named, rows = "data.train", recipe.data.train, sources.load_train(recipe.data)
    else:
        key, named = "rl.data", options.data
        rows = sources.load(named, split=options.split, columns=options.columns, limit=options.limit)
    try:
        return Prompts.of(rows, tokenizer, options, verify, context)
    except BallastError as error:
        raise BallastError(f"{key} ({', '.join(named)}): {error}") from error


def _reference(section: ModelSection) -> dict[str, Any]:
    """Return how the model is loaded once more, as the reference of a KL."""
    found = {"trust_remote_code": section.trust_remote_code, "use_safetensors": True, "revision": section.revision}
    return {key: value for key, value in found.items() if value is not None}


def _plan(options: RLOptions) -> str:
    each = f"{options.steps:,} steps of {options.prompts} prompts × {options.group} answers"
    judge = options.verifier if options.reward_model is None else f"the scores of {options.reward_model}"
    return f"{each}, rewarded by {judge}{' as in ReFT' if options.reward == 'reft' else ''}"


def _reward(output: Path) -> RewardRecord | None:
    """Return both ends of the reward curve, each the mean of a tenth of its lines."""
    rewards = [line["reward"] for line in read_jsonl(output / METRICS) if line.get("reward") is not None]
    if not rewards:
        return None
    size = max(1, len(rewards) // LINES)
    return RewardRecord(first=statistics.fmean(rewards[:size]), last=statistics.fmean(rewards[-size:]), lines=size)
