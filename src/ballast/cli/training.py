"""Commands that train: train, rl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ballast.cli.base import DryRun, Words, app, recipe_of
from ballast.terminal import console

if TYPE_CHECKING:
    pass


@app.command()
def train(
    words: Words = None,
    dry_run: DryRun = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
) -> None:
    """Fine-tune with the recipe's objective; the checkpoint and the run record go to [cyan]output[/cyan]."""
    from ballast import pipeline

    with recipe_of(words, pipeline.RESUME_CHECKS if resume else pipeline.TRAIN_CHECKS, dry_run) as recipe:
        pipeline.run_train(recipe, resume=resume, say=console().print)


@app.command()
def rl(
    words: Words = None,
    dry_run: DryRun = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
) -> None:
    """Go on with reinforcement learning (GRPO or RLOO) from [cyan]model=CHECKPOINT[/cyan], rewarded by a verifier."""
    from ballast import pipeline

    with recipe_of(words, pipeline.RL_RESUME_CHECKS if resume else pipeline.RL_CHECKS, dry_run) as recipe:
        pipeline.run_rl(recipe, resume=resume, say=console().print)
