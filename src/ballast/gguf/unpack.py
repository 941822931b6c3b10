"""GGUF files as models: each is unpacked once, to a folder in transformers' format that is named by its content.

Below the cache (`ballast.data.cache`) lies ``gguf/SHA256`` for each file: float32 weights as safetensors, tokenizer
with chat template, generation configuration with all end tokens, a card with the licence. A folder is there in full or
not at all; all of them may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ballast.errors import BallastError
from ballast.files import place_problem, write_atomically
from ballast.gguf.conversion import convert
from ballast.gguf.header import MAGIC, check_file, check_header, digest_of
from ballast.packages import refuse_without
from ballast.records.write import disk_full_as_error
from ballast.terminal import print_error


def is_gguf(path: str) -> bool:
    """Return whether a model's path is a GGUF file by name or content."""
    if path.lower().endswith(".gguf"):
        return not Path(path).expanduser().is_dir()
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def unpacked(path: str) -> Path:
    """Return the folder of a GGUF file, unpacked unless it was before; one process at a time unpacks.

    Raises:
        BallastError: it cannot be used as a model, or there is no place for it.
    """
    found = _looked_at(path)
    if isinstance(found, str):
        raise BallastError(found)
    return found


def problem(path: str) -> str | None:
    """Return what makes a GGUF file unusable as a model, None where it is unpacked."""
    found = _looked_at(path)
    return found if isinstance(found, str) else None


def folder_problem(folder: Path) -> str | None:
    """Return what to say of a folder without a configuration that holds GGUF files; None where it holds none."""
    found = sorted(file.name for file in folder.glob("*.gguf"))
    if not found:
        return None
    others = f" and {len(found) - 1} more, each a model of its own" if len(found) > 1 else ""
    return f"{folder}: holds the GGUF {found[0]}{others}; name the file: {folder / found[0]}"


def gone(folder: Path) -> str | None:
    """Return what to say of a folder in the cache that is no longer there; None of any other path."""
    root = _root()
    if root is None or folder.parent != root:
        return None
    all_known = filter(None, map(_known, root.glob("*.json")))
    named = [f": {known['file']}" for known in all_known if known["sha256"] == folder.name]
    return f"{folder}: was unpacked from a GGUF and is gone; to unpack it again name the file as model once" + (
        named[0] if named else ""
    )


def digest(path: str) -> str | None:
    """Return the SHA-256 of a GGUF file, None where the path is none or there is none."""
    file = Path(path).expanduser()
    if not is_gguf(path) or not file.is_file():
        return None
    found = file.stat()
    return _digest(file.resolve(), _root(), found.st_size, found.st_mtime_ns)


def _looked_at(path: str) -> Path | str:
    """Return the folder of a GGUF file, or what is wrong with it."""
    file = Path(path).expanduser()
    if not file.is_file():
        return f"{path}: no such file; a GGUF is read from this disk alone, so download it first and name the file"
    found = file.stat()
    return _made(path, file.resolve(), _root(), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _made(path: str, file: Path, root: Path | None, size: int, changed: int) -> Path | str:
    """The same, once in a process as long as the file stays as it is."""
    try:
        check_file(path, file)
        return _unpack(path, file, root, _digest(file, root, size, changed))
    except BallastError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read or unpacked: {error.strerror or error}; see its permissions and its disk"


def _unpack(path: str, file: Path, root: Path | None, sha256: str) -> Path:
    from filelock import FileLock

    if root is None:
        raise BallastError(f"{path}: a GGUF is unpacked into the cache, which BALLAST_CACHE switches off; set it")
    entry = root / sha256
    if (entry / "config.json").is_file():
        return entry
    refuse_without("gguf", "gguf", path, "a folder in transformers format")
    needed = check_header(path, file)
    if full := place_problem(root, needed):
        raise BallastError(f"{path}: cannot be unpacked: {full} (BALLAST_CACHE)")
    with disk_full_as_error(root):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            # Another process may have made it meanwhile.
            if not (entry / "config.json").is_file():
                print_error(f"{path}: is unpacked once, to {entry} ({needed / 1e6:,.0f} MB)")
                _fill(path, file, entry)
    return entry


def _fill(path: str, file: Path, entry: Path) -> None:
    part = entry.with_name(f"{entry.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(entry, ignore_errors=True)
    try:
        convert(file, part, name=path)
        part.rename(entry)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _root() -> Path | None:
    from ballast.data import cache

    root = cache.folder()
    return None if root is None else root / "gguf"


@lru_cache(maxsize=64)
def _digest(file: Path, root: Path | None, size: int, changed: int) -> str:
    """Return the digest of a file, which is kept beside the folders: a large file takes as long as its disk."""
    if root is None:
        return digest_of(file)
    kept = root / f"{hashlib.blake2b(str(file).encode(), digest_size=16).hexdigest()}.json"
    if (known := _known(kept)) and (known["size"], known["changed"]) == (size, changed):
        return str(known["sha256"])
    found = {"file": str(file), "size": size, "changed": changed, "sha256": digest_of(file)}
    with suppress(OSError):  # it is made again then
        write_atomically(kept, json.dumps(found) + "\n")
    return str(found["sha256"])


def _known(kept: Path) -> dict[str, Any] | None:
    """Return what is kept of a file; None where that is nothing, or damaged."""
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        whole = {"file", "size", "changed"} <= set(known) and re.fullmatch("[0-9a-f]{64}", known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if whole else None
