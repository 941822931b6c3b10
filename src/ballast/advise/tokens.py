"""The trained tokens of all rows with their statistics under the frozen base model, laid end to end.

Shape: ``N`` trained tokens of all rows, in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ballast.errors import BallastError

FIELDS = {"logprob": "ref_logprob", "entropy": "ref_entropy", "mass": "ref_mass", "tied": "ref_tied"}
IGNORED = -100


@dataclass(frozen=True)
class ScoredTokens:
    """Trained tokens and their statistics under the frozen base model, in nats.

    Attributes:
        logprob, entropy, mass, tied: ``[N]`` float64, as in `TokenStats`.
        row: ``[N]``, which row a token belongs to, from 0 and never falling.
        place: ``[N]``, where it stands among all ids of its row.
        ids: the ids of every row.
        end: ``[N]`` of bool, whether generation would stop at a token; None where nobody knows.
    """

    logprob: np.ndarray
    entropy: np.ndarray
    mass: np.ndarray
    tied: np.ndarray
    row: np.ndarray
    place: np.ndarray
    ids: tuple[np.ndarray, ...]
    end: np.ndarray | None = None

    @property
    def probability(self) -> np.ndarray:
        """q of the target, ``[N]``."""
        return np.exp(self.logprob)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Trained tokens of each row, ``[rows]``."""
        return np.bincount(self.row, minlength=self.rows)

    def row_means(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of ``values [N]`` over the tokens of each row, ``[rows]``."""
        return np.bincount(self.row, values, self.rows) / np.maximum(self.lengths, 1)


def gather(
    rows: Sequence[Mapping[str, Any]], lookup: Callable[[str], Mapping[str, np.ndarray]], ends: Collection[int] = ()
) -> ScoredTokens:
    """Return the tokens of prepared rows (``input_ids``, ``labels``, ``digest``) with what the cache has of them.

    Args:
        lookup: from a row's digest to its ``ref_`` statistics, `ReferenceCache.lookup`.
        ends: ids at which generation stops.

    Raises:
        BallastError: if there is no row, or a row is not in the cache or has other tokens there.
    """
    ids, places, values = [], [], []
    for index, row in enumerate(rows):
        found = lookup(row["digest"])
        trained = np.flatnonzero(np.asarray(row["labels"])[1:] != IGNORED) + 1
        if any(len(found[name]) != len(trained) for name in FIELDS.values()):
            raise BallastError(
                f"row {index + 1}: {len(trained)} trained tokens, other in the cache; score into another"
            )
        ids.append(np.asarray(row["input_ids"]))
        places.append(trained)
        values.append(np.stack([found[name] for name in FIELDS.values()]))
    if not places or not sum(map(len, places)):
        raise BallastError("no row has a trained token, so there is nothing to advise on")
    statistics = np.concatenate(values, axis=1).astype(np.float64)
    owners = np.repeat(np.arange(len(places)), [len(place) for place in places])
    named = dict(zip(FIELDS, statistics, strict=True))
    targets = np.concatenate([own[place] for own, place in zip(ids, places, strict=True)])
    end = np.isin(targets, list(ends))
    return ScoredTokens(**named, row=owners, place=np.concatenate(places), ids=tuple(ids), end=end)
