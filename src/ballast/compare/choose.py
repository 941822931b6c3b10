"""Which learning rate each row of a comparison is reported at, from the runs that were made to choose it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ballast.compare.plan import TUNING, Plan
from ballast.compare.statistics import over_seeds
from ballast.records.runs import Failure, Run


def choose_rate(scores: Mapping[float, Sequence[float]], sign: int) -> float:
    """Return the rate with the best mean, the smaller one of equals.

    Args:
        scores: for each rate one value per tuning seed; not empty.
        sign: 1 where more is better, -1 where less is.
    """
    means = {rate: sign * sum(values) / len(values) for rate, values in scores.items()}
    best = max(means.values())
    # Sums of the same values in another order differ in the last digit, which must not choose.
    return min(rate for rate, mean in means.items() if mean >= best - 1e-12 * max(1.0, abs(best)))


def chosen_rates(plan: Plan, runs: Sequence[Run], failures: Sequence[Failure] = ()) -> dict[str, float]:
    """Return the rate of every row whose tuning is complete; a rate with a failed run is not chosen."""
    found = {}
    for row in plan.methods:
        if len(row.rates) == 1:
            found[row.label] = row.rates[0]
            continue
        sweep = [swept(plan, row.label, rate, runs, failures) for rate in row.rates]
        if all(len(one["seeds"]) + len(one["failed"]) == len(plan.tuning_seeds) for one in sweep):
            scores = {one["rate"]: one["values"] for one in sweep if not one["failed"]}
            if scores:
                found[row.label] = choose_rate(scores, plan.sign)
    return found


def swept(plan: Plan, label: str, rate: float, runs: Iterable[Run], failures: Iterable[Failure] = ()) -> dict[str, Any]:
    """Return what the tuning runs of one row at one rate scored: ``seeds``, ``values``, ``failed`` seeds, ``score``."""
    by = plan.compare.choose_by
    assert by is not None
    values: dict[int, float | None] = {
        run.seed: run.value(by.task, by.metric)
        for run in runs
        if (run.role, run.label, run.rate) == (TUNING, label, rate) and run.seed in plan.tuning_seeds
    }
    failed = {one.seed for one in failures if (one.role, one.label, one.rate) == (TUNING, label, rate)}
    failed |= {seed for seed, value in values.items() if value is None}
    known = {seed: value for seed, value in sorted(values.items()) if value is not None}
    return {
        "rate": rate,
        "seeds": list(known),
        "values": list(known.values()),
        "failed": sorted(failed & set(plan.tuning_seeds)),
        "score": over_seeds(list(known.values())).to_dict(),
    }
