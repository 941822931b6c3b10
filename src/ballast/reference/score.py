"""Scoring rows under a frozen reference, once, into a cache."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ballast.batching import batches
from ballast.data import row_digest
from ballast.errors import BallastError
from ballast.head import token_stats, trained_positions
from ballast.limits import check_length, context_length
from ballast.progress import on_stderr
from ballast.ranks import ALONE, Ranks
from ballast.reference.cache import ReferenceCache
from ballast.reference.key import CacheKey, weights_dtype
from ballast.reference.providers import AsItStands, LiveReference
from ballast.reference.writer import CacheWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch
    from datasets import Dataset
    from torch import Tensor

    from ballast.protocols import Model

COLUMNS = ("input_ids", "labels", "digest")
IGNORED = -100


@dataclass(frozen=True)
class _Row:
    index: int
    digest: str
    ids: np.ndarray
    labels: np.ndarray

    @property
    def trained(self) -> int:
        return int((self.labels[1:] != IGNORED).sum())


def score_rows(
    model: Model | LiveReference,
    dataset: Dataset | Iterable[Mapping[str, Any]],
    path: str | Path,
    key: CacheKey,
    *,
    tokens_per_batch: int = 8192,
    device: torch.device | str | None = None,
    progress: bool = True,
    wait: float | None = None,
    shard_tokens: int = 2_000_000,
    shard_seconds: float = 60.0,
    ranks: Ranks = ALONE,
) -> ReferenceCache:
    """Score the rows that a cache does not have yet, and return the cache.

    Under the cache's lock, longest rows first: what does not fit into memory then fails at once and not after hours,
    and the time left is not underestimated. The model's modes and gradients flags are left as they were.

    Args:
        model: the reference, in the state to be scored, or a `LiveReference` such as `AdapterOffReference`.
        dataset: prepared rows with ``input_ids``, ``labels`` and ``digest``.
        path: the cache's folder.
        key: what the values depend on (`CacheKey.of`); a dtype other than the weights' runs under autocast.
        tokens_per_batch: padded tokens of one forward; a longer row makes a batch of its own.
        device: where to move the model before scoring; None leaves it where it is.
        progress: show a bar, or lines where stderr is no terminal.
        wait: seconds to wait while another process writes to this cache; None waits for it to end.
        shard_tokens: trained tokens after which values are written to disk.
        shard_seconds: seconds after which values are written to disk.
        ranks: who shares the batches; all call this with the same rows, key and a model of their own.

    Raises:
        BallastError: for a missing column, a row whose digest is not its own, a token outside the vocabulary, values
            that are not finite, a cache of something else, or one that another process holds for too long.
    """
    reference = model if isinstance(model, LiveReference) else AsItStands(model)
    if device is not None:
        reference.model.to(device)
    if tokens_per_batch < 1:
        raise BallastError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
    rows = _table(dataset)
    digests, context = rows["digest"], context_length(reference.model)
    for index, length in enumerate(rows["length"]):
        check_length(f"row {index}", length, context)
    with CacheWriter(
        path, key, wait=wait, shard_tokens=shard_tokens, shard_seconds=shard_seconds, ranks=ranks
    ) as writer:
        wanted = set(writer.missing(digests))
        first = {digest: index for index, digest in reversed(list(enumerate(digests))) if digest in wanted}
        places, lengths = sorted(first.values()), rows["length"]
        cut = batches([lengths[index] for index in places], tokens_per_batch)
        own = ranks.share([[places[one] for one in batch] for batch in cut])
        done, total = 0, sum(lengths[index] for batch in own for index in batch)
        with on_stderr("tokens", show=progress) as tell:
            for batch in own:
                loaded = _load(rows, batch)
                for row, values in zip(loaded, _score(reference, loaded, key), strict=True):
                    writer.add(row.digest, values)
                done += sum(lengths[index] for index in batch)
                tell("scoring", done, total)
    return ReferenceCache.open(path, key, verify=False) if digests else _nothing(path)


def _nothing(path: str | Path) -> ReferenceCache:
    raise BallastError(f"{path}: the data set has no rows, so there is nothing to score: check `data` and its filters")


def _table(dataset: Dataset | Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return digests and lengths as lists, and the two token columns for access by row."""
    import datasets
    import pyarrow.compute as pc

    rows = dataset if isinstance(dataset, datasets.Dataset) else datasets.Dataset.from_list(list(dataset))
    for name in COLUMNS:
        if len(rows) and name not in rows.column_names:
            raise BallastError(f"the data set has no column {name!r}: prepare it with `ballast.data.prepare` first")
    if not len(rows):
        return {"digest": [], "length": [], "rows": rows}
    arrow = rows.select_columns(list(COLUMNS)).with_format("arrow")
    digests: list[str] = []
    lengths: list[int] = []
    for part in arrow.iter(batch_size=10_000):
        digests += part["digest"].to_pylist()
        lengths += pc.list_value_length(part["input_ids"]).to_pylist()
    return {"digest": digests, "length": lengths, "rows": arrow}


