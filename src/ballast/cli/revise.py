"""Revise answers: rows to train on, or rows to train a reviser on."""

from __future__ import annotations

from ballast.cli.base import DryRun, Words, app, recipe_of
from ballast.cli.launch import LaunchConfig, NProc, share
from ballast.terminal import console


@app.command()
def revise(
    words: Words = None, dry_run: DryRun = False, nproc: NProc = None, launch_config: LaunchConfig = None
) -> None:
    """Let the model, or a reviser, revise answers once, and keep the rows in [cyan]revise.file[/cyan]."""
    from ballast import pipeline

    share(nproc, launch_config)
    with recipe_of(words, pipeline.REVISE_CHECKS, dry_run) as recipe:
        pipeline.run_revise(recipe, say=console().print)
