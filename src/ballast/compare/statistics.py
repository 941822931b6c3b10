"""Intervals and tests for runs that are paired by seed and by item; numpy and scipy, no torch.

Two things vary: the seed of training and the items that are asked. An interval over seeds is for these items, one over
items is for these runs; `over_both` is for other seeds and other items.

Letters: S seeds, I items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ballast.errors import BallastError
from ballast.evaluation.metrics import LEVEL, Estimate, ratio

Array = np.ndarray
POWER = 0.8
"""Chance to find a difference that is there, in plans."""


def t_bounds(values_S: Array, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """Return mean, low and high of Student's t interval along the last axis; NaN bounds for fewer than two values."""
    from scipy.stats import t

    values_S = np.asarray(values_S, dtype=np.float64)
    n = values_S.shape[-1]
    centre = values_S.mean(axis=-1)
    if n < 2:
        return centre, np.full_like(centre, np.nan), np.full_like(centre, np.nan)
    half = t.ppf(0.5 + level / 2, n - 1) * values_S.std(axis=-1, ddof=1) / math.sqrt(n)
    return centre, centre - half, centre + half


def over_seeds(values_S: Sequence[float] | Array, *, level: float = LEVEL) -> Estimate:
    """Return the mean over seeds with a t interval; of paired differences it is the paired interval.

    The items count as given: it says how far other seeds would move the mean on these items. No interval for one seed,
    nor where all values are equal.
    """
    values_S = np.asarray(values_S, dtype=np.float64)
    n = len(values_S)
    if n == 0:
        return Estimate(math.nan, 0, None, None, level, "none")
    if n == 1 or not _varies(values_S):
        return Estimate(float(values_S.mean()), n, None, None, level, "none")
    centre, low, high = t_bounds(values_S, level)
    return Estimate(float(centre), n, float(low), float(high), level, "t-seeds")


def over_items(values_SI: Array, *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Return the mean with a bootstrap interval over items, seeds averaged first; for these runs, on other items.

    Of differences between two methods on the same seeds and items it is paired by item.
    """
    values_I = _matrix(values_SI).mean(axis=0)
    return ratio(values_I, np.ones_like(values_I), level=level, seed=seed)


def both_bounds(values_SI: Array, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """Return mean, low and high for other seeds and other items, along the last two axes.

    Seeds and items are crossed random effects: the variance of the mean is (MS_S + MS_I − MS_SI) / (S·I) of the two-way
    table's mean squares, with the degrees of freedom of Satterthwaite (1946). With few seeds and items the sum comes
    near 0 by chance, and the degrees of freedom with it, so that an interval has no bound: it counts as no less than
    MS_S and MS_I, with no less than min(S, I) − 1 degrees of freedom. Where items vary no more than the rest does, it
    is the t interval over seeds.
    """
    from scipy.stats import t

    values_SI = np.asarray(values_SI, dtype=np.float64)
    seeds, items = values_SI.shape[-2:]
    centre = values_SI.mean(axis=(-1, -2))
    of_seeds, of_items, of_rest = _mean_squares(values_SI)
    by_seeds = of_items <= of_rest
    total = np.where(by_seeds, of_seeds, np.maximum(of_seeds + of_items - of_rest, np.maximum(of_seeds, of_items)))
    spread = of_seeds**2 / (seeds - 1) + of_items**2 / (items - 1) + of_rest**2 / ((seeds - 1) * (items - 1))
    estimated = np.maximum(total**2 / np.where(spread > 0, spread, 1.0), min(seeds, items) - 1)
    half = t.ppf(0.5 + level / 2, np.where(by_seeds, seeds - 1, estimated)) * np.sqrt(total / (seeds * items))
    return centre, centre - half, centre + half


def over_both(values_SI: Array, *, level: float = LEVEL) -> Estimate:
    """Return the mean with an interval for other seeds and other items, that of `both_bounds`; `n` counts seeds."""
    values_SI = _matrix(values_SI)
    seeds, items = values_SI.shape
    centre = float(values_SI.mean())
    if seeds < 2 or items < 2 or not _varies(values_SI):
        return Estimate(centre, seeds, None, None, level, "none")
    _, of_items, of_rest = _mean_squares(values_SI)
    if of_items <= of_rest:
        return over_seeds(values_SI.mean(axis=1), level=level)
    _, low, high = both_bounds(values_SI, level)
    return Estimate(centre, seeds, float(low), float(high), level, "t-seeds-and-items")


def _mean_squares(values_SI: Array) -> tuple[Array, Array, Array]:
    """Return the mean squares of seeds, items and their interaction, along the last two axes."""
    seeds, items = values_SI.shape[-2:]
    centre = values_SI.mean(axis=(-1, -2), keepdims=True)
    by_seed, by_item = values_SI.mean(axis=-1, keepdims=True), values_SI.mean(axis=-2, keepdims=True)
    of_seeds = items * np.square(by_seed - centre).sum(axis=(-1, -2)) / (seeds - 1)
    of_items = seeds * np.square(by_item - centre).sum(axis=(-1, -2)) / (items - 1)
    rest = np.square(values_SI - by_seed - by_item + centre).sum(axis=(-1, -2))
    return of_seeds, of_items, rest / ((seeds - 1) * (items - 1))


def paired_p(differences_S: Sequence[float] | Array) -> float | None:
    """Return the two-sided p-value of the paired t test that the mean difference is zero.

    None for one seed, and where all differences are equal but not zero: no spread, nothing to test with.
    """
    differences_S = np.asarray(differences_S, dtype=np.float64)
    if len(differences_S) < 2:
        return None
    if not _varies(differences_S):
        return None if abs(differences_S[0]) > 1e-12 else 1.0
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences_S, 0.0).pvalue)


def seeds_needed(
    differences_S: Sequence[float] | Array, *, power: float = POWER, level: float = LEVEL, most: int = 1000
) -> int | None:
    """Return how many seeds a paired t test needs to find a difference of this size with probability `power`.

    Mean and spread are taken for the true ones, which of few seeds is a rough guess. None where there is no difference
    or no spread, and where more than `most` are needed.
    """
    differences_S = np.asarray(differences_S, dtype=np.float64)
    if len(differences_S) < 2 or not _varies(differences_S):
        return None
    from scipy.stats import nct, t

    size = abs(float(differences_S.mean())) / float(differences_S.std(ddof=1))
    seeds_N = np.arange(2, most + 1)
    critical_N, centre_N = t.ppf(0.5 + level / 2, seeds_N - 1), size * np.sqrt(seeds_N)
    found_N = nct.sf(critical_N, seeds_N - 1, centre_N) + nct.cdf(-critical_N, seeds_N - 1, centre_N)
    enough = np.flatnonzero(found_N >= power)
    return int(seeds_N[enough[0]]) if len(enough) else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for their number by Holm's (1979) step-down; None stays None and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = largest
    return adjusted


def _matrix(values_SI: Array) -> Array:
    values_SI = np.asarray(values_SI, dtype=np.float64)
    if values_SI.ndim != 2 or not values_SI.size:
        raise BallastError(f"values of shape {values_SI.shape}: give one row per seed and one column per item")
    return values_SI


def _varies(values: Array) -> bool:
    """Whether values differ by more than the rounding of adding them up."""
    return float(np.ptp(values)) > 1e-12 * max(1.0, float(np.abs(values).max()))
