"""Which rows go into one forward together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

OVERHEAD = 256
"""Padded positions that cost a CPU more than one more forward does."""


def bearable(device: str) -> int | None:
    """Return how many positions of a batch may be padding on a kind of device; None for any number.

    Where a forward waits for its launches rather than for its tokens, a few large batches are faster.
    """
    return OVERHEAD if device == "cpu" else None


def batches(lengths: Sequence[int], batch_tokens: int, *, padding: int | None = None) -> Iterator[list[int]]:
    """Yield indices of rows, longest first, so that rows × longest ≤ `batch_tokens` (or one row alone).

    Args:
        lengths: tokens of every row.
        batch_tokens: padded tokens of one batch.
        padding: positions of a batch that may be padding; None for any number.
    """
    batch: list[int] = []
    padded = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[batch[0]] if batch else lengths[index]
        padded += longest - lengths[index]
        if (len(batch) + 1) * longest > batch_tokens or (padding is not None and padded > padding):
            if batch:
                yield batch
            batch, padded = [], 0
        batch.append(index)
    if batch:
        yield batch
