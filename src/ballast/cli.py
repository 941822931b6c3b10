"""The command line: thin commands over `ballast.pipeline`; importing it imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table
from typer.core import TyperGroup

from ballast.errors import BallastError, Diverged, Interrupted
from ballast.files import check_file, check_place, expanded
from ballast.terminal import console, print_json, print_text, print_yaml

if TYPE_CHECKING:
    from ballast.config.recipe import Check, Recipe
    from ballast.objectives import ObjectiveInfo

USAGE_ERROR = 2
INTERRUPTED = 130


class _Group(TyperGroup):
    """Turns input that cannot be used into one line per problem on stderr; everything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BallastError as error:
            if os.environ.get("BALLAST_DEBUG") == "1":
                raise
            print_text(error, file=sys.stderr)
            raise typer.Exit(USAGE_ERROR) from None
        except (Diverged, Interrupted) as ended:
            print_text(ended, file=sys.stderr)
            raise typer.Exit(ended.code) from None
        except KeyboardInterrupt:
            print_text("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    name="ballast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Supervised fine-tuning that leaves a language model ready for reinforcement learning.",
)

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="A YAML recipe, then settings that override it, such as [cyan]training.learning_rate=1e-5[/cyan].",
        show_default=False,
    ),
]


def _path(text: str) -> Path:
    return Path(expanded(text))


