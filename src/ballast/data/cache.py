"""Prepared rows on disk, by the content of all that they are made of.

Below `folder` lies one folder for each set of rows: Arrow files, and a manifest with their checksums, written last. One
process makes a set and the others of a launch wait for it. A set that is damaged is made anew, as is one that is gone,
so all of it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import __version__
from ballast.data.digest import DIGEST_VERSION
from ballast.data.fingerprint import content_hash, tokenizer_fingerprint
from ballast.data.tokenise import VERSION
from ballast.files import expanded, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

    from ballast.data.batches import Preparer
    from ballast.data.options import PrepareOptions

PLACE, OFF = "BALLAST_CACHE", "off"
LEAST_ROWS = 1000
"""Fewer are prepared again sooner than they are looked for."""
MANIFEST = "manifest.json"
LIBRARIES = ("trl", "transformers", "tokenizers", "datasets", "jinja2")
WITHOUT_EFFECT = ("num_proc", "shuffle_dataset", "seed", "pad_token", "chat_template_path")
"""Options that change no prepared row; the template's text counts in place of its file."""


def folder() -> Path | None:
    """Return the folder that ``BALLAST_CACHE`` names, else ``~/.cache/ballast``; None where that is ``off``."""
    given = os.environ.get(PLACE)
    if given is not None:
        return None if given.strip().lower() in ("", OFF) else Path(expanded(given))
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")) / "ballast"


def key(rows: Dataset, tokenizer: Any, options: PrepareOptions, how: Preparer) -> str:
    """Return the name of prepared rows: a hash of the raw ones, of how they are prepared, and of what does it."""
    return content_hash(
        {
            "rows": rows_hash(rows),
            "tokenizer": [tokenizer_fingerprint(tokenizer), str(tokenizer.pad_token)],
            "template": None if how.tokenise is None else how.tokenise.chat_template,
            "options": {name: value for name, value in asdict(options).items() if name not in WITHOUT_EFFECT},
            "columns": how.columns,
            # By their names: what they do is the library's, whose version counts.
            "labels": [[step.function.__qualname__, sorted(step.arguments.items())] for step in how.label],
            "versions": [__version__, VERSION, DIGEST_VERSION, *map(version, LIBRARIES)],
        }
    )


def rows_hash(rows: Dataset) -> str:
    """Return the hash of rows as they lie in memory or on disk: types, values and order."""
    import pyarrow as pa

    sink = _Hash()
    writer = None
    for table in rows.with_format("arrow").iter(batch_size=10_000):
        writer = writer or pa.ipc.new_stream(pa.PythonFile(sink, "w"), table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return sink.digest.hexdigest()


class _Hash:
    """A file that keeps the hash of what is written to it."""

    closed = False

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits to be written."""


def table(key_of: Callable[[], str], make: Callable[[str | None], Dataset]) -> tuple[Dataset, Path | None]:
    """Return rows from the cache, and the folder that they were found in; None there if they had to be made.

    Rows that cannot be kept are made in memory, with a warning.

    Args:
        key_of: returns the name of the rows.
        make: returns the rows, written to a file where one is named (or to several, named after it).
    """
    from filelock import FileLock

    root = folder()
    if root is None:
        return make(None), None
    entry = root / "prepared" / key_of()
    try:
        if (found := _opened(entry)) is not None:
            return found, entry
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            # Another process may have made it meanwhile.
            found = _opened(entry)
            return (found, entry) if found is not None else (_filled(entry, make), None)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        warnings.warn(
            f"{root}: prepared rows cannot be kept there ({reason}), so they are prepared again at each start; set "
            f"{PLACE} to another folder, or to {OFF}",
            stacklevel=3,
        )
        return make(None), None


def _filled(entry: Path, make: Callable[[str | None], Dataset]) -> Dataset:
    part = entry.with_name(f"{entry.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        make(str(part / "rows.arrow"))
        files = {file.name: _described(file) for file in sorted(part.glob("*.arrow"))}
        write_atomically(part / MANIFEST, json.dumps(files, indent=2))
        shutil.rmtree(entry, ignore_errors=True)
        part.rename(entry)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return _read(entry, files)


def _opened(entry: Path) -> Dataset | None:
    """Return what lies in a folder, None where nothing does, or not what was written."""
    if not entry.is_dir():
        return None
    try:
        files = dict(json.loads((entry / MANIFEST).read_text(encoding="utf-8")))
        if files and all(_described(entry / name) == wanted for name, wanted in files.items()):
            return _read(entry, files)
    except (OSError, ValueError):
        pass
    warnings.warn(f"{entry}: damaged since it was written; the rows are prepared anew", stacklevel=4)
    return None


def _read(entry: Path, files: dict[str, Any]) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    return concatenate_datasets([Dataset.from_file(str(entry / name)) for name in sorted(files)])


def _described(file: Path) -> list[Any]:
    with file.open("rb") as content:
        digest = hashlib.blake2b(digest_size=16)
        while block := content.read(1 << 20):
            digest.update(block)
    return [file.stat().st_size, digest.hexdigest()]
