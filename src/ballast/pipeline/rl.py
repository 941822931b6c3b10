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
from ballast.pipeline.evaluate import Measured, check_prompts, measure, table
from ballast.pipeline.run_folder import Clock, no_empty_folder, now, save_final, write_evals
from ballast.protocols import Say
from ballast.records import write as records
from ballast.records.schema import SCHEMA, CellRecord
from ballast.rl.options import RLOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ballast.evaluation import Verifier
    from ballast.rl import Prompts, Run

BEFORE, AFTER = "before rl", "after rl"
LINES = 10
"""Lines of progress in a run, and the share of its steps that the ends of the reward curve are means over."""


@dataclass(frozen=True)
class _Ready:
    recipe: Recipe
    options: RLOptions
    model: ModelSection
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    verify: Verifier
    args: Any


def run_rl(
    recipe: Recipe,
    *,
    start: str | Path | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    cell: CellRecord | None = None,
    say: Say = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Train as the recipe's ``rl`` section says and return the run record; checkpoint and record lie in the output.

    Args:
        start: folder of a model or an adapter to start from, instead of the recipe's model; that then stays what
            evaluation measures divergences from.
        output: folder for checkpoints and the record, instead of the recipe's.
        resume: go on from the last checkpoint in the output.
        progress: say now and then how it goes, and show bars while measuring.

    Raises:
        BallastError: the input cannot be used; nothing has been written then.
    """
    from ballast.rl import trl
    from ballast.rl.card import append_settings

    clock = Clock()
    recipe = recipe if output is None else recipe.model_copy(update={"output": str(output)})
    made = _ready(recipe, start, resume)
    # An adapter's folder as the recipe's model is put on its base, here as for training.
    measured = recipe if start is not None else recipe.model_copy(update={"model": made.model})
    folder = Path(str(recipe.output))
    clock.lap("prepare")
    model = models.load_model(made.model, trainable=True)
    check_prompts(measured, model, made.tokenizer)
    clock.lap("load")
    evals: list[Measured] = []
    if recipe.evaluation.tasks and recipe.evaluation.base and not resume:
        evals = measure(measured, model.to(made.args.device), made.tokenizer, name=BEFORE, progress=progress)
    clock.lap("evaluate_before")
    with no_empty_folder(folder):
        run = _run(made, model, folder, say if progress else None)
        record = _record(made, model) | ({} if cell is None else {"cell": cell.plain()})
        main = run.trainer.is_world_process_zero()
        if main:
            say(f"rl: {len(made.prompts):,} prompts; {_plan(made.options)}")
            records.write_json(folder / records.RUN, {**record, "status": "running"})
            write_evals(folder, evals, step=0)
    totals, counts = run.train(resume=resume), run.counts()
    clock.lap("train")
    save_final(run.trainer, folder)
    clock.lap("save")
    if not main:
        return record
    trl.without_reference_adapter(folder)
    append_settings(folder, made.options, record["start"])
    finished = {**record, "status": "trained", "finished": now(), "train": totals, "seconds": clock.laps}
    finished |= {**counts, "reward": _reward(folder)}
    records.write_json(folder / records.RUN, finished)
    after = measure(measured, run.trainer.model, made.tokenizer, name=AFTER, progress=progress)
    clock.lap("evaluate")
    if after:
        write_evals(folder, after, step=run.trainer.state.global_step)
    finished["status"] = "finished"
    records.write_json(folder / records.RUN, finished)
    if after:
        say(table([*evals, *after]))
    say(f"{folder}: {_said(finished['reward'])}checkpoint and run record written ({clock.total:.0f} s)")
    return {**finished, "evals": [entry.record() for entry in (*evals, *after)]}


def _ready(recipe: Recipe, start: str | Path | None, resume: bool) -> _Ready:
    """Read and check everything but the weights."""
    from ballast.rl import trl
    from ballast.rl.rewards import reward_verifier

    for check in (rl_checks.check_rl, *(() if resume else (checks.check_output,))):
        for problem in check(recipe, frozenset()):
            raise BallastError(f"{'.'.join(map(str, problem.where))}: {problem.message}")
    options = recipe.rl_options()
    assert options is not None
    section = rl_checks.start_section(recipe, start)
    tokenizer = models.load_tokenizer(section)
    config = models.load_config(section)
    models.check_vocabulary(section.path, config, tokenizer)
    verify = reward_verifier(str(options.verifier), options.reward, seconds=options.seconds)
    prompts = _prompts(recipe, options, tokenizer, verify, config)
    args = trl.config(options, output_dir=str(recipe.output), seed=recipe.seed, model_init=_reference(section))
    return _Ready(recipe, options, section, tokenizer, prompts, verify, args)


def _prompts(recipe: Recipe, options: RLOptions, tokenizer: Any, verify: Verifier, config: Any) -> Prompts:
    from types import SimpleNamespace

    from ballast.evaluation.scoring import context_length
    from ballast.rl import Prompts

    if options.data is None:
        key, named, rows = "data.train", recipe.data.train, sources.load_train(recipe.data)
    else:
        key, named = "rl.data", options.data
        rows = sources.load(named, split=options.split, columns=options.columns, limit=options.limit)
    try:
        return Prompts.of(rows, tokenizer, options, verify, context_length(SimpleNamespace(config=config)))
    except BallastError as error:
        raise BallastError(f"{key} ({', '.join(named)}): {error}") from error


def _reference(section: ModelSection) -> dict[str, Any]:
    """Return how the start is loaded once more, as the reference of a KL."""
    found = {"trust_remote_code": section.trust_remote_code, "use_safetensors": True, "revision": section.revision}
    return {key: value for key, value in found.items() if value is not None}


def _run(made: _Ready, model: Any, folder: Path, say: Say | None) -> Run:
    from transformers import PrinterCallback, ProgressCallback

    from ballast.rl import Run

    try:
        run = Run(
            model,
            made.tokenizer,
            made.prompts,
            made.verify,
            made.options,
            made.args,
            peft_config=models.lora_config(made.model),
            callbacks=[_writer(folder / records.METRICS, say)],
        )
    except BallastError:
        raise
    except (ValueError, ImportError) as error:
        raise BallastError(f"rl: {' '.join(str(error).split())}") from error
    for callback in (PrinterCallback, ProgressCallback):
        run.trainer.remove_callback(callback)
    return run


def _writer(path: Path, say: Say | None) -> Any:
    """Return a callback that keeps the metrics file in step with the trainer's log, and says how it goes."""
    from transformers import TrainerCallback

    from ballast.rl.trl import metric_line

    class Writer(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                records.write_jsonl(path, [metric_line(entry) for entry in state.log_history])

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not state.is_world_process_zero:
                return
            line = metric_line(state.log_history[-1])
            records.extend_jsonl(path, [line])
            if say is not None and "reward" in line and state.global_step % max(1, state.max_steps // LINES) == 0:
                say(_progress(line, state.max_steps))

    return Writer()


def _progress(line: Mapping[str, Any], steps: int) -> str:
    shown = ("reward", "mixed", "entropy", "kl", "length")
    values = "  ".join(f"{name} {line[name]:.3g}" for name in shown if line.get(name) is not None)
    return f"step {line['step']} of {steps}  {values}"


def _plan(options: RLOptions) -> str:
    each = f"{options.steps:,} steps of {options.prompts} prompts × {options.group} answers"
    return f"{each}, rewarded by {options.verifier}{' as in ReFT' if options.reward == 'reft' else ''}"


def _record(made: _Ready, model: Any) -> dict[str, Any]:
    args = made.args
    return {
        "schema": SCHEMA,
        "recipe": made.recipe.resolved(),
        "rl": made.options.to_dict(),
        "start": made.model.adapter or made.model.path,
        "model": {
            "path": made.model.path,
            "type": model.config.model_type,
            "parameters": model.num_parameters(),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "data": {"prompts": len(made.prompts)},
        "versions": records.versions(),
        "commit": records.git_commit(),
        "device": str(args.device),
        "processes": args.world_size,
        "bf16": bool(args.bf16),
        "gradient_checkpointing": bool(args.gradient_checkpointing),
        "started": now(),
    }


def _reward(folder: Path) -> dict[str, Any] | None:
    """Return both ends of the reward curve, each the mean of a tenth of its lines."""
    lines = [line for line in records.read_jsonl(folder / records.METRICS) if line.get("reward") is not None]
    if not lines:
        return None
    size = max(1, len(lines) // LINES)
    return {"first": _mean(lines[:size]), "last": _mean(lines[-size:]), "lines": size}


def _mean(lines: Sequence[Mapping[str, Any]]) -> float:
    return statistics.fmean(line["reward"] for line in lines)


def _said(reward: Mapping[str, Any] | None) -> str:
    return "" if reward is None else f"reward {reward['first']:.3f} → {reward['last']:.3f}; "
