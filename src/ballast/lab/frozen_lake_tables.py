"""The results of `ballast lab frozen-lake` as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

LEGEND = """\
distance: mean squared error between the trained and the optimal state-action matrix, times 1000;
  trajectory: over the optimal trajectory's states, map: over all states in which an action is taken.
P: probability of walking exactly the optimal (sub-optimal) trajectory from the start, in percent.
±: half of the 95 % t interval over seeds, for differences over paired seeds; differences are in the distance's unit."""

STARTED = {"fresh": "from fresh weights", "pretrained": "from a policy that knows both trajectories"}


def tables(results: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what is printed: a table for each map and start, the differences, the sensitivities, the legend."""
    for experiment in results["experiments"]:
        yield _methods(experiment)
    yield _differences(results["experiments"])
    yield _rates(results["sensitivity"])
    yield _residual(results["sensitivity"])
    yield LEGEND


def _view(title: str, *headings: str) -> Table:
    view = Table(box=SIMPLE, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for place, heading in enumerate(headings):
        view.add_column(heading, justify="right" if place else "left")
    return view


def _cell(estimate: Mapping[str, float], scale: float, digits: int, *, sign: str = "") -> str:
    half = (estimate["high"] - estimate["low"]) / 2
    return f"{scale * estimate['mean']:{sign}.{digits}f} [dim]±{scale * half:.{digits}f}[/dim]"


def _methods(experiment: Mapping[str, Any]) -> Table:
    title = f"{experiment['map']}, {STARTED[experiment['start']]}"
    view = _view(title, "", "trajectory", "map", "P optimal", "P sub-optimal")
    for name, row in experiment["rows"].items():
        distances = [_cell(row[measure], 1000, 2) for measure in ("on_way", "on_map")]
        view.add_row(name, *distances, *(_cell(row[key], 100, 1) for key in ("p_optimal", "p_suboptimal")))
    return view


def _differences(experiments: list[Mapping[str, Any]]) -> Table:
    pairs = [pair["pair"] for pair in experiments[0]["differences"] if pair["measure"] == "on_way"]
    headings = [f"{nearer} − {farther}" for nearer, farther in pairs]
    view = _view("the reported order, neighbours: all negative if it holds", "", "distance", *headings, "holds")
    for experiment in experiments:
        for measure, label in (("on_way", "trajectory"), ("on_map", "map")):
            cells = [_cell(pair, 1000, 2, sign="+") for pair in experiment["differences"] if pair["measure"] == measure]
            holds = "yes" if experiment["reported_order_seen"][measure] else "no"
            view.add_row(f"{experiment['map']}, {experiment['start']}", label, *cells, holds)
    return view


def _rates(sensitivity: Mapping[str, Any]) -> Table:
    methods = list(dict.fromkeys(entry["method"] for entry in sensitivity["rates"]))
    view = _view(f"learning rate ({sensitivity['map']}, {sensitivity['start']})", "rate", "distance", *methods)
    for rate in dict.fromkeys(entry["rate"] for entry in sensitivity["rates"]):
        for measure, label in (("on_way", "trajectory"), ("on_map", "map")):
            cells = [_cell(entry[measure], 1000, 2) for entry in sensitivity["rates"] if entry["rate"] == rate]
            view.add_row(f"{rate:g}", label, *cells)
    return view


def _residual(sensitivity: Mapping[str, Any]) -> Table:
    view = _view(
        f"IFT ({sensitivity['map']}, {sensitivity['start']})",
        *("lambda", "gamma", "trajectory", "minus sft", "map", "minus sft"),
    )
    for entry in sensitivity["ift"]:
        cells = [
            part
            for measure in ("on_way", "on_map")
            for part in (
                _cell(entry[measure], 1000, 2),
                _cell(entry["minus_sft"][measure], 1000, 2, sign="+"),
            )
        ]
        view.add_row(f"{entry['lam']:g}", f"{entry['gamma']:g}", *cells)
    return view
