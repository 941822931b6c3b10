"""Commands before training: score, advise, sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.cli.base import AsJson, DryRun, Words, app, recipe_of
from ballast.cli.launch import LaunchConfig, NProc, share
from ballast.terminal import console, print_json

if TYPE_CHECKING:
    pass


@app.command()
def score(
    words: Words = None, dry_run: DryRun = False, nproc: NProc = None, launch_config: LaunchConfig = None
) -> None:
    """Score the demonstrations once under the frozen reference and keep the result in [cyan]reference.cache[/cyan]."""
    from ballast import pipeline

    share(nproc, launch_config)
    with recipe_of(words, pipeline.SCORE_CHECKS, dry_run) as recipe:
        pipeline.run_score(recipe, say=console().print)


@app.command()
def advise(
    words: Words = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    nproc: NProc = None,
    launch_config: LaunchConfig = None,
) -> None:
    """Say what the scored demonstrations tell before any training: support, label noise, what each objective keeps."""
    from ballast import pipeline

    share(nproc, launch_config)
    with recipe_of(words, pipeline.ADVISE_CHECKS, dry_run) as recipe:
        advised = pipeline.run_advise(recipe, say=console(stderr=as_json).print)
    if advised is None:  # rank 0 shows it
        return
    if as_json:
        print_json(advised.to_dict())
        return
    for part in pipeline.view(advised):
        console().print(part)


@app.command()
def sample(
    words: Words = None, dry_run: DryRun = False, nproc: NProc = None, launch_config: LaunchConfig = None
) -> None:
    """Sample and judge the group of every prompt once, and keep the answers in [cyan]groups.file[/cyan].

    With [cyan]rows=FILE[/cyan] the right ones among them are also written as rows to train on.
    """
    from ballast import pipeline

    share(nproc, launch_config)
    with recipe_of(words, pipeline.SAMPLE_CHECKS, dry_run) as recipe:
        pipeline.run_sample(recipe, say=console().print)
