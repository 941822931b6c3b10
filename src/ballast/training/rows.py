"""Which prepared rows a micro-batch holds, found again by digest: for errors, which may take their time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ballast.data import Streamed
from ballast.data.digest import row_digest
from ballast.loop import numbers

if TYPE_CHECKING:
    from ballast.data import Prepared

Place = TypeVar("Place", bound=int | str)


def rows_in(batches: Sequence[Mapping[str, Any]], prepared: Prepared | Streamed) -> str:
    """Return the numbers of the rows in some micro-batches, or their digests where they were split while packing.

    Rows of a stream are named by file and line, or by digest where these are not known any more.
    """
    if isinstance(prepared, Streamed):
        named, lost = _found(batches, prepared.place)
        return ", ".join([*named, *(f"a row with digest {digest}" for digest in lost)])
    places = {digest: place for place, digest in reversed(list(enumerate(prepared.dataset["digest"])))}
    known, unknown = _found(batches, places.get)
    parts = [numbers(sorted(known), "the prepared training rows")] if known else []
    return "; ".join([*parts, *([f"pieces with digests {', '.join(unknown)}"] if unknown else [])])


def _found(
    batches: Sequence[Mapping[str, Any]], place_of: Callable[[str], Place | None]
) -> tuple[list[Place], list[str]]:
    """Return the places of the rows, and the digests of those that have none, each once."""
    known: dict[Place, None] = {}
    unknown: dict[str, None] = {}
    for ids, labels in (one for batch in batches for one in _sequences(batch)):
        # Padding-free batches have lost the first label of each sequence.
        digests = [row_digest(ids, labels), row_digest(ids, [ids[0], *labels[1:]])]
        place = next((found for digest in digests if (found := place_of(digest)) is not None), None)
        if place is None:
            unknown[digests[0]] = None
        else:
            known[place] = None
    return list(known), list(unknown)


def _sequences(batch: Mapping[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield token ids and labels of each sequence of a padded or padding-free batch."""
    ids_BT, labels_BT = batch["input_ids"].cpu(), batch["labels"].cpu()
    if "attention_mask" in batch:
        masks_BT = batch["attention_mask"].cpu().bool()
        for ids, labels, mask in zip(ids_BT, labels_BT, masks_BT, strict=True):
            yield ids[mask].tolist(), labels[mask].tolist()
        return
    starts = torch.nonzero(batch["position_ids"].cpu().reshape(-1) == 0).reshape(-1).tolist()
    ids, labels = ids_BT.reshape(-1).tolist(), labels_BT.reshape(-1).tolist()
    for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield ids[begin:end], labels[begin:end]
