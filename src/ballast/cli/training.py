"""Commands that train: train, rl, rounds; and merge, what one does with the result."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ballast.cli.base import DryRun, Words, app, place, recipe_of
from ballast.cli.launch import LaunchConfig, NProc, share
from ballast.terminal import console


class DType(str, Enum):
    """What weights can be stored in."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@app.command()
def train(
    words: Words = None,
    dry_run: DryRun = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    nproc: NProc = None,
    launch_config: LaunchConfig = None,
) -> None:
    """Fine-tune with the recipe's objective; the checkpoint and the run record go to [cyan]output[/cyan]."""
    from ballast import pipeline

    share(nproc, launch_config, trains=True)
    with recipe_of(words, pipeline.RESUME_CHECKS if resume else pipeline.TRAIN_CHECKS, dry_run) as recipe:
        pipeline.run_train(recipe, resume=resume, say=console().print)


@app.command()
def reward(words: Words = None, dry_run: DryRun = False) -> None:
    """Learn a reward from the answers in [cyan]groups.file[/cyan]: a classifier for [cyan]ballast rl[/cyan]."""
    from ballast import pipeline

    with recipe_of(words, pipeline.REWARD_CHECKS, dry_run) as recipe:
        pipeline.run_reward(recipe, say=console().print)


@app.command()
def rl(
    words: Words = None,
    dry_run: DryRun = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    nproc: NProc = None,
    launch_config: LaunchConfig = None,
) -> None:
    """Go on with reinforcement learning (GRPO or RLOO) from [cyan]model=CHECKPOINT[/cyan], rewarded by a verifier."""
    from ballast import pipeline

    share(nproc, launch_config, trains=True)
    with recipe_of(words, pipeline.RL_RESUME_CHECKS if resume else pipeline.RL_CHECKS, dry_run) as recipe:
        pipeline.run_rl(recipe, resume=resume, say=console().print)


@app.command()
def rounds(words: Words = None, dry_run: DryRun = False) -> None:
    """Repeat commands, each round from the model of the round before; run again, it goes on where it was stopped."""
    from ballast import pipeline

    with recipe_of(words, pipeline.ROUNDS_CHECKS, dry_run) as recipe:
        pipeline.run_rounds(recipe, say=console().print)


@app.command()
def merge(
    path: Annotated[str, typer.Argument(metavar="FOLDER", help="Output of a run with LoRA, or a PEFT adapter.")],
    output: Annotated[Path, place("--output", "New folder for the merged model.")],
    base: Annotated[
        str | None, typer.Option("--base", help="Model to add to, in full precision.", show_default="the adapter's own")
    ] = None,
    dtype: Annotated[
        DType | None, typer.Option("--dtype", help="What to store weights in.", show_default="the base's")
    ] = None,
) -> None:
    """Put a LoRA adapter into the weights of its base, checked to be the same model, as engines load it."""
    from ballast.pipeline import quiet
    from ballast.pipeline.merge import run_merge

    quiet()
    run_merge(path, output, base=base, dtype=dtype and dtype.value, say=console().print)
