"""Reference statistics on disk, found by row digest.

A folder holds ``shard-*.safetensors`` and a ``manifest.json`` that lists them. A shard is renamed into place before the
manifest that lists it, so a reader never meets half a shard and a killed writer loses what it had not flushed.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ballast.errors import BallastError
from ballast.files import expanded, write_atomically
from ballast.reference.key import CacheKey
from ballast.reference.shards import DIGEST_BYTES, REMEDY, Shard, verify_shard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MANIFEST = "manifest.json"
FORMAT, VERSION = "ballast-reference-cache", 1
_DIGEST = f"S{DIGEST_BYTES}"
"""Numpy's text of that many bytes, which compares bytes one by one; all have the same length."""


class ReferenceCache:
    """A cache of reference statistics, open for reading.

    Values stay on disk and are memory-mapped; in memory are one digest and four numbers per row. Pickles as its path
    and content, so it may travel to worker processes.

    Attributes:
        path: the folder.
        key: what the values depend on.
        fields: names of the statistics.
        shards: the manifest's lines.
    """

    def __init__(self, path: Path, key: CacheKey, shards: Sequence[Shard], content: str) -> None:
        self.path, self.key, self.shards = path, key, tuple(shards)
        self.fields = key.fields
        self._content = content
        self._files: dict[int, dict[str, np.ndarray]] = {}
        self._load_index()

    @classmethod
    def open(cls, path: str | Path, key: CacheKey | None = None, *, verify: bool = True) -> ReferenceCache:
        """Open a cache and check every byte of it.

        Args:
            path: the folder that `score_rows` wrote.
            key: what the values must depend on; None accepts any, for inspection.
            verify: False skips the shards' checksums, where another process of the same run has checked them.

        Raises:
            BallastError: if there is no cache, it has another key, or a file of it is damaged.
        """
        folder = Path(expanded(str(path)))
        written, shards, content = read_manifest(folder)
        if key is not None:
            check_key(folder, key, written)
        if verify:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda shard: verify_shard(folder, shard), shards))
        return cls(folder, written, shards, content)

    def lookup(self, digest: str) -> dict[str, np.ndarray]:
        """Return a row's statistics, each float32 with one value per trained token in the order of the labels.

        Raises:
            BallastError: if the row was not scored.
        """
        row = self._row(digest)
        if row is None:
            raise BallastError(
                f"{self.path}: no values for row {digest}: the row's tokens or labels are not those that were scored; "
                "run `ballast score` with this data, template and maximum length (only missing rows are scored)"
            )
        shard, start = int(self._shard[row]), int(self._start[row])
        stop = start + int(self._length[row])
        file = self._open_shard(shard)
        return {name: file[name][start:stop].copy() for name in self.fields}

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Return the digests that are not in the cache, each once, in their order."""
        return [digest for digest in dict.fromkeys(digests) if digest not in self]

    def __contains__(self, digest: str) -> bool:
        return self._row(digest) is not None

    def __len__(self) -> int:
        return len(self._rows)

    def _row(self, digest: str) -> int | None:
        """Return the place of a row among those of all shards, the first of equal ones."""
        wanted = _key_bytes(digest)
        if len(wanted) != DIGEST_BYTES:
            return None
        place = int(self._digests.searchsorted(wanted))
        return int(self._rows[place]) if self._digests[place : place + 1].tobytes() == wanted else None

    @property
    def tokens(self) -> int:
        """Number of trained tokens with values."""
        return sum(shard.tokens for shard in self.shards)

    def __repr__(self) -> str:
        return f"ReferenceCache({str(self.path)!r}, rows={len(self)}, tokens={self.tokens})"

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps do not travel, and a hash of this state (as `datasets` takes) must change with the content only.
        return {"path": str(self.path), "content": self._content}

    def __setstate__(self, state: dict[str, Any]) -> None:
        folder = Path(state["path"])
        key, shards, content = read_manifest(folder)
        if content != state["content"]:
            raise BallastError(f"{folder}: the cache changed while it was in use: start again")
        self.__init__(folder, key, shards, content)  # type: ignore[misc]

    def _load_index(self) -> None:
        starts, lengths, digests = [], [], [np.zeros((0, DIGEST_BYTES), dtype=np.uint8)]
        for index, shard in enumerate(self.shards):
            tensors = self._open_shard(index)
            row_lengths = np.asarray(tensors["lengths"][:])
            _check_counts(self.path / shard.file, shard, row_lengths, tensors["digests"])
            lengths.append(row_lengths)
            starts.append(np.cumsum(row_lengths) - row_lengths)
            digests.append(np.asarray(tensors["digests"][:]))
        empty = [np.zeros(0, dtype=np.int64)]
        self._start, self._length = (np.concatenate(part or empty) for part in (starts, lengths))
        self._shard = np.repeat(np.arange(len(self.shards), dtype=np.int32), [shard.rows for shard in self.shards])
        # Sorted, and so found by bisection: a dictionary of as many bytes objects takes eight times the memory.
        keys = np.concatenate(digests).view(_DIGEST).ravel()
        order = np.argsort(keys, kind="stable")
        first = np.concatenate([[True], keys[order][1:] != keys[order][:-1]]) if len(keys) else np.zeros(0, dtype=bool)
        self._digests, self._rows = keys[order][first], order[first]

    def _open_shard(self, index: int) -> dict[str, np.ndarray]:
        if index not in self._files:
            self._files[index] = map_shard(self.path / self.shards[index].file)
        return self._files[index]


def map_shard(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file as read-only memory maps: slicing reads only what is sliced.

    Raises:
        BallastError: if the file is no safetensors file.
    """
    kinds = {"F32": np.float32, "I64": np.int64, "U8": np.uint8}
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {
            name: content[slice(*entry["data_offsets"])].view(kinds[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, MemoryError, OverflowError):
        raise BallastError(f"{path}: not a shard of a reference cache; {REMEDY}") from None


def read_manifest(folder: Path) -> tuple[CacheKey, list[Shard], str]:
    """Return the key, the shards and the checksum that a manifest states.

    Raises:
        BallastError: if there is none, or it is not as it was written.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BallastError(f"{folder}: no such folder: run `ballast score` first, or correct the path of the cache")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BallastError(
            f"{folder}: no {MANIFEST}, so it is no reference cache, or none of it was finished: run `ballast score`"
        ) from None
    except (OSError, ValueError) as error:
        raise BallastError(f"{path}: not readable as JSON ({error}); delete it and run `ballast score` again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BallastError(f"{path}: not the manifest of a reference cache: correct the path")
    if manifest.get("version") != VERSION:
        raise BallastError(
            f"{path}: format version {manifest.get('version')!r}, this release reads {VERSION}: score into a new folder"
        )
    checksum = manifest.pop("checksum", None)
    if checksum != _checksum(manifest):
        raise BallastError(f"{path}: edited after it was written, so it may describe other values; {REMEDY}")
    names = [field.name for field in dataclass_fields(Shard)]
    shards = [Shard(**{name: entry[name] for name in names}) for entry in manifest["shards"]]
    return CacheKey.from_dict(manifest["key"]), shards, checksum


def write_manifest(folder: Path, key: CacheKey, shards: Sequence[Shard]) -> None:
    """Write the manifest by an atomic rename."""
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "key": key.to_dict(),
        "rows": sum(shard.rows for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "shards": [shard.to_dict() for shard in shards],
    }
    manifest["checksum"] = _checksum(manifest)
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def check_key(folder: Path, wanted: CacheKey, written: CacheKey) -> None:
    """Refuse a cache whose key differs.

    Raises:
        BallastError: naming each component that differs.
    """
    if differences := wanted.differences(written):
        raise BallastError(
            f"{folder}: this cache does not belong to this run: {'; '.join(differences)}: its values would be those of "
            "another reference; score into another folder, or delete this one"
        )


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_counts(path: Path, shard: Shard, lengths: np.ndarray, digests: np.ndarray) -> None:
    if len(lengths) != shard.rows or len(digests) != shard.rows or int(lengths.sum()) != shard.tokens:
        raise BallastError(f"{path}: holds other rows than {MANIFEST} states: delete it and run `ballast score` again")


def _key_bytes(digest: str) -> bytes:
    try:
        return bytes.fromhex(digest)
    except (TypeError, ValueError):
        raise BallastError(f"row digest {digest!r} is not hexadecimal: prepare the rows with `ballast.data`") from None
