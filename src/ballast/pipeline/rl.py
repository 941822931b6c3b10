"""`ballast rl`: GRPO from a checkpoint, to another in Hugging Face format with a run record beside it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.pipeline import sources
from ballast.pipeline.checks import common as checks
from ballast.pipeline.checks import rl as rl_checks
from ballast.pipeline.evaluate import check_prompts
from ballast.pipeline.run import Outcome, Run
from ballast.pipeline.run_folder import log_writer
from ballast.pipeline.tasks import load_tasks
from ballast.pipeline.warnings import of_reinforcement
from ballast.protocols import Say, Tokenizer
from ballast.records import model_card
from ballast.records.schema import CellRecord, RewardRecord
from ballast.records.write import METRICS, read_jsonl

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ballast.rl import Prompts
    from ballast.rl.options import RLOptions
    from ballast.verifiers.registry import Verifier

BEFORE, AFTER = "before rl", "after rl"
LINES = 10
"""Lines of progress in a run, and the share of its steps that the ends of the reward curve are means over."""
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
    section = rl_checks.start_section(recipe, start)
    run = Run(
        recipe,
        load_tasks(recipe),
        BEFORE,
        AFTER,
        # An adapter's folder as the recipe's model is put on its base, here as for training.
        base=section if start is None else recipe.model,
        at_base=start is None,
        cell=cell,
        say=say,
        progress=progress,
    )
    with run.stoppable():
        return _run(run, section, resume)


def _run(run: Run, section: ModelSection, resume: bool) -> Outcome:
    if resume and (record := run.trained()) is not None:
        if run.is_over(record):
            return Outcome(record)
        trained = models.resolve(models.section_of(str(run.output), section))
        model = models.load_model(trained, device=models.default_device())
        return run.finish(record, model, models.load_tokenizer(trained))
    made = _ready(run.recipe, section)
    run.clock.lap("prepare")
    model = models.load_model(section, trainable=True)
    check_prompts(run.tasks, model, made.tokenizer)
    run.clock.lap("load")
    return run.do(_Reinforcement(made, model, run.say if run.progress else None), resume=resume)


@dataclass(frozen=True)
class _Ready:
    """Everything that a run needs beside the weights."""

    recipe: Recipe
    options: RLOptions
    section: ModelSection
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    verify: Verifier
    args: Any


def _ready(recipe: Recipe, section: ModelSection) -> _Ready:
    """Read and check everything but the weights."""
    from ballast.evaluation.scoring import positions
    from ballast.rl import trl
    from ballast.rl.rewards import reward_verifier

    options = recipe.rl
    assert options is not None
    tokenizer, config = models.load_tokenizer(section), models.load_config(section)
    models.check_vocabulary(section.path, config, tokenizer)
    verify = reward_verifier(str(options.verifier), options.reward, seconds=options.seconds)
    prompts = _prompts(recipe, options, tokenizer, verify, positions(config))
    args = trl.config(options, output_dir=str(recipe.output), seed=recipe.seed, model_init=_reference(section))
    return _Ready(recipe, options, section, tokenizer, prompts, verify, args)


class _Reinforcement:
    """`trl.GRPOTrainer` on the prompts of a recipe."""

    def __init__(self, made: _Ready, model: PreTrainedModel | PeftModel, say: Say | None) -> None:
        self._made, self._say = made, say
        self.section, self.model, self.tokenizer, self.args = made.section, model, made.tokenizer, made.args
        self._start = made.section.adapter or made.section.path
        rows = {"prompts": len(made.prompts)}
        self.facts: Mapping[str, Any] = {"rl": made.options.to_dict(), "start": self._start, "data": rows}
        self.trainer: Any = None

    def start(self) -> Sequence[str]:
        from transformers import PrinterCallback, ProgressCallback

        from ballast.rl import Run as Reinforcement
        from ballast.rl.trl import metric_line

        made, tell = self._made, None if self._say is None else self._tell
        try:
            self._run = Reinforcement(
                self.model,
                made.tokenizer,
                made.prompts,
                made.verify,
                made.options,
                made.args,
                peft_config=models.lora_config(made.section),
                callbacks=[log_writer(Path(made.args.output_dir) / METRICS, line=metric_line, tell=tell)],
            )
        except BallastError:
            raise
        except (ValueError, ImportError) as error:
            raise BallastError(f"rl: {' '.join(str(error).split())}") from error
        self.trainer = self._run.trainer
        for callback in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(callback)
        return [f"rl: {len(made.prompts):,} prompts; {_plan(made.options)}"]

    def train(self, checkpoint: Path | None) -> Mapping[str, float]:
        totals = self._run.train(resume=checkpoint or False)
        # Of all ranks, so all of them ask.
        self._counts = self._run.counts()
        return totals

    def saved(self, output: Path) -> Mapping[str, Any]:
        from ballast.rl import trl

        trl.without_reference_adapter(output)
        model_card.append_rl(output, self._made.options.to_dict(), self._start)
        return {**self._counts, "reward": _reward(output)}

    def warnings(self, output: Path) -> Sequence[str]:
        return of_reinforcement(read_jsonl(output / METRICS), self._made.options)

    def _tell(self, line: Mapping[str, Any], state: Any) -> None:
        """Say how it goes, ten times in a run."""
        if self._say is not None and "reward" in line and state.global_step % max(1, state.max_steps // LINES) == 0:
            values = "  ".join(f"{name} {line[name]:.3g}" for name in SHOWN if line.get(name) is not None)
            self._say(f"step {line['step']} of {state.max_steps}  {values}")


def _prompts(
    recipe: Recipe, options: RLOptions, tokenizer: Tokenizer, verify: Verifier, context: int | None
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
    return f"{each}, rewarded by {options.verifier}{' as in ReFT' if options.reward == 'reft' else ''}"


def _reward(output: Path) -> RewardRecord | None:
    """Return both ends of the reward curve, each the mean of a tenth of its lines."""
    rewards = [line["reward"] for line in read_jsonl(output / METRICS) if line.get("reward") is not None]
    if not rewards:
        return None
    size = max(1, len(rewards) // LINES)
    return RewardRecord(first=statistics.fmean(rewards[:size]), last=statistics.fmean(rewards[-size:]), lines=size)
