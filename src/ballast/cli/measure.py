"""Commands that measure and show: evaluate, compare, report, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ballast.cli.base import AddressCommand, AsJson, DryRun, Words, app, path_of, place, recipe_of
from ballast.cli.launch import LaunchConfig, NProc, share
from ballast.files import check_file, check_place
from ballast.terminal import console, print_json, print_text, print_yaml


@app.command()
def evaluate(
    words: Words = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Measure this; repeat for several. Default: the recipe's two.")
    ] = None,
    items: Annotated[Path | None, place("--items", "Folder for every prompt, answer and score.")] = None,
    readiness: Annotated[
        bool, typer.Option("--readiness", help="Measure the readiness for reinforcement learning alone.")
    ] = False,
    group: Annotated[
        int | None, typer.Option("--group", help="With --readiness: answers per prompt in RL.", show_default="8")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="With --readiness: samples per prompt.", show_default="the group")
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    nproc: NProc = None,
    launch_config: LaunchConfig = None,
) -> None:
    """Measure models on the recipe's tasks: accuracy, pass@k and negative log-likelihood, with intervals."""
    from ballast import pipeline

    share(nproc, launch_config)
    with recipe_of(words, pipeline.TASK_CHECKS if model else pipeline.EVALUATE_CHECKS) as recipe:
        if readiness or group is not None or samples is not None:
            recipe = pipeline.with_readiness(recipe, wanted=readiness, group=group, samples=samples)
        pipeline.check_measurement(recipe, paths=model or (), items=items)
        if dry_run:
            print_yaml(recipe.to_yaml())
            return
        measured = pipeline.run_evaluate(recipe, paths=model or (), items=items, say=console(stderr=as_json).print)
    if as_json:
        print_json([entry.record().plain() for entry in measured])
    else:
        console().print(pipeline.table(measured))
        for line in pipeline.readiness_lines(measured):
            print_text(line)


@app.command(cls=AddressCommand)
def compare(
    words: Words = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="I/N", help="Do one part of N, to spread over machines.", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="Runs at a time. Default: one a GPU; one a core for a small model on CPU; else 1."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[HOST:PORT|auto|local]",
            help="Do the runs on a Ray cluster; without an address on the one of this machine.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[float | None, typer.Option("--gpus", help="With --ray: GPUs of each run, 0 to 1.")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", help="With --ray: CPU cores of each run.")] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Run objectives × learning rates × seeds, RL after them, and report which left the model best; resumes itself."""
    from ballast import compare as matrix
    from ballast.pipeline.inspect import write_tokens
    from ballast.report import write_report

    part = matrix.Part.parse(only) if only else None
    cluster = matrix.ray_options(ray, gpus, cpus)
    terminal = console(stderr=as_json)
    with recipe_of(words, matrix.COMPARE_CHECKS, dry_run) as recipe:
        assert recipe.compare is not None
        assert recipe.output is not None
        summary = matrix.run_compare(recipe, part=part, jobs=jobs, ray=cluster, say=terminal.print, console=terminal)
    if as_json:
        print_json(summary.plain())
    else:
        matrix.show(summary, say=terminal.print)
    if any(row.stages for row in summary.rows):
        if why := write_tokens(recipe, [one.build() for one in recipe.compare.objectives], recipe.output):
            terminal.print(f"the report has no token views: {why}", soft_wrap=True)
        page, _ = write_report([recipe.output])
        terminal.print(f"report: {page}", soft_wrap=True)
    for line in matrix.next_steps(summary, recipe, words or ()):
        terminal.print(line, soft_wrap=True)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(parser=path_of, metavar="FOLDER...", help="Comparisons, outputs of `ballast train`, folders."),
    ],
    output: Annotated[
        Path | None, place("--output", "Where the two files go.", show_default="the first folder")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="TASK/METRIC", help="What decides.", show_default="what chose the rates"),
    ] = None,
) -> None:
    """Write report.html, one page that needs nothing else, and report.md on what runs measured."""
    from ballast.report import write_report

    check_place("--output", output)
    page, text = write_report(folders, output=output, metric=metric)
    print_text(f"{page}\n{text}")


@app.command()
def inspect(
    words: Words = None,
    rows: Annotated[str, typer.Option("--rows", metavar="3,7", help="Rows of data.train, counted from 1.")] = "1",
    objective: Annotated[
        list[str] | None,
        typer.Option("--objective", help="Name, or {name: …, option: …}; repeat for several. Default: the recipe's."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The live model.", show_default="the recipe's, as the reference")
    ] = None,
    page: Annotated[Path | None, place("--html", "Write a page to this file.")] = None,
    record: Annotated[Path | None, place("--record", "Write JSON; reports show a run's tokens.json.")] = None,
    over: Annotated[int, typer.Option("--over", min=0, help="First rows whose weights the histograms count.")] = 64,
) -> None:
    """Show what objectives make of every token of some rows: weight, probabilities, entropy, KL, selection."""
    from ballast.pipeline.inspect import INSPECT_CHECKS, run_inspect
    from ballast.report import show_tokens

    counted = over if page or record else 0
    check_file("--html", page)
    check_file("--record", record)
    with recipe_of(words, INSPECT_CHECKS) as recipe:
        tokens = run_inspect(recipe, rows, objectives=objective or (), model=model, over=counted, record=record)
    show_tokens(tokens, page=page, say=console().print)
    if record is not None:
        print_text(f"{record}: written")
