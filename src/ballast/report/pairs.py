"""Differences to the start at the same stage: after RL to RL from the start itself, which is what has to be beaten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ballast.compare.plan import BASE
from ballast.compare.statistics import holm, over_both, over_items, over_seeds, paired_p
from ballast.records.runs import BEFORE, per_item
from ballast.report.figures import Metric, Row, result, rows, with_results
from ballast.report.runs import Measured
from ballast.report.source import Source


def against_start(source: Source, stage: str, metric: Metric) -> dict[str, dict[str, Any]]:
    """Return every method's difference to the start at a stage, of the shape of a summary's ``to_baseline``.

    Pairs are of the same seed; Holm's adjustment is over the methods. Empty where the start was not measured then.
    """
    start = next((row for row, _ in with_results(source.summary, stage, metric, "start")), None)
    if start is None:
        return {}
    found = {}
    for row, mine in with_results(source.summary, stage, metric, "method"):
        difference = mine["to_start"] if stage == BEFORE else _paired(source, stage, row, start, metric)
        if difference is not None:
            found[str(row["label"])] = difference
    adjusted = holm([one.get("p") for one in found.values()])
    return {label: {**one, "p_holm": p} for (label, one), p in zip(found.items(), adjusted, strict=True)}


def start_result(source: Source, stage: str, metric: Metric) -> Any:
    """Return what the start itself reached at a stage, None where it was not measured."""
    return next((found for row in rows(source.summary, "start") if (found := result(row, stage, metric))), None)


def _paired(source: Source, stage: str, row: Row, start: Row, metric: Metric) -> dict[str, Any] | None:
    mine, theirs = _by_seed(row, stage, metric), _by_seed(start, stage, metric)
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:
        return None
    values = np.array([mine[seed] - theirs[seed] for seed in seeds])
    table = _table(source, stage, str(row["label"]), seeds, metric)
    return {
        "seeds": seeds,
        "values": values.tolist(),
        "over_seeds": over_seeds(values).to_dict(),
        "over_items": None if table is None else over_items(table).to_dict(),
        "over_both": None if table is None or len(table) < 2 else over_both(table).to_dict(),
        "p": paired_p(values),
    }


def _by_seed(row: Row, stage: str, metric: Metric) -> dict[int, float]:
    found = result(row, stage, metric) or {}
    pairs = zip(row["stages"][stage]["seeds"], found.get("values", ()), strict=False)
    return {seed: float(value) for seed, value in pairs if value is not None}


def _table(source: Source, stage: str, label: str, seeds: Sequence[int], metric: Metric) -> np.ndarray | None:
    """Return the differences as seeds × items; None where scores were not kept, or not of the same items."""
    results = {(run.label, run.seed): run.result for run in source.reported(stage)}
    pairs = [(results.get((label, seed)), results.get((BASE, seed))) for seed in seeds]
    columns = [_column(*pair, metric) for pair in pairs]
    known = [column for column in columns if column is not None]
    return np.stack(known) if len(known) == len(seeds) and len({len(column) for column in known}) == 1 else None


def _column(mine: Measured | None, theirs: Measured | None, metric: Metric) -> np.ndarray | None:
    if mine is None or theirs is None or mine.prompts.get(metric.task) != theirs.prompts.get(metric.task):
        return None
    columns = [per_item(metric.name, one.scores.get(metric.task, ())) for one in (mine, theirs)]
    first, second = columns
    return None if first is None or second is None or not len(first) else first - second
