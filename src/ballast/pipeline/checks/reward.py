"""What is wrong with learning a reward, as far as recipe, files and TRL's settings tell."""

from __future__ import annotations

from collections.abc import Iterable

from ballast.config import training as settings
from ballast.config.recipe import Check, Recipe
from ballast.config.source import Problem
from ballast.errors import BallastError, suggest
from ballast.packages import refuse_lacking
from ballast.pipeline.checks import common as checks
from ballast.pipeline.inputs import stored_settings
from ballast.reward.options import ELSEWHERE, TRAINER, RewardOptions


def check_reward(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether there are answers to learn from, a model that is trained as a whole, and settings that TRL takes."""
    section = recipe.model
    if section is not None and "model" not in broken:
        for key in ("lora", "adapter"):
            if getattr(section, key) is not None:
                yield Problem(
                    ("model", key), "a reward is learnt with all weights of the model; merge it first, or leave it out"
                )
        if section.quantization is not None:
            yield Problem(("model", "quantization"), "a reward is learnt with all weights of the model; leave it out")
    if "groups" not in broken:
        yield from _check_files(recipe)
    if "reward" not in broken:
        yield from _check_trainer(recipe, recipe.reward or RewardOptions())


def _check_files(recipe: Recipe) -> Iterable[Problem]:
    files = () if recipe.groups is None else recipe.groups.file
    if not files:
        yield Problem(
            ("groups", "file"),
            "is required and missing: a reward is learnt from given and own answers; fill a folder with "
            "`ballast sample`, and name it",
        )
    for file in files:
        try:
            stored_settings(file)
        except BallastError as error:
            yield Problem(("groups", "file"), str(error))


def _check_trainer(recipe: Recipe, options: RewardOptions) -> Iterable[Problem]:
    from ballast.reward import trl

    hints = trl.config_hints()
    problems = []
    for key, value in options.trainer.items():
        if key in ELSEWHERE:
            problems.append((key, f"would be overridden here; {ELSEWHERE[key]}"))
        elif key in TRAINER and (message := settings.misfit(value, settings.NARROWER.get(key, hints[key]))):
            problems.append((key, message))
        elif key not in TRAINER and key in hints:
            problems.append((key, "is a field of trl.RewardConfig that `ballast reward` does not take; leave it out"))
        elif key not in TRAINER:
            problems.append((key, f"unknown key{suggest(key, TRAINER)}"))
    yield from (Problem(("reward", "trainer", key), message) for key, message in problems)
    if problems:
        return
    try:
        refuse_lacking(trl.config(options, output_dir=recipe.output or ".", seed=recipe.seed), "reward.trainer")
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        yield Problem(("reward",), " ".join(str(error).split()))


REWARD_CHECKS: tuple[Check, ...] = (
    checks.check_output,
    checks.check_required("model", "output"),
    checks.check_model,
    settings.check_training,
    check_reward,
)
