"""What is wrong with a recipe's reinforcement learning, as far as recipe, verifier and machine tell."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ballast import models
from ballast.config import training as settings
from ballast.config.recipe import Check, ModelSection, Recipe
from ballast.config.source import Problem
from ballast.errors import BallastError, suggest
from ballast.half import check_arguments
from ballast.packages import refuse_lacking
from ballast.pipeline import sources
from ballast.pipeline.checks import common as checks
from ballast.pipeline.checks import engine as engine_checks
from ballast.pipeline.checks import groups as group_checks
from ballast.pipeline.checks import half as half_checks
from ballast.pipeline.checks import quantised as quantised_checks
from ballast.rl.options import ELSEWHERE, TRAINER, RLOptions

FIXED: dict[str, tuple[str, ...]] = {"model": (), "data": (), "rl": ("steps", "save_steps"), "seed": ()}
FIXED |= {"engine": checks.FIXED["engine"]}
"""Sections that a resumed run may not change, and their keys that it may: a longer run begins like a shorter one."""
NARROWER: dict[str, Any] = {
    **settings.NARROWER,
    "delta": NonNegativeFloat | None,
    "epsilon": NonNegativeFloat,
    "epsilon_high": NonNegativeFloat | None,
    "importance_sampling_level": Literal["token", "sequence"],
    "min_p": Annotated[float, Field(ge=0, le=1)] | None,
    "repetition_penalty": PositiveFloat,
    "scale_rewards": Literal["group", "batch", "none"],
    "top_entropy_quantile": Annotated[float, Field(ge=0, le=1)],
    "top_k": NonNegativeInt,
    "vllm_importance_sampling_mode": Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"],
    "vllm_mode": Literal["colocate", "server"],
}
"""Types of fields whose values TRL itself looks at only when a step has been sampled."""
SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def check_rl(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether there are prompts, something that rewards their answers, and settings that TRL takes."""
    if "rl" in broken:
        return
    if recipe.rl is None:
        yield Problem(("rl",), "is required and missing; say what judges the answers, such as rl.verifier=math")
        return
    yield from _check_prompts(recipe, recipe.rl, broken)
    yield from _check_reward(recipe.rl)
    yield from _check_machine(recipe.rl)
    yield from _check_trainer(recipe, recipe.rl)


