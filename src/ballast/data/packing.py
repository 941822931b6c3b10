"""Columns that hold one value per token: joined by row digest, carried through packing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ballast.errors import BallastError

if TYPE_CHECKING:
    from typing import TypeVar

    from datasets import Dataset, IterableDataset

    Rows = TypeVar("Rows", Dataset, IterableDataset)

    from ballast.data.options import PrepareOptions

STREAMED = 32
"""Rows of a stream that are looked up at once."""
Lookup = Callable[[str], Mapping[str, np.ndarray]]


def align(values_N: np.ndarray, labels_T: Sequence[int]) -> np.ndarray:
    """Spread the values of a row's trained tokens over its positions; NaN elsewhere.

    Shapes: ``values_N`` one value per trained token in order, ``labels_T`` the row's labels; returns float32 ``[T]``
    whose entry t belongs to the target ``labels_T[t]``. Position 0 is never trained: nothing predicts it.

    Raises BallastError when the counts differ.
    """
    trained = np.asarray(labels_T) != -100
    trained[:1] = False
    if len(values_N) != int(trained.sum()):
        raise BallastError(f"{len(values_N)} values for a row of {int(trained.sum())} trained tokens")
    column = np.full(len(trained), np.nan, dtype=np.float32)
    column[trained] = values_N
    return column


def attach(dataset: Rows, lookup: Lookup, fields: Sequence[str]) -> Rows:
    """Add one float32 list column per field, aligned with ``labels``, found by row digest.

    Those of a stream are looked up when its rows are read.

    ``lookup(digest)`` returns ``{field: float32 [trained tokens of the row]}``. NaN marks untrained positions.

    Raises BallastError when the rows have no digest, a column of that name is there, or a count differs.
    """
    from datasets import Features, IterableDataset, List, Value

    if "digest" not in dataset.column_names:
        raise BallastError("the rows have no 'digest' column: run ballast.data.prepare before attaching cached columns")
    taken = sorted(set(fields) & set(dataset.column_names))
    if taken:
        raise BallastError(f"the rows already have a column {taken[0]!r}; remove it before attaching the cached one")

    def join(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {field: [] for field in fields}
        for row, digest, labels in zip(indices, batch["digest"], batch["labels"], strict=True):
            found = lookup(digest)
            for field in fields:
                try:
                    columns[field].append(align(found[field], labels))
                except KeyError:
                    raise BallastError(f"row {row + 1} (digest {digest}): the cache has no field {field!r}") from None
                except BallastError as error:
                    raise BallastError(f"row {row + 1} (digest {digest}), field {field!r}: {error}") from None
        return columns

    features = Features({**dataset.features, **{field: List(Value("float32")) for field in fields}})
    if isinstance(dataset, IterableDataset):
        return dataset.map(join, batched=True, batch_size=STREAMED, with_indices=True, features=features)
    # The function closes over an open cache, which has no stable hash: name the result afresh and keep no copy of it.
    return dataset.map(
        join,
        batched=True,
        with_indices=True,
        features=features,
        new_fingerprint=_fresh_fingerprint(),
        load_from_cache_file=False,
        desc="Attaching " + ", ".join(fields),
    )


def _fresh_fingerprint() -> str:
    import uuid

    return uuid.uuid4().hex[:16]


def pack(dataset: Dataset, options: PrepareOptions, *, own: Sequence[str] = ()) -> Dataset:
    """Lay prepared rows out for training: shuffled and packed as the options say, by TRL's own packing.

    Every list column (token ids, labels, cached ones, the data's own) is packed alike; ``seq_lengths`` tells the rows
    apart.
    Without packing the rows are only shuffled, if asked.

    Raises BallastError for ``packing_strategy="wrapped"`` with other columns than the data's ``own``: it cuts rows, so
    a token would lose the context that its cached value was computed in.
    """
    from ballast.data.trl import trl_pack

    if options.shuffle_dataset:
        dataset = dataset.shuffle(seed=options.seed)
    if not options.packing:
        return dataset
    columns = [name for name in dataset.column_names if name != "digest"]
    extra = [name for name in columns if name not in ("input_ids", "labels", *own)]
    if options.packing_strategy == "wrapped" and extra:
        raise BallastError(
            f"packing_strategy='wrapped' cuts rows, so the cached column {extra[0]!r} would belong to other contexts; "
            "use 'bfd' or 'bfd_split'"
        )
    if options.max_length is None:
        raise BallastError("packing=True needs max_length: it is the length of a packed row")
    # Positions start again with every row of a pack, but where rows are cut to fill it.
    length = options.limit if options.packing_strategy == "wrapped" else options.max_length
    assert length is not None
    packed = trl_pack(dataset.select_columns(columns), length, options.packing_strategy, options.num_proc)
    return packed.shuffle(seed=options.seed) if options.shuffle_dataset else packed