def _place(flag: str, about: str, show_default: bool | str = False) -> Any:
    return typer.Option(flag, parser=_path, metavar="PATH", help=about, show_default=show_default)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the resolved recipe, and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def _print_versions(wanted: bool) -> None:
    if wanted:
        from ballast.records.write import versions

        print(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_versions, help="Print versions and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="BALLAST_DEBUG", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["BALLAST_DEBUG"] = "1"


@app.command()
def objectives(
    name: Annotated[str | None, typer.Argument(help="Show one objective with its options.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the objectives, or the options of one."""
    from dataclasses import asdict

    from ballast.objectives import describe, list_objectives, objective

    infos = list_objectives() if name is None else [describe(type(objective(name)))]
    if as_json:
        print_json([asdict(info) for info in infos])
        return
    if name is None:
        table = Table("objective", "what it does", "needs", "source", box=SIMPLE, pad_edge=False)
        for info in infos:
            table.add_row(info.name, info.description, ", ".join(info.needs), info.source)
        console().print(table)
        print_text("`ballast objectives NAME` shows the options of one.")
    else:
        _print_objective(infos[0])


def _print_objective(info: ObjectiveInfo) -> None:
    print_text(f"{info.name}: {info.description}")
    print_text(f"source: {info.source}")
    print_text(f"needs {', '.join(info.needs)}; scope {info.scope}; divides by the count of {info.reduction}")
    options = Table("option", "default", "meaning", box=SIMPLE, pad_edge=False)
    for key, default, meaning in info.options:
        options.add_row(key, str(default), meaning)
    console().print(options if info.options else "no options")


@app.command()
def score(words: Words = None, dry_run: DryRun = False) -> None:
    """Score the demonstrations once under the frozen reference and keep the result in [cyan]reference.cache[/cyan]."""
    from ballast import pipeline

    with _recipe(words, pipeline.SCORE_CHECKS, dry_run) as recipe:
        pipeline.run_score(recipe, say=console().print)


@app.command()
def advise(words: Words = None, as_json: AsJson = False, dry_run: DryRun = False) -> None:
    """Say what the scored demonstrations tell before any training: support, label noise, what each objective keeps."""
    from ballast import pipeline

    with _recipe(words, pipeline.ADVISE_CHECKS, dry_run) as recipe:
        advised = pipeline.run_advise(recipe, say=console(stderr=as_json).print)
    if as_json:
        print_json(advised.to_dict())
        return
    for part in pipeline.view(advised):
        console().print(part)


@app.command()
def sample(words: Words = None, dry_run: DryRun = False) -> None:
    """Sample and judge the group of every prompt once, and keep the answers in [cyan]groups.file[/cyan]."""
    from ballast import pipeline

    with _recipe(words, pipeline.SAMPLE_CHECKS, dry_run) as recipe:
        pipeline.run_sample(recipe, say=console().print)


@app.command()
def train(
    words: Words = None,
    dry_run: DryRun = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
) -> None:
    """Fine-tune with the recipe's objective; the checkpoint and the run record go to [cyan]output[/cyan]."""
    from ballast import pipeline

    with _recipe(words, pipeline.RESUME_CHECKS if resume else pipeline.TRAIN_CHECKS, dry_run) as recipe:
        pipeline.run_train(recipe, resume=resume, say=console().print)


@app.command()
def rl(
    words: Words = None,
    dry_run: DryRun = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
) -> None:
    """Go on with reinforcement learning (GRPO) from [cyan]model=CHECKPOINT[/cyan], rewarded by a verifier."""
    from ballast import pipeline

    with _recipe(words, pipeline.RL_RESUME_CHECKS if resume else pipeline.RL_CHECKS, dry_run) as recipe:
        pipeline.run_rl(recipe, resume=resume, say=console().print)


@app.command()
def evaluate(
    words: Words = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Measure this; repeat for several. Default: the recipe's two.")
    ] = None,
    items: Annotated[Path | None, _place("--items", "Folder for every prompt, answer and score.")] = None,
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
) -> None:
    """Measure models on the recipe's tasks: accuracy, pass@k and negative log-likelihood, with intervals."""
    from ballast import pipeline

    with _recipe(words, pipeline.TASK_CHECKS if model else pipeline.EVALUATE_CHECKS) as recipe:
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


@app.command()
def compare(
    words: Words = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="I/N", help="Do one part of N, to spread over machines.", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs at a time. Default: one a core for a small model on CPU, else 1."),
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Run objectives × learning rates × seeds, RL after them, and report which left the model best; resumes itself."""
    from ballast import compare as matrix
    from ballast.pipeline.inspect import write_tokens
    from ballast.report import write_report

    part = matrix.Part.parse(only) if only else None
    terminal = console(stderr=as_json)
    with _recipe(words, matrix.COMPARE_CHECKS, dry_run) as recipe:
        assert recipe.compare is not None
        assert recipe.output is not None
        summary = matrix.run_compare(recipe, part=part, jobs=jobs, say=terminal.print, console=terminal)
    if as_json:
        print_json(summary.plain())
    else:
        matrix.show(summary, say=terminal.print)
    if any(row.stages for row in summary.rows):
        if why := write_tokens(recipe, [one.build() for one in recipe.compare.objectives], recipe.output):
            terminal.print(f"the report has no token views: {why}", soft_wrap=True)
        page, _ = write_report([recipe.output])
        terminal.print(f"report: {page}", soft_wrap=True)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(parser=_path, metavar="FOLDER...", help="Comparisons, outputs of `ballast train`, or folders."),
    ],
    output: Annotated[
        Path | None, _place("--output", "Where the two files go.", show_default="the first folder")
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
    page: Annotated[Path | None, _place("--html", "Write a page to this file.")] = None,
    record: Annotated[Path | None, _place("--record", "Write JSON; reports show a run's tokens.json.")] = None,
    over: Annotated[int, typer.Option("--over", min=0, help="First rows whose weights the histograms count.")] = 64,
) -> None:
    """Show what objectives make of every token of some rows: weight, probabilities, entropy, KL, selection."""
    from ballast.pipeline.inspect import INSPECT_CHECKS, run_inspect
    from ballast.report import show_tokens

    counted = over if page or record else 0
    check_file("--html", page)
    check_file("--record", record)
    with _recipe(words, INSPECT_CHECKS) as recipe:
        tokens = run_inspect(recipe, rows, objectives=objective or (), model=model, over=counted, record=record)
    show_tokens(tokens, page=page, say=console().print)
    if record is not None:
        print_text(f"{record}: written")


@app.command()
def quickstart(
    output: Annotated[Path | None, _place("--output", "Keep the runs in this folder.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data order and samples.")] = 42,
) -> None:
    """Fine-tune with seven objectives on the embedded lab and compare them: minutes on two cores, no download."""
    from ballast.pipeline import quiet
    from ballast.quickstart import run_quickstart

    quiet()
    check_place("--output", output)
    run_quickstart(output=output, seed=seed, say=console().print)


lab = typer.Typer(no_args_is_help=True, help="Experiments small enough to be seen through.")
app.add_typer(lab, name="lab")


@lab.callback()
def _lab() -> None:
    """Experiments small enough to be seen through."""


@lab.command(name="frozen-lake")
def frozen_lake(
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="Number of initial policies.")] = 20,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimiser steps of each run.", show_default="400")
    ] = None,
    output: Annotated[Path, _place("--output", "New or empty folder for figures and results.")] = Path("frozen-lake"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the initial policies.")] = 0,
) -> None:
    """Compare SFT, IFT, ORPO and DPO with the optimal policy of a small game: about a minute on one core."""
    from ballast.lab.frozen_lake import run_frozen_lake

    check_place("--output", output)
    run_frozen_lake(seeds=seeds, steps=steps, output=output, seed=seed, say=console(markup=True).print)


@contextmanager
def _recipe(words: list[str] | None, checks: Sequence[Check], dry_run: bool = False) -> Iterator[Recipe]:
    """Read ``[RECIPE] [KEY=VALUE]...``: the first word is a recipe when it is a file or has no ``=``.

    What the checks read is not read again within the block. A dry run ends with the resolved recipe printed.
    """
    from ballast.config.recipe import load_recipe
    from ballast.pipeline import quiet, sources

    quiet()
    words = [word if "=" in word else expanded(word) for word in words or ()]
    path = words.pop(0) if words and (Path(words[0]).is_file() or "=" not in words[0]) else None
    with sources.read_once():
        recipe = load_recipe(path, words, checks=checks)
        if dry_run:
            print_yaml(recipe.to_yaml())
            raise typer.Exit
        yield recipe


def main() -> None:
    """Run the command line; modules in the working directory can be named in recipes (verifiers, objectives)."""
    if "" not in sys.path:
        sys.path.append("")
    app()


if __name__ == "__main__":
    main()