def check_start(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """The model that reinforcement learning starts from; a folder with an adapter is put on its base."""
    if recipe.model is None or "model" in broken:
        return
    try:
        section = start_section(recipe)
    except BallastError as error:
        yield Problem(("model",), str(error))
        return
    started = recipe.model_copy(update={"model": section})
    yield from checks.check_model(started, broken)
    # RL has training settings of its own.
    yield from quantised_checks.check_training(started, broken | {"training"})
    if recipe.rl is not None and "rl" not in broken:
        yield from half_checks.check_drawn(("rl", "half"), recipe.rl.half, section, recipe.seed)


def start_section(recipe: Recipe, start: str | Path | None = None) -> ModelSection:
    """Return the start as a section: `start`, or the recipe's model, each a model or a folder with an adapter.

    Raises:
        BallastError: if an adapter's configuration cannot be read, or the recipe would put another one on top.
    """
    section = recipe.model
    if start is not None:
        return models.resolve(models.section_of(str(start), section))
    assert section is not None
    if not _is_adapter(section.path):
        return models.resolve(section)
    if section.lora is not None or section.adapter is not None:
        raise BallastError(
            f"{section.path}: holds a PEFT adapter, which goes on training; leave out model.lora and model.adapter, or "
            "name the base as model.path"
        )
    found = models.section_of(section.path)
    return models.resolve(section.model_copy(update={"path": found.path, "adapter": found.adapter}))


def _is_adapter(path: str) -> bool:
    folder = Path(path)
    return (folder / models.ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def _check_prompts(recipe: Recipe, options: RLOptions, broken: frozenset[str]) -> Iterable[Problem]:
    named, where = (options.data, ("rl", "data")) if options.data else (recipe.data.train, ("data", "train"))
    if "data" in broken and options.data is None:
        return
    if not named:
        yield Problem(where, "is required and missing; name the rows with the prompts: data.train, or rl.data")
    for index, source in enumerate(named):
        if problem := sources.check_source(source):
            yield Problem((*where, *([index] if len(named) > 1 else [])), problem)


def _check_reward(options: RLOptions) -> Iterable[Problem]:
    from ballast.reward.scores import folder_problem
    from ballast.rl.rewards import options_reward

    if options.reward_model is not None and (problem := folder_problem(options.reward_model)):
        yield Problem(("rl", "reward_model"), problem)
    if options.reward == "model" and options.verifier is None:
        return
    problems = list(group_checks.check_verifier("rl", options))
    yield from problems
    if problems or options.verifier is None:
        return
    try:
        options_reward(options)
    except BallastError as error:
        yield Problem(("rl", "reward"), str(error))


def _check_machine(options: RLOptions) -> Iterable[Problem]:
    for variable, name in SHARDED.items():
        if os.environ.get(variable) == "true":
            yield Problem(("rl",), f"a model sharded by {name} is not supported; start without it, perhaps with LoRA")
    if options.use_vllm:
        from ballast.rl import trl

        if not trl.vllm_is_installed():
            yield Problem(
                ("rl", "use_vllm"),
                "vLLM is not installed here, so nothing could be sampled; pip install 'trl[vllm]', or leave it out to "
                "sample with transformers",
            )
        elif options.trainer.get("vllm_mode", "colocate") == "colocate" and not trl.has_accelerator():
            yield Problem(
                ("rl", "use_vllm"),
                "vLLM would share this machine's accelerator with training, and there is none; leave it out, or set "
                "rl.trainer.vllm_mode=server",
            )
        return
    for key in (key for key in options.trainer if key.startswith("vllm_")):
        yield Problem(("rl", "trainer", key), "would be ignored without rl.use_vllm; set that, or leave it out")


def _check_trainer(recipe: Recipe, options: RLOptions) -> Iterable[Problem]:
    from ballast.rl import trl

    hints = trl.config_hints(options.algorithm)
    wrong = {
        key: message
        for key, value in options.trainer.items()
        if (message := _wrong(key, value, hints, options.algorithm))
    }
    for key, message in wrong.items():
        yield Problem(("rl", "trainer", key), message)
    if options.loss_type == "luspo" and options.trainer.get("importance_sampling_level") != "sequence":
        yield Problem(
            ("rl", "loss_type"),
            "luspo weighs whole sequences, and its token weights would be another loss; set "
            "rl.trainer.importance_sampling_level=sequence",
        )
    elif not wrong:
        yield from _construct(recipe, options)


def _wrong(key: str, value: Any, hints: Mapping[str, Any], algorithm: str) -> str | None:
    if key in ELSEWHERE:
        return f"would be overridden here; {ELSEWHERE[key]}"
    if key in TRAINER and key not in hints:
        return f"would be ignored: rl.algorithm {algorithm} does not read it; leave it out, or take the other algorithm"
    if key in TRAINER:
        return settings.misfit(value, NARROWER.get(key, hints[key]))
    if key in hints:
        return f"is a field of trl.{algorithm.upper()}Config that `ballast rl` does not take; leave it out"
    return f"unknown key{suggest(key, TRAINER)}"


def _construct(recipe: Recipe, options: RLOptions) -> Iterable[Problem]:
    """Let TRL look at the settings together."""
    from ballast.rl import trl

    try:
        args = trl.config(options, output_dir=recipe.output or ".", seed=recipe.seed)
        if options.half is not None:
            check_arguments(options.half, args, "rl.trainer")
        refuse_lacking(args, "rl.trainer")
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        message = " ".join(str(error).split())
        named = next((key for key in sorted(options.trainer, key=len, reverse=True) if key in message), None)
        yield Problem(("rl", *(["trainer", named] if named else [])), message.removeprefix(f"rl.trainer.{named} is "))


_RL = (checks.check_required("model", "output"), check_start, check_rl, checks.check_tasks, *engine_checks.TRAINING)

RL_CHECKS: tuple[Check, ...] = (checks.check_output, *_RL)
RL_RESUME_CHECKS: tuple[Check, ...] = (*_RL, checks.check_resume(FIXED))
