"""The figures of `ballast lab frozen-lake`: distances over training, and the policies drawn on the map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrow, Patch, Rectangle

from ballast.lab.frozen_lake.map import GOAL, HOLE, Lake, lake
from ballast.lab.frozen_lake.training import STARTS, VARIED, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ballast.lab.frozen_lake.training import Policies, Trained

# Okabe and Ito's colours, which readers with any of the common colour-blindnesses tell apart; dashes for print.
LINES: dict[str, dict[str, Any]] = {
    "sft": {"color": "#0072B2", "linestyle": "-"},
    "orpo": {"color": "#E69F00", "linestyle": (0, (6, 1.5))},
    "ift": {"color": "#009E73", "linestyle": (0, (4, 1.2, 1, 1.2))},
    "dpo": {"color": "#D55E00", "linestyle": (0, (1.2, 1.2))},
}
CELL_COLOURS = {HOLE: "#3A3F47", GOAL: "#F0E442"}
OPTIMAL_COLOUR, SUBOPTIMAL_COLOUR, ARROW_COLOUR = "#BFE3F5", "#F6DDEA", "#1B1B1B"
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Where each action points, (columns, rows downwards), in gymnasium's order."""
SMALLEST_DRAWN = 0.02
MEASURED = {"on_way": "states of the optimal trajectory", "on_map": "all states of the map"}
STARTED = {"fresh": "fresh weights", "pretrained": "knows both ways", "biased": "prefers the longer"}


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_figure(path, dpi=95, metadata={"Software": None})


def draw_curves(trained: Mapping[tuple[str, str], Mapping[str, Trained]], path: Path) -> None:
    """Draw distance over steps on the first map: a row for each start, a column for each measure, bands: intervals."""
    figure = Figure(figsize=(9.0, 9.0), layout="constrained")
    panels = figure.subplots(len(STARTS), len(MEASURED), sharex=True, squeeze=False)
    for row, start in zip(panels, STARTS, strict=True):
        for axes, measure in zip(row, MEASURED, strict=True):
            for method, runs in trained[VARIED[0], start].items():
                _band(axes, method, getattr(runs, measure).numpy())
            axes.set_title(f"{STARTED[start]}: {MEASURED[measure]}", fontsize=11)
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.01)
        row[0].set_yscale("log")
        row[0].set_ylabel("distance (MSE, log)", fontsize=10)
        row[1].set_ylim(bottom=0)
        row[1].set_ylabel("distance (MSE)", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("optimiser step", fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    count = len(next(iter(trained[VARIED].values())).matrix)
    figure.legend(
        *(handles, [label.upper() for label in labels]),
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        fontsize=11,
        handlelength=3.5,
        title=f"mean of {count} seeds with the 95 % t interval",
    )
    _save(figure, path)


def _band(axes: Axes, method: str, values_LR: np.ndarray) -> None:
    found = [estimate(values_R) for values_R in values_LR.tolist()]
    mean, low, high = (np.array([entry[key] for entry in found]) for key in ("mean", "low", "high"))
    steps = np.arange(len(mean))
    axes.plot(steps, mean, label=method, linewidth=2, **LINES[method])
    # A band cannot reach below zero, which a logarithmic axis does not have.
    axes.fill_between(steps, np.maximum(low, mean / 100), high, color=LINES[method]["color"], alpha=0.2, linewidth=0)


def draw_policies(
    starts: Mapping[tuple[str, str], Policies], trained: Mapping[tuple[str, str], Mapping[str, Trained]], path: Path
) -> None:
    """Draw the policies before and after, means over seeds, a row for each start and a column for each method."""
    name = VARIED[0]
    methods = list(trained[VARIED])
    figure = Figure(figsize=(11.0, 7.9), layout="constrained")
    panels = figure.subplots(len(STARTS), 1 + len(methods), squeeze=False)
    for row, start in zip(panels, STARTS, strict=True):
        matrices: dict[str, Any] = {"before": starts[name, start].matrix()}
        matrices |= {method.upper(): runs.matrix for method, runs in trained[name, start].items()}
        for axes, (title, matrix_RSA) in zip(row, matrices.items(), strict=True):
            _lake(axes, lake(name), matrix_RSA.mean(0).numpy())
            axes.set_title(title, fontsize=12)
        row[0].set_ylabel(STARTED[start], fontsize=11)
    figure.legend(
        handles=[
            Patch(facecolor=OPTIMAL_COLOUR, edgecolor="grey", label="optimal trajectory"),
            Patch(facecolor=SUBOPTIMAL_COLOUR, edgecolor="grey", label="sub-optimal trajectory"),
            Patch(facecolor=CELL_COLOURS[HOLE], edgecolor="grey", label="hole"),
            Patch(facecolor=CELL_COLOURS[GOAL], edgecolor="grey", label="goal"),
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=11,
        title="arrows: probability of each action, mean over seeds",
    )
    _save(figure, path)


def _lake(axes: Axes, place: Lake, policy_SA: np.ndarray) -> None:
    width = len(place.rows[0])
    for state, cell in enumerate(place.cells):
        row, column = divmod(state, width)
        on_way = OPTIMAL_COLOUR if state in place.optimal.states else SUBOPTIMAL_COLOUR
        colour = CELL_COLOURS.get(cell, on_way)
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
        if state in place.deciding:
            for action, probability in enumerate(policy_SA[state]):
                _arrow(axes, column + 0.5, row + 0.5, action, probability)
        if cell in (GOAL, "S"):
            at = (column + 0.5, row + 0.5) if cell == GOAL else (column + 0.06, row + 0.06)
            ha, va = ("center", "center") if cell == GOAL else ("left", "top")
            axes.text(*at, cell, fontsize=11 if cell == GOAL else 8, fontweight="bold", ha=ha, va=va)
    axes.set(xlim=(0, width), ylim=(len(place.rows), 0), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _arrow(axes: Axes, column: float, row: float, action: int, probability: float) -> None:
    if probability < SMALLEST_DRAWN:
        return
    across, down = MOVES[action]
    length = 0.1 + 0.34 * probability
    axes.add_patch(
        FancyArrow(
            *(column, row, across * length, down * length),
            width=0.015 + 0.085 * probability,
            head_width=0.07 + 0.2 * probability,
            head_length=0.06 + 0.1 * probability,
            length_includes_head=True,
            color=ARROW_COLOUR,
            linewidth=0,
        )
    )
