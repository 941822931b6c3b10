"""What there is to train with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from ballast.cli.base import AsJson, app
from ballast.terminal import console, print_json, print_text

if TYPE_CHECKING:
    from ballast.objectives import ObjectiveInfo


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
