"""One metric of some runs: estimates with intervals, and differences that are paired by seed and by item.

Letters: S seeds, I items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ballast.compare.statistics import holm, over_both, over_items, over_seeds, paired_p
from ballast.errors import BallastError
from ballast.evaluation.metrics import mean as item_mean
from ballast.records.folder import BASE, BEFORE
from ballast.records.runs import Run
from ballast.records.schema import Estimate
from ballast.records.summary import Difference, Result, Summary

Array = np.ndarray


def result(runs: Sequence[Run], task: str, metric: str) -> Result:
    """Return what runs of one row scored, without differences."""
    values = tuple(run.value(task, metric) for run in runs)
    scores_SI = _scores(runs, task, metric)
    # Of scores that are all 0 or 1, as of one run, Wilson's interval.
    items = _own_interval(runs, task, metric) if scores_SI is None else Estimate.of(item_mean(scores_SI.mean(axis=0)))
    return Result(
        values=values,
        over_seeds=Estimate.of(over_seeds([value for value in values if value is not None])),
        over_items=items,
        over_both=_over_both(scores_SI),
    )


def difference(runs: Sequence[Run], others: Sequence[Run], task: str, metric: str) -> Difference | None:
    """Return runs minus others, None where no seed has both; the base model is the partner of every seed.

    Raises:
        BallastError: the runs were measured on different items.
    """
    pairs = [(run, other) for run in runs if (other := _partner(run, others)) is not None]
    known = [
        (run, other, value - its)
        for run, other in pairs
        if (value := run.value(task, metric)) is not None and (its := other.value(task, metric)) is not None
    ]
    if not known:
        return None
    mine, theirs, values = (list(column) for column in zip(*known, strict=True))
    scores_SI = _scores(mine, task, metric), _scores(theirs, task, metric)
    apart_SI = None
    if scores_SI[0] is not None and scores_SI[1] is not None:
        _check_items([mine[0], theirs[0]], task)
        apart_SI = scores_SI[0] - scores_SI[1]
    return _paired([run.seed for run in mine], values, apart_SI)


def against_base(summary: Summary, runs: Sequence[Run], stage: str, task: str, metric: str) -> dict[str, Difference]:
    """Return every method's difference to the base model at the same stage: after RL, to RL straight from it.

    Holm's adjustment is over the methods. Empty where the base model was not measured at that stage.

    Args:
        runs: those that the summary's figures are of, as far as they are there; without them no interval over items.
    """
    found: dict[str, Difference] = {}
    for row in summary.rows if _by_seed(summary, BASE, stage, task, metric) else ():
        mine = row.result(stage, task, metric) if row.kind == "method" else None
        if mine is not None:
            apart = mine.to_start if stage == BEFORE else _apart(runs, (row.label, BASE), summary, stage, task, metric)
            found |= {} if apart is None else {row.label: apart}
    return _adjusted(found)


def leads(
    summary: Summary, runs: Sequence[Run], stage: str, task: str, metric: str, label: str
) -> dict[str, Difference]:
    """Return a row's differences to every other method at a stage, Holm's adjustment over them; `runs` as above."""
    others = [row.label for row in summary.rows if row.kind == "method" and row.label != label]
    pairs = {other: _apart(runs, (label, other), summary, stage, task, metric) for other in others}
    return _adjusted({other: one for other, one in pairs.items() if one is not None})


def _adjusted(found: Mapping[str, Difference]) -> dict[str, Difference]:
    adjusted = holm([one.p for one in found.values()])
    return {
        label: one.model_copy(update={"p_holm": p}) for (label, one), p in zip(found.items(), adjusted, strict=True)
    }


def _paired(seeds: Sequence[int], values: Sequence[float], apart_SI: Array | None) -> Difference:
    return Difference(
        seeds=tuple(seeds),
        values=tuple(values),
        over_seeds=Estimate.of(over_seeds(values)),
        over_items=None if apart_SI is None else Estimate.of(over_items(apart_SI)),
        over_both=_over_both(apart_SI),
        p=paired_p(values),
    )


def _over_both(scores_SI: Array | None) -> Estimate | None:
    return None if scores_SI is None or len(scores_SI) < 2 else Estimate.of(over_both(scores_SI))


def _own_interval(runs: Sequence[Run], task: str, metric: str) -> Estimate | None:
    """Return the interval that a single run came with: its task keeps no scores of items to make one of."""
    measured = runs[0].result
    if len(runs) != 1 or measured is None or task not in measured.tasks:
        return None
    return measured.tasks[task].metrics.get(metric)


def _column(run: Run, task: str, metric: str) -> Array | None:
    return None if run.result is None else run.result.items.get(task, {}).get(metric)


def _scores(runs: Sequence[Run], task: str, metric: str) -> Array | None:
    """Return the scores ``[S, I]``, None where a run has none.

    Raises:
        BallastError: the runs were measured on different items.
    """
    columns = [_column(run, task, metric) for run in runs]
    kept = [column for column in columns if column is not None]
    if not kept or len(kept) < len(columns):
        return None
    _check_items(runs, task)
    return np.stack(kept)


def _prompts(run: Run, task: str) -> tuple[str, ...] | None:
    return None if run.result is None else run.result.prompts.get(task)


def _check_items(runs: Sequence[Run], task: str) -> None:
    first = runs[0]
    other = next((run for run in runs if _prompts(run, task) != _prompts(first, task)), None)
    if other is not None:
        raise BallastError(
            f"{other.path}: task {task!r} was measured on other items than {first.path}, so the two do not pair; "
            "remove one of the folders to have it done again"
        )


def _partner(run: Run, others: Sequence[Run]) -> Run | None:
    """Return the run of the same seed."""
    if len(others) == 1 and others[0].is_base:
        return others[0]
    return next((other for other in others if other.seed == run.seed), None)


def _by_seed(summary: Summary, label: str, stage: str, task: str, metric: str) -> dict[int, float]:
    """Return a row's values by seed, none where it was not measured."""
    row = next((row for row in summary.rows if row.label == label), None)
    found = None if row is None else row.result(stage, task, metric)
    if row is None or found is None:
        return {}
    pairs = zip(row.stages[stage].seeds, found.values, strict=False)
    return {seed: value for seed, value in pairs if value is not None}


def _apart(
    runs: Sequence[Run], labels: tuple[str, str], summary: Summary, stage: str, task: str, metric: str
) -> Difference | None:
    """Return one row minus another, seed by seed; with intervals over items where the runs kept their scores."""
    ours, theirs = (_by_seed(summary, label, stage, task, metric) for label in labels)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    here = [run for run in runs if run.stage == stage]
    columns = [_column_apart([run for run in here if run.seed == seed], labels, task, metric) for seed in seeds]
    known = [column for column in columns if column is not None]
    alike = len(known) == len(seeds) and len({len(column) for column in known}) == 1
    return _paired(seeds, [ours[seed] - theirs[seed] for seed in seeds], np.stack(known) if alike else None)


def _column_apart(runs: Sequence[Run], labels: tuple[str, str], task: str, metric: str) -> Array | None:
    """Return the scores of one row minus those of another on a seed ``[I]``, None where they do not pair."""
    own, other = (next((run for run in runs if run.label == label), None) for label in labels)
    if own is None or other is None or _prompts(own, task) != _prompts(other, task):
        return None
    columns = _column(own, task, metric), _column(other, task, metric)
    return None if columns[0] is None or columns[1] is None else columns[0] - columns[1]
