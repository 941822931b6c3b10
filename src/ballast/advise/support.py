"""How much of the demonstrations the frozen base model supports: distributions of q(y_t) and u_t."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ballast.advise.suspects import contradicted
from ballast.advise.tokens import ScoredTokens

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
PROBABILITIES = (0.1, 0.01)
THRESHOLD = 0.5


@dataclass(frozen=True)
class Support:
    """What the base model makes of the demonstrations; shares are of trained tokens.

    Attributes:
        probability, mass: quantiles of q(y_t) and of u_t by level.
        mean_probability: mean of q(y_t).
        nll, entropy: mean −log q(y_t) and mean entropy of the base model, in nats per token.
        below_mass: share with u_t below `threshold`, by the ties of `prift-mass`.
        below_probability: share with q(y_t) below each of `PROBABILITIES`.
        tied: share of tokens for which the two ways to count ties fall on different sides of the threshold.
        contradicted: share of tokens that the base model confidently expects otherwise; see `contradicted`.
        contradicted_loss: share of Σ −log q(y_t) on these tokens.
        typical_row: of the median row, the share of its tokens with u_t at or above the threshold (``supported``), the
            share contradicted, and its mean q(y_t).
    """

    rows: int
    tokens: int
    threshold: float
    probability: dict[float, float]
    mass: dict[float, float]
    mean_probability: float
    nll: float
    entropy: float
    below_mass: float
    below_probability: dict[float, float]
    tied: float
    contradicted: float
    contradicted_loss: float
    typical_row: dict[str, float]


def support(tokens: ScoredTokens, *, threshold: float = THRESHOLD, ties: str = "strict") -> Support:
    """Return the distributions over all trained tokens and of the median row.

    Args:
        threshold, ties: those of `prift-mass`.
    """
    q, inclusive = tokens.probability, tokens.mass + tokens.tied
    mass = inclusive if ties == "inclusive" else tokens.mass
    against = contradicted(tokens)
    by_row = {"supported": mass >= threshold, "contradicted": against, "probability": q}
    return Support(
        rows=tokens.rows,
        tokens=len(q),
        threshold=threshold,
        probability=_quantiles(q),
        mass=_quantiles(mass),
        mean_probability=float(q.mean()),
        nll=float(-tokens.logprob.mean()),
        entropy=float(tokens.entropy.mean()),
        below_mass=float((mass < threshold).mean()),
        below_probability={level: float((q < level).mean()) for level in PROBABILITIES},
        tied=float(((tokens.mass < threshold) & (inclusive >= threshold)).mean()),
        contradicted=float(against.mean()),
        contradicted_loss=abs(float(tokens.logprob[against].sum() / min(tokens.logprob.sum(), -1e-38))),
        typical_row={name: float(np.median(tokens.row_means(values))) for name, values in by_row.items()},
    )


def _quantiles(values: np.ndarray) -> dict[float, float]:
    return dict(zip(QUANTILES, (float(one) for one in np.quantile(values, QUANTILES)), strict=True))
