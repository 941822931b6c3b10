"""Commands to begin with: init, try."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ballast.cli import measure
from ballast.cli.base import app, place
from ballast.errors import BallastError
from ballast.files import expanded
from ballast.terminal import console, print_text

Model = Annotated[
    str, typer.Argument(parser=expanded, metavar="MODEL", help="A folder, a GGUF file, a hub id, or an embedded model.")
]
Data = Annotated[
    str, typer.Argument(parser=expanded, metavar="DATA", help="Demonstrations: a file, a folder or a hub id.")
]
Output = Annotated[Path | None, place("--output", "Folder to make.", show_default="runs/try-NAME")]
Minutes = Annotated[
    float | None, typer.Option("--minutes", min=0, help="What the comparison may take.", show_default="20")
]
OfColumns = Annotated[
    str | None,
    typer.Option(
        "--columns", metavar="YAML", help="As data.columns: {prompt: ask, completion: reply}.", show_default="found"
    ),
]


OfEnd = Annotated[
    str | None,
    typer.Option("--eos-token", metavar="TOKEN", help="End token of a tokenizer without one.", show_default="found"),
]


def _request(model: str, data: str, columns: str | None, minutes: float | None, eos_token: str | None) -> Any:
    from ballast.config.source import parse_override
    from ballast.pipeline import quiet
    from ballast.start.run import Request

    quiet()
    found = None if columns is None else parse_override(f"columns={columns}")[1]
    return Request(model, data, found, minutes, eos_token)


@app.command()
def init(
    model: Model,
    data: Data,
    output: Output = None,
    columns: OfColumns = None,
    minutes: Minutes = None,
    eos_token: OfEnd = None,
) -> None:
    """Look at rows and model, and write a commented recipe that compares the objectives worth their time."""
    from ballast.start.recipe import RECIPE, compare_command
    from ballast.start.run import default_folder, is_made, run_init, shown_command

    request = _request(model, data, columns, minutes, eos_token)
    folder = default_folder(data) if output is None else output
    if is_made(folder, request):
        raise BallastError(f"--output: {folder}: has this recipe already; see {folder / RECIPE}")
    run_init(request, folder, command=shown_command("init", request, output), say=print_text)
    print_text(f"{folder / RECIPE}: written; next: {compare_command(folder)}")


@app.command("try")
def try_(
    model: Model,
    data: Data,
    output: Output = None,
    columns: OfColumns = None,
    minutes: Minutes = None,
    eos_token: OfEnd = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Begin without asking.")] = False,
) -> None:
    """Init, compare and report: from rows and a model to a decision. Run again, it goes on where it was stopped."""
    from ballast.start.recipe import RECIPE, RUNS
    from ballast.start.run import default_folder, is_made, run_init, shown_command

    if not yes and not sys.stdin.isatty():
        raise BallastError("try asks before it begins, and there is no terminal to ask; add --yes")
    request = _request(model, data, columns, minutes, eos_token)
    folder = default_folder(data) if output is None else output
    if is_made(folder, request):
        print_text(f"{folder / RECIPE}: goes on")
    else:
        run_init(request, folder, command=shown_command("try", request, output), say=console().print)
    if not yes and not (folder / RUNS).exists():
        typer.confirm("begin?", abort=True)
    measure.compare(words=[str(folder / RECIPE)])
