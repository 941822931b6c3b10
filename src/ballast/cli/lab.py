"""Experiments that need no model or data of the user: quickstart, lab."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ballast.cli.base import app, place
from ballast.files import check_place
from ballast.terminal import console

if TYPE_CHECKING:
    pass


@app.command()
def quickstart(
    output: Annotated[Path | None, place("--output", "Keep the runs in this folder.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data order and samples.")] = 42,
) -> None:
    """Fine-tune in ten ways on the embedded lab and compare them: minutes on two cores, no download."""
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
    output: Annotated[Path, place("--output", "New or empty folder for figures and results.")] = Path("frozen-lake"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the initial policies.")] = 0,
) -> None:
    """Compare SFT, IFT, ORPO and DPO with the optimal policy of a small game: about a minute on one core."""
    from ballast.lab.frozen_lake import run_frozen_lake

    check_place("--output", output)
    run_frozen_lake(seeds=seeds, steps=steps, output=output, seed=seed, say=console(markup=True).print)
