"""The results of `ballast lab frozen-lake` as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

LEGEND = """\
distance: mean squared error of the trained state-action matrix to the optimal
  one, times 1000; trajectory: over the states of the optimal trajectory, map:
  over all states in which an action is taken.
lowest: the smallest mean of the distance on the map during training, at step.
P: probability of walking exactly the optimal (sub-optimal) trajectory, percent.
±: half of the 95 % t interval over seeds; differences are paired by seed and in
  the distance's unit."""

STARTED = {
    "fresh": "from fresh weights",
    "pretrained": "from a policy that knows both trajectories",
    "biased": "from a policy that prefers the sub-optimal trajectory",
}
LABELS = {"on_way": "trajectory", "on_map": "map"}


def tables(results: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what is printed: a table for each map and start, the differences, the sensitivities, the legend."""
    for experiment in results["experiments"]:
        yield _methods(experiment)
        differed, steps = experiment["ift_steps_with_own_states"]["mean"], results["settings"]["steps"]
        beside = ", ".join(
            f"{label} {_distance(experiment['ift_minus_sft'][measure], sign='+')}" for measure, label in LABELS.items()
        )
        yield f"ift − sft: {beside}; their inputs differed in {differed:.1f} of {steps} steps\n"
    yield _differences(results["experiments"])
    yield _rates(results["sensitivity"])
    yield _options(results["sensitivity"])
    yield LEGEND


def _view(title: str, *headings: str, left: int = 1) -> Table:
    view = Table(
        box=SIMPLE, pad_edge=False, title=title, title_justify="left", title_style="bold", collapse_padding=True
    )
    for place, heading in enumerate(headings):
        view.add_column(heading, justify="left" if place < left else "right", no_wrap=place < left)
    return view


def _distance(estimate: Mapping[str, float], *, sign: str = "") -> str:
    """Return a distance times 1000 with half its interval, with as many digits as its size leaves room for."""
    mean, half = 1000 * estimate["mean"], 1000 * (estimate["high"] - estimate["low"]) / 2
    digits = next((digits for digits, floor in ((0, 100), (1, 10), (2, 0.1)) if abs(mean) >= floor), 3)
    return f"{mean:{sign}.{digits}f} [dim]±{f'{half:.{digits}f}'.removeprefix('0' if digits else '')}[/dim]"


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['mean']:.1f} [dim]±{50 * (estimate['high'] - estimate['low']):.1f}[/dim]"


def _methods(experiment: Mapping[str, Any]) -> Table:
    title = f"{experiment['map']}, {STARTED[experiment['start']]}"
    view = _view(title, "", *LABELS.values(), "lowest", "P optimal", "P sub-optimal")
    for name, row in experiment["rows"].items():
        lowest = row["lowest"]["on_map"] if "lowest" in row else None
        view.add_row(
            *(name, *(_distance(row[measure]) for measure in LABELS)),
            f"{1000 * lowest['mean']:.1f} at {lowest['step']}" if lowest else "",
            *(_percent(row[key]) for key in ("p_optimal", "p_suboptimal")),
        )
    return view


def _differences(experiments: list[Mapping[str, Any]]) -> Table:
    pairs = [pair["pair"] for pair in experiments[0]["differences"] if pair["measure"] == "on_way"]
    headings = [f"{nearer} − {farther}" for nearer, farther in pairs]
    title = "the reported order holds where all three differences are below zero"
    view = _view(title, "", "", *headings, "holds", left=2)
    for experiment in experiments:
        for measure, label in LABELS.items():
            cells = [_distance(pair, sign="+") for pair in experiment["differences"] if pair["measure"] == measure]
            place = f"{experiment['map']}, {experiment['start']}" if measure == "on_way" else ""
            view.add_row(place, label, *cells, "yes" if experiment["reported_order_seen"][measure] else "no")
    return view


def _rates(sensitivity: Mapping[str, Any]) -> Table:
    methods = list(dict.fromkeys(entry["method"] for entry in sensitivity["rates"]))
    title = f"optimiser and rate ({sensitivity['map']}, {sensitivity['start']})"
    view = _view(title, "", "", *methods, "ift − sft", left=2)
    for optimiser, rate in dict.fromkeys((entry["optimiser"], entry["rate"]) for entry in sensitivity["rates"]):
        for measure, label in LABELS.items():
            chosen = [e for e in sensitivity["rates"] if (e["optimiser"], e["rate"]) == (optimiser, rate)]
            cells = [_distance(entry[measure]).split()[0] for entry in chosen]
            residual = next(entry for entry in chosen if entry["method"] == "ift")
            cells.append(_distance(residual["minus_sft"][measure], sign="+"))
            view.add_row(f"{optimiser} {rate:g}" if measure == "on_way" else "", label, *cells)
    return view


def _options(sensitivity: Mapping[str, Any]) -> Table:
    title = f"options ({sensitivity['map']}, {sensitivity['start']})"
    view = _view(title, "", "options", "trajectory", "− sft", "map", "− sft", left=2)
    for entry in sensitivity["options"]:
        chosen = " ".join(f"{key}={value:g}" for key, value in entry["options"].items())
        cells = [
            cell
            for measure in LABELS
            for cell in (_distance(entry[measure]), _distance(entry["minus_sft"][measure], sign="+"))
        ]
        view.add_row(entry["method"], chosen, *cells)
    return view
