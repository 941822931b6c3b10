"""Scores with their uncertainty: every estimate carries the number of items and an interval.

Torch-free; scipy is loaded on use.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ballast.errors import BallastError

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value, the number of items behind it, and a confidence interval.

    Attributes:
        value: the estimate; NaN when there is no item.
        n: number of independent items (rows, not samples or tokens).
        low, high: bounds of the interval, or None where the data allow none (one item; no spread outside [0, 1]).
        level: confidence level.
        method: ``wilson``, ``bootstrap-bca``, ``bootstrap-percentile`` or ``none``.
    """

    value: float
    n: int
    low: float | None
    high: float | None
    level: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; NaN and infinity become None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        interval = "no interval" if self.low is None else f"{self.low:.4g} to {self.high:.4g}"
        return f"{self.value:.4g} ({interval}, n = {self.n})"


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the probability that at least one of `k` samples drawn from `n` without replacement is correct.

    ``1 − C(n − correct, k) / C(n, k)``, as a product of ratios so that no binomial overflows; unbiased for the
    probability that one of k fresh samples is correct. Source: Chen et al. 2021 (arXiv 2107.03374), eq. 1.

    Raises:
        BallastError: unless 1 ≤ k ≤ n and 0 ≤ correct ≤ n.

    >>> pass_at_k(4, 2, 1), round(pass_at_k(4, 2, 2), 4)
    (0.5, 0.8333)
    """
    if not 1 <= k <= n:
        raise BallastError(f"pass@{k} from {n} samples: k must lie between 1 and the number of samples")
    if not 0 <= correct <= n:
        raise BallastError(f"{correct} correct of {n} samples: the count must lie between 0 and the number of samples")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def majority(read: Sequence[str | None], scores: Sequence[float]) -> float:
    """Return the score of the answer that most samples give, the earlier one's where several have as many votes.

    Args:
        read: the answer read off each sample; None, which has no vote, where there is none.
        scores: of the same samples. Where none has an answer, the first sample's score counts.

    >>> majority(["4", None, "5", "4"], [0, 0, 1, 0])
    0
    """
    votes = Counter(answer for answer in read if answer is not None)
    winner = max(votes, key=votes.__getitem__, default=None)
    return scores[read.index(winner)]


def maj_at_k(read: Sequence[str | None], scores: Sequence[float], k: int) -> float:
    """Return the mean score of the vote of k samples, over the samples taken k by k in their order.

    What is left over when they do not divide is not used. Unbiased for the vote of k fresh samples; maj@1 is their mean
    score. Source: self-consistency, Wang et al. 2022 (arXiv 2203.11171); voting in ReFT (arXiv 2401.08967).

    Raises:
        BallastError: unless 1 ≤ k ≤ the number of samples.
    """
    if not 1 <= k <= len(scores):
        raise BallastError(f"maj@{k} from {len(scores)} samples: k must lie between 1 and the number of samples")
    starts = range(0, len(scores) - k + 1, k)
    return sum(majority(read[i : i + k], scores[i : i + k]) for i in starts) / len(starts)


def proportion(successes: int, n: int, *, level: float = LEVEL) -> Estimate:
    """Return successes / n with Wilson's score interval (Wilson 1927, through `scipy.stats.binomtest`)."""
    if n == 0:
        return Estimate(math.nan, 0, None, None, level, "none")
    from scipy.stats import binomtest

    interval = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Estimate(successes / n, n, float(interval.low), float(interval.high), level, "wilson")


def mean(values: Sequence[float], *, level: float = LEVEL, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Return the mean over items with a bootstrap interval over items (scores in 0 … 1 or any other unit).

    Scores that are all 0 or 1 get Wilson's interval, which also holds where a bootstrap has nothing to resample.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) and np.isin(array, (0.0, 1.0)).all():
        return proportion(int(array.sum()), len(array), level=level)
    return ratio(array, np.ones_like(array), level=level, seed=seed, resamples=resamples)


def mean_pass_at_k(correct: Sequence[int], n: int, k: int, *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Return pass@k averaged over items, each with `correct` of `n` samples right, with an interval over items."""
    return mean([pass_at_k(n, c, k) for c in correct], level=level, seed=seed)


def ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    *,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Return Σ numerator / Σ denominator over items, e.g. nats per token, with a bootstrap interval over items.

    Bias-corrected and accelerated (Efron 1987, through `scipy.stats.bootstrap`); the plain percentile interval where
    the correction is undefined. Items, not tokens, are resampled: tokens of one text are not independent.

    Raises:
        BallastError: if the lengths differ or the denominators sum to zero.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape:
        raise BallastError(f"{top.size} numerators, {bottom.size} denominators: one of each per item")
    n = len(top)
    if n == 0:
        return Estimate(math.nan, 0, None, None, level, "none")
    if bottom.sum() == 0:
        raise BallastError("a ratio over items whose denominators are all 0: there is nothing to average")
    value = float(top.sum() / bottom.sum())
    if n == 1 or np.allclose(top * bottom.sum(), bottom * top.sum(), rtol=1e-6, atol=0):
        return Estimate(value, n, None, None, level, "none")
    for method in ("BCa", "percentile"):
        low, high = _bootstrap(top, bottom, method, level, seed, resamples)
        if math.isfinite(low) and math.isfinite(high):
            return Estimate(value, n, low, high, level, f"bootstrap-{method.lower()}")
    return Estimate(value, n, None, None, level, "none")


def _bootstrap(
    top: np.ndarray, bottom: np.ndarray, method: str, level: float, seed: int, resamples: int
) -> tuple[float, float]:
    import warnings

    from scipy.stats import bootstrap

    def statistic(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        total = b.sum(axis=axis)
        return np.divide(a.sum(axis=axis), total, out=np.full_like(total, np.nan), where=total != 0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a degenerate correction gives NaN, which the caller handles
        result = bootstrap(
            (top, bottom),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=128,  # bounds the memory of resamples × items
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def token_nll(
    nll: Sequence[float] | np.ndarray, tokens: Sequence[int] | np.ndarray, *, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Return nats per token, Σ nll / Σ tokens over texts, with an interval over texts."""
    return ratio(nll, tokens, level=level, seed=seed)


def bits_per_character(
    nll: Sequence[float] | np.ndarray, characters: Sequence[int] | np.ndarray, *, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Return bits per character, Σ nll / (ln 2 · Σ characters) over texts, with an interval over texts."""
    return ratio(np.asarray(nll, dtype=np.float64) / math.log(2), characters, level=level, seed=seed)
