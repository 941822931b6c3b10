"""Rows and tokens that the frozen base model finds far less likely than it finds the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ballast.advise.tokens import ScoredTokens

EXCESS = 3.0
"""Nats by which a token's surprisal exceeds the entropy: e³ = 20 times less likely than its typical token."""
CONFIDENT = 1.0
"""Entropy, in nats, up to which the base model counts as confident."""
DEVIATION = -3.5
"""Robust deviations from the median row below which a row is an outlier (Iglewicz and Hoaglin 1993)."""
FEWEST_ROWS = 20
"""Rows below which no row is called an outlier: the median deviation of fewer is hardly known."""
WORST = 3


@dataclass(frozen=True)
class SuspectToken:
    """A token, by row from 0 and by place among the ids of its row, with its statistics under the base model."""

    row: int
    place: int
    probability: float
    mass: float
    entropy: float

    @property
    def excess(self) -> float:
        """Surprisal less entropy, in nats."""
        return float(-np.log(max(self.probability, 1e-38)) - self.entropy)


@dataclass(frozen=True)
class SuspectRow:
    """A row, from 0, far below the others: its mean q(y_t), robust deviations from the median row, worst tokens."""

    row: int
    tokens: int
    mean_probability: float
    deviation: float
    worst: tuple[SuspectToken, ...]


def contradicted(tokens: ScoredTokens) -> np.ndarray:
    """Return which tokens the base model confidently expects otherwise, ``[N]`` of bool.

    ``−log q(y_t) − H_t ≥ EXCESS`` and ``H_t ≤ CONFIDENT``: unlikely where the base model is sure, and not just one of
    many tokens that it holds possible.
    """
    return (-tokens.logprob - tokens.entropy >= EXCESS) & (tokens.entropy <= CONFIDENT)


def suspects(tokens: ScoredTokens) -> list[SuspectToken]:
    """Return of every row with contradicted tokens the first one, the most surprising first.

    The first alone: what follows a wrong token is often judged by it.
    """
    places = np.flatnonzero(contradicted(tokens))
    first = places[np.unique(tokens.row[places], return_index=True)[1]] if len(places) else places
    excess = -tokens.logprob[first] - tokens.entropy[first]
    return [_token(tokens, int(index)) for index in first[np.argsort(-excess, kind="stable")]]


def outliers(tokens: ScoredTokens) -> list[SuspectRow]:
    """Return the rows whose mean q(y_t) lies far below the median row, the lowest first.

    The deviation is ``0.6745·(row − median) / median |row − median|``. None where there are fewer than `FEWEST_ROWS`
    rows, or more than half of them are alike.
    """
    means = tokens.row_means(tokens.probability)
    middle = np.median(means)
    spread = np.median(np.abs(means - middle))
    if tokens.rows < FEWEST_ROWS or spread == 0:
        return []
    deviation = 0.6745 * (means - middle) / spread
    found = np.flatnonzero(deviation < DEVIATION)
    return [
        SuspectRow(
            row=int(row),
            tokens=int((tokens.row == row).sum()),
            mean_probability=float(means[row]),
            deviation=float(deviation[row]),
            worst=_worst(tokens, int(row)),
        )
        for row in found[np.argsort(means[found], kind="stable")]
    ]


def _worst(tokens: ScoredTokens, row: int) -> tuple[SuspectToken, ...]:
    own = np.flatnonzero(tokens.row == row)
    return tuple(_token(tokens, int(index)) for index in own[np.argsort(tokens.logprob[own], kind="stable")][:WORST])


def _token(tokens: ScoredTokens, index: int) -> SuspectToken:
    return SuspectToken(
        row=int(tokens.row[index]),
        place=int(tokens.place[index]),
        probability=float(tokens.probability[index]),
        mass=float(tokens.mass[index]),
        entropy=float(tokens.entropy[index]),
    )
