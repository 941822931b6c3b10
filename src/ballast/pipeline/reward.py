"""`ballast reward`: a sequence classifier that scores given answers above own ones, from groups of answers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config import training as settings
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.pipeline.run import Outcome, Run
from ballast.pipeline.run_folder import log_writer, no_empty_folder
from ballast.pipeline.step_lines import step_lines
from ballast.pipeline.tasks import Tasks
from ballast.protocols import Say
from ballast.records.write import METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ballast.reward.options import RewardOptions
    from ballast.reward.pairs import Pair, Pairs

NAMES = ("base", "reward")
SHOWN = ("margin", "loss", "accuracy")
"""Metrics that a line of progress has."""


def run_reward(recipe: Recipe, *, say: Say = print, progress: bool = True) -> Outcome:
    """Learn a reward from the pairs of ``groups.file``; the classifier and the run record lie in ``recipe.output``.

    Args:
        progress: say now and then how it goes.

    Raises:
        BallastError: the input cannot be used; nothing has been written then.
    """
    assert recipe.model is not None
    section = models.resolve(recipe.model)
    recipe = recipe.model_copy(update={"reward": recipe.reward or _defaults()})
    run = Run(recipe, Tasks((), {}, {}), section, None, NAMES, say=say, progress=progress, held=ExitStack())
    with run.stoppable():
        return _run(run)


def _defaults() -> RewardOptions:
    from ballast.reward.options import RewardOptions

    return RewardOptions()


@dataclass(frozen=True)
class _Ready:
    """Everything that a run needs beside the weights."""

    options: RewardOptions
    section: ModelSection
    tokenizer: PreTrainedTokenizerBase
    pairs: Pairs
    args: Any


def _run(run: Run) -> Outcome:
    made = _ready(run.recipe, run.section)
    run.clock.lap("prepare")
    model = _classifier(made.section)
    run.clock.lap("load")
    with no_empty_folder(run.output):
        trainer = _trainer(made, model, run.say if run.progress else None)
        counts = {"pairs": len(made.pairs.train), "held_out": len(made.pairs.held_out), "equal": made.pairs.equal}
        record = run.begin(trainer, [], [_plan(made)], data=counts)
    run.checkpoint(trainer)
    totals = trainer.train().metrics
    run.save(trainer)
    found = {"accuracy": accuracy} if (accuracy := _accuracy(trainer.model, made.pairs.held_out)) is not None else {}
    if found:
        run.say(f"{run.output}: the given answer scores higher in {found['accuracy']:.3f} of {counts['held_out']:,} "
                "held-out pairs")  # fmt: skip
    return run.end(trainer, made.tokenizer, record, [], train={**totals, **found})


def _ready(recipe: Recipe, section: ModelSection) -> _Ready:
    """Read and check everything but the weights."""
    from ballast.data import PrepareOptions, trl
    from ballast.groups.read import Wanted, read_groups
    from ballast.limits import check_tokenizer, positions
    from ballast.reward import trl as reward_trl
    from ballast.reward.pairs import pairs_of

    options = recipe.reward
    assert options is not None
    assert recipe.groups is not None
    tokenizer, config = models.load_tokenizer(section, recipe.training), models.load_config(section)
    check_tokenizer(section.path, config, tokenizer)
    given = settings.training_config(recipe.model_copy(update={"objective": None, "groups": None}))
    tokenizer = trl.training_tokenizer(tokenizer, PrepareOptions.from_training_args(given))
    wanted = Wanted(("expert", "own"), judged=False)
    limits = {"max_length": given.max_length, "context": positions(config)}
    try:
        groups = read_groups(recipe.groups.file, tokenizer, **limits, wanted=wanted)
        pairs = pairs_of(groups, options.held_out, recipe.seed)
    except BallastError as error:
        raise BallastError(f"groups.file: {error}") from error
    args = reward_trl.config(options, output_dir=str(recipe.output), seed=recipe.seed)
    return _Ready(options, section, tokenizer, pairs, args)


def _classifier(section: ModelSection) -> Any:
    """Return the model with a head that scores 0 everywhere, whatever head it has had."""
    import torch

    from ballast.reward.scores import HEAD, load_classifier

    given = {"revision": section.revision, "attn_implementation": section.attn_implementation}
    options = {key: value for key, value in given.items() if value is not None}
    model, missing = load_classifier(
        section.path, dtype=section.dtype, trust_remote_code=section.trust_remote_code, **options
    )
    if lacking := sorted(name for name in missing if not name.startswith(f"{HEAD}.")):
        raise BallastError(f"{section.path}: lacks the weights {', '.join(lacking[:3])}; take a whole model")
    with torch.no_grad():
        for weight in getattr(model, HEAD).parameters():
            weight.zero_()
    return model


def _trainer(made: _Ready, model: Any, say: Say | None) -> Any:
    from transformers import PrinterCallback, ProgressCallback

    from ballast.reward import trl

    tell = step_lines(say, SHOWN)
    callbacks = [log_writer(Path(made.args.output_dir) / METRICS, tell=tell)]
    try:
        trainer = trl.trainer(model, made.tokenizer, made.args, made.pairs.train, made.options.loss, callbacks)
    except ValueError as error:
        raise BallastError(f"reward: {' '.join(str(error).split())}") from error
    if trainer.args.world_size > 1:
        raise BallastError("`ballast reward` trains in one process; start one")
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _accuracy(model: Any, pairs: tuple[Pair, ...]) -> float | None:
    """Return the share of pairs whose given answer scores higher."""
    from ballast.reward.scores import Scorer

    if not pairs:
        return None
    scores = Scorer(model)([ids for pair in pairs for ids in (pair.chosen, pair.rejected)])
    return sum(given > own for given, own in zip(scores[::2], scores[1::2], strict=True)) / len(pairs)


def _plan(made: _Ready) -> str:
    pairs, equal = made.pairs, made.pairs.equal
    left = f", {equal:,} of equal answers left out" if equal else ""
    return f"reward: {len(pairs.train):,} pairs, {len(pairs.held_out):,} held out{left}; {made.options.loss} loss"
