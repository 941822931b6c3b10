"""The name of a prepared row: a hash of exactly what is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

DIGEST_VERSION = "ballast-row-1"


def row_digest(input_ids: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> str:
    """Return the BLAKE2b-128 hex digest of a row's exact token ids and labels.

    Shapes: ``input_ids`` and ``labels`` are ``[T]`` integers. The same tokens with other labels are another row, since
    a per-token cache holds one value for each trained token.
    """
    hasher = hashlib.blake2b(DIGEST_VERSION.encode(), digest_size=16)
    # Little-endian int64 with a leading length: the digest is the same on every machine and has one reading only.
    for values in (np.asarray([len(input_ids)]), np.asarray(input_ids), np.asarray(labels)):
        hasher.update(values.astype("<i8").tobytes())
    return hasher.hexdigest()
