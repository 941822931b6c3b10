"""How the learning rates were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ballast.report.charts.data import Cell, Line, LineChart, Section, Table
from ballast.report.figures import Row, rows
from ballast.report.text import number, rate


def sweep(summary: Mapping[str, Any]) -> Section | None:
    """Return the scores that chose the learning rates; None where every objective had one, or none was run yet."""
    by, tuned = summary.get("choose_by"), [row for row in rows(summary) if row["tuning"]]
    if by is None or not any(
        tried["failed"] or tried["score"]["value"] is not None for row in tuned for tried in row["tuning"]
    ):
        return None
    places = tuple(sorted({tried["rate"] for row in tuned for tried in row["tuning"]}))
    lines = tuple((Cell(row["label"]), *(_tried(row, place) for place in places)) for row in tuned)
    curves = tuple(Line(row["label"], tuple(_scores(row))) for row in tuned)
    named = f"{by['metric']} on {by['task']}"
    seeds = ", ".join(str(seed) for seed in summary["seeds"]["tuning"])
    drawable = len(places) > 1 and any(value is not None for line in curves for _, value in line.points)
    chart = LineChart(f"{named} by learning rate", "learning rate", by["metric"], curves, places)
    return Section(
        "rates",
        "Learning rates",
        f"Chosen by {named}, a task that is not reported, on seeds of their own ({seeds}). ★ marks the rate taken.",
        tables=(Table(("", *(rate(place) for place in places)), lines, named),),
        charts=(chart,) if drawable else (),
        legend=True,
    )


def _tried(row: Row, place: float) -> Cell:
    tried = next((one for one in row["tuning"] if one["rate"] == place), None)
    if tried is None:
        return Cell("–")
    if tried["score"]["value"] is None:
        return Cell("failed" if tried["failed"] else "–")
    return Cell(number(tried["score"]["value"]), "failed on a seed" if tried["failed"] else "", row["rate"] == place)


def _scores(row: Row) -> list[tuple[float, float | None]]:
    return [(tried["rate"], tried["score"]["value"]) for tried in sorted(row["tuning"], key=lambda one: one["rate"])]
