"""Prepared rows for the tests of the reference."""

from __future__ import annotations

import numpy as np


def make_row(ids: list[int], prompt: int = 2) -> dict:
    """Return a prepared row whose first ``prompt`` tokens are not trained."""
    from ballast.data import row_digest

    labels = [-100] * prompt + ids[prompt:]
    return {"input_ids": ids, "labels": labels, "digest": row_digest(ids, labels)}


def make_rows(count: int, *, seed: int = 0, shortest: int = 4, longest: int = 24, vocabulary: int = 60):
    """Return a data set of random prepared rows of many lengths."""
    import datasets

    random = np.random.default_rng(seed)
    lengths = random.integers(shortest, longest, count)
    return datasets.Dataset.from_list([make_row(random.integers(4, vocabulary, n).tolist()) for n in lengths])


def make_key(**components):
    """Return a cache key with given components."""
    from ballast.reference import CacheKey

    return CacheKey(**{"model": "a" * 32, "dtype": "float32", "tokenizer": "b" * 32, **components})
