"""Successive halving: all pairs of row and rate train shortly, the best of them longer, the last for the whole budget.

After Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization (AISTATS 2016),
with one change: a pair that stays keeps the next smaller rate of its row, since shorter runs favour larger rates.

Pure: who stays follows from the records, so a comparison that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ballast.compare.plan import Plan, own_steps
from ballast.records.folder import TUNING
from ballast.records.runs import Run
from ballast.records.schema import CellRecord

Pair = tuple[str, float]
"""A row's label and one of its learning rates."""
Scores = Mapping[Pair, float | None]
"""What pairs scored; None where a run broke off or its score is no number."""


def lengths(plan: Plan) -> tuple[int, ...]:
    """Return the steps of the rungs before the last, the shortest first; none without halving.

    ``steps / eta``, ``steps / eta²``, … as far as they reach `min_steps` and there are pairs to halve.
    """
    budget = plan.compare.budget
    if budget is None or budget.halving is None or budget.steps is None:
        return ()
    eta, steps, pairs = budget.halving.eta, budget.steps, len(pairs_of(plan))
    least = budget.halving.min_steps or steps // eta
    most = takewhile(lambda rung: eta**rung <= pairs and steps // eta**rung >= max(1, least), range(1, pairs + 1))
    return tuple(steps // eta**rung for rung in reversed(list(most)))


def pairs_of(plan: Plan) -> list[Pair]:
    """Return every pair of row and rate, in the order of the recipe; random weights are no contestant."""
    return [(row.label, rate) for row in plan.methods if not row.random for rate in row.rates]


def survivors(scores: Scores, *, sign: int, eta: int, baseline: str) -> list[Pair]:
    """Return the pairs that go on to the next rung, in the order of `scores`.

    From the best downwards, each with the next smaller rate of its row, until ``1 / eta`` of the pairs (rounded up)
    are there; beside them the best of the baseline, if none of its pairs is. Of equals the smaller rate goes first,
    then the earlier one. What has no score leaves.

    Args:
        sign: 1 where more is better, -1 where less is.
    """
    known = {pair: score for pair, score in scores.items() if score is not None}
    order = sorted(known, key=lambda pair: (-sign * known[pair], pair[1]))
    kept: set[Pair] = set()
    for pair in order:
        if len(kept) >= math.ceil(len(scores) / eta):
            break
        kept |= _with_smaller(pair, known)
    own = next((pair for pair in order if pair[0] == baseline), None)
    if own is not None and baseline not in {label for label, _ in kept}:
        kept |= _with_smaller(own, known)
    return [pair for pair in scores if pair in kept]


def _with_smaller(pair: Pair, known: Mapping[Pair, float]) -> set[Pair]:
    label, rate = pair
    smaller = [one for one in known if one[0] == label and one[1] < rate]
    return {pair, *([max(smaller, key=lambda one: one[1])] if smaller else [])}


@dataclass(frozen=True)
class Rung:
    """One round of runs, all equally long.

    Attributes:
        steps: of the budget; a row with steps of its own has as large a share of these.
        cells: a run for each pair, with the first of the tuning seeds.
        scores: of the runs that are over.
        kept: who goes on, None while runs are left.
    """

    steps: int
    cells: Mapping[Pair, CellRecord]
    scores: Scores
    kept: tuple[Pair, ...] | None


@dataclass(frozen=True)
class Course:
    """How far the halving came: without any, all pairs have reached the last rung.

    Attributes:
        rungs: those that have begun, the last with the whole budget left out.
        pairs: those that reached the last rung, None before it.
    """

    plan: Plan
    rungs: tuple[Rung, ...]
    pairs: tuple[Pair, ...] | None

    @property
    def over(self) -> bool:
        """Whether it is known which rows stay."""
        return self.pairs is not None

    def rates(self, label: str) -> tuple[float, ...]:
        """Return the rates of a row that are still to be chosen from; all of them before any left."""
        row = self.plan.method(label)
        if row.random or not self.rungs:
            return row.rates
        last = self.rungs[-1]
        alive = last.cells if last.kept is None else last.kept
        return tuple(rate for rate in row.rates if (label, rate) in alive)

    @property
    def labels(self) -> tuple[str, ...]:
        """The rows that have not left, in the order of the recipe."""
        return tuple(row.label for row in self.plan.methods if self.rates(row.label))

    def tuning(self, label: str) -> list[CellRecord]:
        """Return the runs with the whole budget that choose a row's rate; none where it has a single one left."""
        return self.plan.tuning(label, self.rates(label)) if self.over else []

    def cells(self) -> list[CellRecord]:
        """Return all runs that choose, as far as they are known."""
        short = [cell for rung in self.rungs for cell in rung.cells.values()]
        return short + [cell for label in self.labels for cell in self.tuning(label)]

    def most(self) -> list[CellRecord]:
        """Return all runs that choose, those that are not known yet as if nobody left."""
        if self.over:
            return self.cells()
        alive = list(self.rungs[-1].cells)
        later = [_cell(self.plan, pair, steps) for steps in lengths(self.plan)[len(self.rungs) :] for pair in alive]
        whole = [cell for label in self.labels for cell in self.plan.tuning(label, self.rates(label))]
        return [*self.cells(), *later, *whole]


def course(plan: Plan, runs: Sequence[Run]) -> Course:
    """Return how far the halving came, from the records alone.

    Args:
        runs: of the comparison; those that are no rung's are passed over.
    """
    over = {_cell_of(run): run for run in runs if run.role == TUNING}
    rungs: list[Rung] = []
    pairs: tuple[Pair, ...] = tuple(pairs_of(plan))
    for steps in lengths(plan):
        cells = {pair: _cell(plan, pair, steps) for pair in pairs}
        found = {pair: over.get(cell) for pair, cell in cells.items()}
        rungs.append(rung := _rung(plan, steps, cells, found))
        if rung.kept is None:
            return Course(plan, tuple(rungs), None)
        if not (pairs := rung.kept):
            break
    return Course(plan, tuple(rungs), pairs)


def _rung(plan: Plan, steps: int, cells: Mapping[Pair, CellRecord], found: Mapping[Pair, Run | None]) -> Rung:
    by, budget = plan.compare.choose_by, plan.compare.budget
    assert by is not None
    assert budget is not None
    assert budget.halving is not None
    # One that was done when another task chose has no score here, and is to be done again.
    ended = {pair: run for pair, run in found.items() if run is not None and (run.failed or _has(run, by.task))}
    scores = {pair: ended[pair].value(by.task, by.metric) for pair in cells if pair in ended}
    kept = None
    if len(scores) == len(cells):
        kept = tuple(survivors(scores, sign=plan.sign, eta=budget.halving.eta, baseline=plan.baseline))
    return Rung(steps, cells, scores, kept)


def _cell_of(run: Run) -> CellRecord:
    return CellRecord(label=run.label, rate=run.rate, seed=run.seed, role=TUNING, steps=run.steps)


def _has(run: Run, task: str) -> bool:
    return run.done and run.result is not None and task in run.result.tasks


def _cell(plan: Plan, pair: Pair, steps: int) -> CellRecord:
    label, rate = pair
    return CellRecord(
        label=label, rate=rate, seed=plan.tuning_seeds[0], role=TUNING, steps=own_steps(plan, label, steps)
    )


def short_cells(plan: Plan) -> Iterator[CellRecord]:
    """Yield every run that a rung could have: those that there are tell which."""
    yield from (_cell(plan, pair, steps) for steps in lengths(plan) for pair in pairs_of(plan))
