"""What a halving left out, what it costs and what that saves. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ballast.compare.halving import Course, course, lengths, pairs_of
from ballast.compare.numbers import counted
from ballast.compare.plan import Plan, own_steps
from ballast.records.schema import CellRecord
from ballast.records.summary import HalvingSummary, RungPoint, RungSummary


def rung_points(found: Course, label: str) -> tuple[RungPoint, ...]:
    """Return what the short runs of a row scored, the shortest first."""
    return tuple(
        RungPoint(
            rate=pair[1],
            steps=cell.steps or rung.steps,
            rung=rung.steps,
            score=rung.scores.get(pair),
            stayed=None if rung.kept is None else pair in rung.kept,
        )
        for rung in found.rungs
        for pair, cell in rung.cells.items()
        if pair[0] == label
    )


def left_at(found: Course, label: str) -> RungPoint | None:
    """Return the best of a row's runs in the rung after which it left, None where it did not leave."""
    points = rung_points(found, label)
    last = [point for point in points if point.rung == points[-1].rung]
    if not last or any(point.stayed is not False for point in last):
        return None
    return max(last, key=lambda point: -math.inf if point.score is None else found.plan.sign * point.score)


def saved(found: Course) -> HalvingSummary | None:
    """Return what the halving did, None where there is none."""
    plan, budget = found.plan, found.plan.compare.budget
    if budget is None or budget.halving is None or budget.steps is None:
        return None
    rows = [row.label for row in plan.methods if not row.random]
    sweep = [cell for label in rows for cell in plan.tuning(label)]
    full = [*_steps(plan, sweep), *_reported(plan, rows)]
    halved = [*_steps(plan, found.cells()), *_reported(plan, [label for label in rows if found.rates(label)])]
    return HalvingSummary(
        eta=budget.halving.eta,
        rungs=tuple(
            RungSummary(steps=rung.steps, pairs=len(rung.cells), kept=None if rung.kept is None else len(rung.kept))
            for rung in found.rungs
        ),
        runs=len(halved) if found.over else None,
        steps=sum(halved) if found.over else None,
        full_runs=len(full),
        full_steps=sum(full),
    )


def _steps(plan: Plan, cells: Iterable[CellRecord]) -> list[int]:
    return [cell.steps or _whole(plan, cell.label) for cell in cells]


def _reported(plan: Plan, labels: Sequence[str]) -> list[int]:
    return [_whole(plan, label) for label in labels for _ in plan.seeds]


def _whole(plan: Plan, label: str) -> int:
    """Return the steps of a row's run with the whole budget."""
    assert plan.compare.budget is not None
    assert plan.compare.budget.steps is not None
    return own_steps(plan, label, plan.compare.budget.steps)


def forecast(plan: Plan) -> str | None:
    """Return what a halving will cost at most, in one line; None without any."""
    known = saved(course(plan, []))
    if known is None:
        return None
    rungs, seeds = lengths(plan), len(plan.tuning_seeds)
    pairs = [len(pairs_of(plan))]
    for _ in rungs:
        # The last that is taken may bring a smaller rate, and so may the baseline, beside the others.
        pairs.append(min(pairs[-1], math.ceil(pairs[-1] / known.eta) + 3))
    labels = [row.label for row in plan.methods if not row.random]
    whole = sorted((_whole(plan, label) for label in labels), reverse=True)
    budget = max(whole)
    rows = min(len(labels), pairs[-1])
    runs = sum(pairs[:-1]) + pairs[-1] * seeds + rows * len(plan.seeds)
    longest = [max(own_steps(plan, label, length) for label in labels) for length in rungs]
    short = sum(count * length for count, length in zip(pairs, longest, strict=False))
    steps = short + pairs[-1] * seeds * budget + sum(whole[:rows]) * len(plan.seeds)
    began = ", ".join(
        f"{counted(count, 'run')} of {counted(length, 'step')}" for count, length in zip(pairs, rungs, strict=False)
    )
    return (
        f"halving: {began}, then at most {pairs[-1]} pairs of objective and rate with all steps; at most {runs:,} runs "
        f"and {steps:,} steps in all (the full sweep: {known.full_runs:,} and {known.full_steps:,})"
    )