def _load(table: dict[str, Any], batch: list[int]) -> list[_Row]:
    part = table["rows"][batch]
    columns = [_ragged(part[name]) for name in ("input_ids", "labels")]
    rows = [
        _Row(index, table["digest"][index], ids, labels) for index, ids, labels in zip(batch, *columns, strict=True)
    ]
    for row in rows:
        _check_row(row)
    return rows


def _ragged(column: Any) -> list[np.ndarray]:
    lists = column.combine_chunks()
    ends = np.cumsum(lists.value_lengths().to_numpy())
    return np.split(lists.flatten().to_numpy(), ends[:-1])


def _check_row(row: _Row) -> None:
    index, digest, ids, labels = row.index, row.digest, row.ids, row.labels
    if len(ids) != len(labels):
        raise BallastError(f"row {index}: {len(ids)} tokens but {len(labels)} labels: prepare the rows again")
    if row_digest(ids, labels) != digest:
        raise BallastError(
            f"row {index}: its digest {digest} is not that of its tokens and labels, so its values would be found by "
            "no one or by another row: prepare the rows again after changing them"
        )


def _score(reference: LiveReference, rows: Sequence[_Row], key: CacheKey) -> list[dict[str, np.ndarray]]:
    """Return the statistics of each row, float32 and in the order of its trained tokens."""
    import torch

    counts = [row.trained for row in rows]
    if not sum(counts):
        return [{name: np.zeros(0, np.float32) for name in key.fields} for _ in rows]
    head = reference.head
    _check_ids(rows, len(head.weight))
    device = head.weight.device
    inputs, labels = _padded(rows, device)
    names = tuple(name.removeprefix("ref_") for name in key.fields)
    with torch.no_grad(), _autocast(reference, key, device):
        hidden = reference.hidden(**inputs)
        mask, targets = trained_positions(labels)
        # Nothing is differentiated, so chunks cost no second product and leave the logits in the cache.
        stats = token_stats(hidden[:, :-1][mask], head, targets, fields=names, backend="chunked")
        values = torch.stack([stats.require(name).float() for name in names]).cpu().numpy()
    _check_finite(rows, counts, values, key.fields)
    parts = np.split(values, np.cumsum(counts)[:-1], axis=1)
    return [dict(zip(key.fields, part, strict=True)) for part in parts]


def _padded(rows: Sequence[_Row], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    import torch

    width = max(len(row.ids) for row in rows)
    ids, labels = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), IGNORED, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)], labels[place, : len(row.ids)], mask[place, : len(row.ids)] = row.ids, row.labels, 1
    inputs = {"input_ids": torch.from_numpy(ids).to(device)}
    # Without padding there is nothing to mask, and attention takes its faster causal path.
    if not mask.all():
        inputs["attention_mask"] = torch.from_numpy(mask).to(device)
    return inputs, torch.from_numpy(labels).to(device)


def _autocast(reference: LiveReference, key: CacheKey, device: torch.device) -> AbstractContextManager[Any]:
    import torch

    dtype = getattr(torch, key.dtype)
    if dtype == weights_dtype(reference.model):
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _check_ids(rows: Sequence[_Row], vocabulary: int) -> None:
    for row in rows:
        if not 0 <= int(row.ids.min()) <= int(row.ids.max()) < vocabulary:
            raise BallastError(
                f"row {row.index}: a token id lies outside the model's vocabulary of {vocabulary}: the rows were "
                "prepared with another tokenizer; use the model's own"
            )


def _check_finite(rows: Sequence[_Row], counts: Sequence[int], values: np.ndarray, fields: Sequence[str]) -> None:
    if np.isfinite(values).all():
        return
    field, token = (int(place[0]) for place in np.nonzero(~np.isfinite(values)))
    row = rows[int(np.searchsorted(np.cumsum(counts), token, side="right"))]
    raise BallastError(
        f"row {row.index} (digest {row.digest}): {fields[field]} is {values[field, token]}, which would spoil every "
        "step with this row: check the reference's weights and dtype (float16 overflows; use bfloat16 or float32)"
    )
