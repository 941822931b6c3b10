"""Shard files of a reference cache: values of whole rows, with their own checksum, written in one piece."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ballast.errors import BallastError
from ballast.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DIGEST_BYTES = 16
REMEDY = "delete that file and run `ballast score` again"
_HEADER_KEY, _HEADER_CONTENT = "ballast_key", "ballast_content"


@dataclass(frozen=True)
class Shard:
    """One line of the manifest."""

    file: str
    rows: int
    tokens: int
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return the line as the manifest holds it."""
        return asdict(self)


def write_shard(
    folder: Path, name: str, key_hex: str, digests: Sequence[str], values: Sequence[Mapping[str, np.ndarray]]
) -> Shard:
    """Write the rows to ``folder/name`` by an atomic rename and return the manifest's line."""
    from safetensors.numpy import save

    lengths = np.array([len(next(iter(row.values()))) for row in values], dtype=np.int64)
    tensors = {
        field: np.concatenate([np.asarray(row[field], dtype=np.float32) for row in values]) for field in values[0]
    }
    tensors["lengths"] = lengths
    tensors["digests"] = np.frombuffer(bytes.fromhex("".join(digests)), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    content = save(tensors, metadata={_HEADER_KEY: key_hex, _HEADER_CONTENT: _content_hash(tensors)})
    write_atomically(folder / name, content)
    return Shard(name, len(digests), int(lengths.sum()), len(content), hashlib.sha256(content).hexdigest())


def verify_shard(folder: Path, shard: Shard) -> None:
    """Check a shard's size and checksum against the manifest.

    Raises:
        BallastError: if the file is missing, of another size, or of other content.
    """
    path = folder / shard.file
    try:
        size = path.stat().st_size
    except OSError:
        raise BallastError(
            f"{path}: listed in manifest.json but missing, so its {shard.rows} rows would have no reference values: "
            "restore the file, or run `ballast score` again (only those rows are scored)"
        ) from None
    if size != shard.bytes:
        kind = "truncated" if size < shard.bytes else "longer than written"
        raise BallastError(f"{path}: {kind} ({size} bytes, {shard.bytes} expected); {REMEDY}")
    if file_hash(path) != shard.sha256:
        raise BallastError(f"{path}: its content is not what was written, so wrong values would be used; {REMEDY}")


def file_hash(path: Path) -> str:
    """Return the sha256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)


def _slow(file: BinaryIO) -> str:
    total = hashlib.sha256()
    while block := file.read(1 << 20):
        total.update(block)
    return total.hexdigest()


def adopt_shard(folder: Path, name: str, key_hex: str, fields: Sequence[str]) -> Shard | None:
    """Return the line of a finished shard that no manifest lists, or None if it is not whole or has another key.

    A writer that was killed between a shard and the manifest leaves such a file; its own checksum vouches for it.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    path = folder / name
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError):
        return None
    if header.get(_HEADER_KEY) != key_hex or header.get(_HEADER_CONTENT) != _content_hash(tensors):
        return None
    if not {*fields, "lengths", "digests"} <= set(tensors):
        return None
    rows, tokens = len(tensors["lengths"]), int(tensors["lengths"].sum())
    return Shard(name, rows, tokens, path.stat().st_size, file_hash(path))


def _content_hash(tensors: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(json.dumps([name, list(tensors[name].shape), str(tensors[name].dtype)]).encode())
        total.update(np.ascontiguousarray(tensors[name]).tobytes())
    return total.hexdigest()
