"""Adding rows to a reference cache: one writer, or the ranks of one, at a time, and nothing lost that was flushed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ballast.errors import BallastError
from ballast.files import expanded
from ballast.ranks import ALONE, Ranks
from ballast.reference.cache import MANIFEST, ReferenceCache, check_key, read_manifest, write_manifest
from ballast.reference.shards import Shard, adopt_shard, verify_shard, write_shard

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from ballast.reference.key import CacheKey

LOCK = ".lock"


class CacheWriter:
    """Holds the lock of a cache and adds rows to it; leaving the context without an error flushes the rest.

    Rows become visible shard by shard. After a kill, the shards that were renamed into place are kept, listed or not.
    Of several ranks the first holds the lock and writes the manifest; every rank writes shards of its own, which are
    listed when all have left the context without an error.

    Args:
        path: the folder; made if there is none.
        key: what the values depend on.
        wait: seconds to wait for another writer; None waits as long as it works.
        shard_tokens: trained tokens after which a shard is written.
        shard_seconds: seconds after which a shard is written, so that a kill costs no more.
        ranks: who adds to the cache together; all enter and leave the context.
    """

    def __init__(
        self,
        path: str | Path,
        key: CacheKey,
        *,
        wait: float | None = None,
        shard_tokens: int = 2_000_000,
        shard_seconds: float = 60.0,
        ranks: Ranks = ALONE,
    ) -> None:
        from filelock import FileLock

        self.path, self.key = Path(expanded(str(path))), key
        self._limit_tokens, self._limit_seconds, self._wait = shard_tokens, shard_seconds, wait
        self._lock, self._ranks = FileLock(self.path / LOCK), ranks
        self._begun: list[Shard] = []
        self._own: list[Shard] = []
        self._clear()

    def __enter__(self) -> CacheWriter:
        try:
            self._begun = self._ranks.first(self._begin)
            self._cache = ReferenceCache.open(self.path, self.key, verify=False) if self._begun else None
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Rows that were scored before an error are right, and an interrupted run keeps them.
            self.flush()
            if error is None:
                shards = self._ranks.gather(self._own)
                if any(shards[1:]):
                    self._ranks.first(lambda: self._list([one for own in shards for one in own]))
        finally:
            self._lock.release()

    def missing(self, digests: list[str]) -> list[str]:
        """Return the digests without values, each once, as things stand now that no one else writes."""
        return list(dict.fromkeys(digests)) if self._cache is None else self._cache.missing(digests)

    def add(self, digest: str, values: dict[str, np.ndarray]) -> None:
        """Add a row; its values are on disk after the next flush."""
        self._digests.append(digest)
        self._values.append({name: values[name] for name in self.key.fields})
        self._tokens += len(self._values[-1][self.key.fields[0]])
        if self._tokens >= self._limit_tokens or time.monotonic() - self._since >= self._limit_seconds:
            self.flush()

    def flush(self) -> None:
        """Write the rows added since the last flush as one shard, then the manifest."""
        if not self._digests:
            return
        name = f"shard-{self._next_index():05d}.safetensors"
        self._own.append(write_shard(self.path, name, self.key.hex, self._digests, self._values))
        if self._ranks.main:
            self._list(self._own)
        self._clear()

    def _list(self, added: list[Shard]) -> None:
        write_manifest(self.path, self.key, sorted([*self._begun, *added], key=lambda shard: shard.file))

    def _clear(self) -> None:
        self._digests: list[str] = []
        self._values: list[dict[str, np.ndarray]] = []
        self._tokens, self._since = 0, time.monotonic()

    def _next_index(self) -> int:
        begun = 1 + max((int(Path(shard.file).stem.split("-")[1]) for shard in self._begun), default=-1)
        return begun + self._ranks.rank + len(self._own) * self._ranks.size

    def _begin(self) -> list[Shard]:
        _check_target(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        return self._recover()

    def _acquire(self) -> None:
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            print(f"{self.path}: another process is scoring into this cache; waiting for it", file=sys.stderr)
            try:
                self._lock.acquire(timeout=-1 if self._wait is None else self._wait)
            except Timeout:
                raise BallastError(
                    f"{self.path}: another process is still scoring into this cache after {self._wait:g} s: run again "
                    "when it has ended (nothing is scored twice), or score into another folder"
                ) from None

    def _recover(self) -> list[Shard]:
        """Return the shards that are good, having cleared away what a killed writer left half done."""
        listed: list[Shard] = []
        if (self.path / MANIFEST).exists():
            written, listed, _ = read_manifest(self.path)
            check_key(self.path, self.key, written)
        shards = [shard for shard in listed if (self.path / shard.file).exists()]
        for shard in shards:
            verify_shard(self.path, shard)
        for leftover in self.path.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
        known = {shard.file for shard in shards}
        for path in sorted(self.path.glob("shard-*.safetensors")):
            if path.name not in known:
                shards.append(self._adopt(path))
        if shards != listed:
            write_manifest(self.path, self.key, shards)
        return shards

    def _adopt(self, path: Path) -> Shard:
        shard = adopt_shard(self.path, path.name, self.key.hex, self.key.fields)
        if shard is None:
            raise BallastError(
                f"{path}: damaged, or a shard of another cache (of another model, dtype, tokenizer or template), so "
                "its values cannot be trusted: delete it, or score into another folder"
            )
        return shard


def _check_target(path: Path) -> None:
    """Refuse to fill a file or a folder that holds something else."""
    if path.exists() and not path.is_dir():
        raise BallastError(f"{path}: a file, but a reference cache is a folder: choose another path")
    if path.is_dir() and not (path / MANIFEST).exists():
        foreign = [entry.name for entry in path.iterdir() if not _is_ours(entry.name)]
        if foreign:
            raise BallastError(
                f"{path}: holds {sorted(foreign)[0]!r} and no reference cache, so shards would mix with other files: "
                "choose an empty or new folder"
            )


def _is_ours(name: str) -> bool:
    return name == LOCK or name.endswith(".tmp") or (name.startswith("shard-") and name.endswith(".safetensors"))
