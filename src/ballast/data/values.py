"""Columns of numbers that come with the data: for each row, turn or token, laid out over the tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ballast.errors import BallastError, suggest

if TYPE_CHECKING:
    from datasets import Dataset

LARGEST = float(np.finfo(np.float32).max)

OWN = frozenset(["input_ids", "labels", "digest", "seq_lengths", "completion_mask", "assistant_masks", "counts"])
"""Columns that preparation writes itself."""


def check_columns(columns: Sequence[str], dataset: Dataset, name: str) -> None:
    """Refuse data without these columns, and columns that preparation would write over.

    Raises:
        BallastError: naming the first one that is missing.
    """
    for column in columns:
        if column in OWN:
            raise BallastError(
                f"{name}: the column {column!r}, which the objective reads, has a name that preparation uses itself, "
                "so its values would be lost; rename it"
            )
        if column not in dataset.column_names:
            have = ", ".join(dataset.column_names)
            raise BallastError(
                f"{name}: no column {column!r}, which the objective reads; there are: {have}"
                f"{suggest(column, dataset.column_names)}"
            )


def spread(value: Any, labels_T: Sequence[int]) -> np.ndarray:
    """Return a row's value as float32 ``[T]``, NaN where nothing is trained.

    Args:
        value: a number, or a list with one for each turn that is trained (tokens without an untrained one between), for
            each trained token, or for each token.
        labels_T: the row's labels, before truncation.

    Raises:
        BallastError: what is wrong with the value, to be read after its name.
    """
    trained = np.asarray(labels_T) != -100
    trained[:1] = False
    places = np.flatnonzero(trained)
    column = np.full(len(trained), np.nan, dtype=np.float32)
    if not isinstance(value, list):
        column[places] = _number(value)
        return column
    starts = [place for place, gap in enumerate(np.diff(places, prepend=-1)) if gap > 1 or not place]
    if len(value) == len(trained):
        column[places] = [_number(value[place]) for place in places]
    elif len(value) == len(places):
        column[places] = [_number(one) for one in value]
    elif len(value) == len(starts):
        sizes = np.diff([*starts, len(places)])
        column[places] = np.repeat([_number(one) for one in value], sizes)
    else:
        raise BallastError(
            f"has {len(value)} values; the row has {len(starts)} trained turns, {len(places)} trained tokens and "
            f"{len(trained)} tokens: give a number, or a list of one of these lengths"
        )
    return column


def renamed(dataset: Dataset, columns: Mapping[str, str]) -> Dataset:
    """Return prepared rows with these columns, ``{name: column}``, under the names that an objective gives them."""
    return dataset.rename_columns({column: name for name, column in columns.items() if name != column})


def cut(values: np.ndarray, length: int, from_end: bool) -> np.ndarray:
    """Return the values of a row's tokens that are left of it, at its start or at its end."""
    return values[len(values) - length :] if from_end else values[:length]


def _number(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < math.inf:
        raise BallastError(f"is {_shown(value)}; it must be a finite number, or a list of them")
    if abs(value) > LARGEST:
        raise BallastError(
            f"is {_shown(value)}; it would be infinite in float32, whose largest number is {LARGEST:.2g}: scale it down"
        )
    return float(value)


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value!r:.40}"
