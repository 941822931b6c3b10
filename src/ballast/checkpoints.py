"""Checkpoints of a trainer: whether one is whole, which is the last that is, and how one comes to its place."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

STATE = "trainer_state.json"
UNFINISHED = ".saving"
"""Where a checkpoint is written before it is moved to its place."""
NAME = re.compile(r"checkpoint-(\d+)")
SHARDED = ("pytorch_model_fsdp*", "global_step*")
"""Names of what FSDP and DeepSpeed write weights into."""


@dataclass(frozen=True)
class Last:
    """The last whole checkpoint of a run, and those after it that are not whole.

    Attributes:
        path: None where there is none.
        torn: later checkpoints, the last one first, each with what is wrong with it.
    """

    path: Path | None
    torn: tuple[tuple[Path, str], ...] = ()

    def lines(self) -> list[str]:
        """Return a line on each checkpoint that is passed over."""
        instead = "no other is there" if self.path is None else f"going on from {self.path.name} instead"
        return [f"{path}: is not whole ({problem}); {instead}" for path, problem in self.torn]


def last_whole(output: str | Path, *, weights_only: bool = False) -> Last:
    """Return the last checkpoint of a run that can be gone on from.

    Args:
        output: folder of the run.
        weights_only: the run keeps no state of its optimiser (``save_only_model``).
    """
    found = ((NAME.fullmatch(path.name), path) for path in Path(output).glob("checkpoint-*") if path.is_dir())
    numbered = sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
    torn: list[tuple[Path, str]] = []
    for _, path in numbered:
        problem = what_is_wrong(path, weights_only=weights_only)
        if problem is None:
            return Last(path, tuple(torn))
        torn.append((path, problem))
    return Last(None, tuple(torn))


def what_is_wrong(checkpoint: Path, *, weights_only: bool = False) -> str | None:
    """Return why a checkpoint cannot be gone on from, None where it can.

    Files are not read through: what a file says of its own length tells whether it was cut.
    """
    if not checkpoint.is_dir():
        return "there is no such folder"
    return next(_problems(checkpoint, weights_only), None)


def _problems(folder: Path, weights_only: bool) -> Iterator[str]:
    if not _has_state(folder / STATE):
        yield f"{STATE} is missing or cut"
    weights = [*folder.glob("*.safetensors"), *folder.glob("*/adapter_model.safetensors")]
    sharded = [path for pattern in SHARDED for path in folder.glob(pattern)]
    if not weights and not sharded:
        yield "it has no weights"
    for index in folder.glob("*.safetensors.index.json"):
        yield from (f"{name} is missing" for name in _shards(index) if not (index.parent / name).is_file())
    if not weights_only and not any(path.name.startswith("global_step") for path in sharded):
        for pattern in ("optimizer*", "scheduler.pt", "rng_state*.pth"):
            if not any(folder.glob(pattern)):
                yield f"{pattern.replace('*', '')} is missing"
    for path in sorted(folder.rglob("*")):
        is_whole = WHOLE.get(path.suffix)
        if path.is_file() and is_whole is not None and not is_whole(path):
            yield f"{path.name} is cut"


def _has_state(path: Path) -> bool:
    state = _json(path)
    return isinstance(state, dict) and isinstance(state.get("global_step"), int)


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _shards(index: Path) -> list[str]:
    content = _json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    return sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []


def is_whole_safetensors(path: Path) -> bool:
    """Return whether a file is as long as its header says."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size - 8 - length
            header = json.loads(file.read(length)) if size >= 0 else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError, IndexError, AttributeError):
        return False
    return bool(size == max(ends, default=0))


def _is_archive(path: Path) -> bool:
    """Return whether the directory at the end of an archive is there, as torch writes one; nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _is_json(path: Path) -> bool:
    return _json(path) is not None


WHOLE: dict[str, Callable[[Path], bool]] = {
    ".safetensors": is_whole_safetensors,
    ".json": _is_json,
    **dict.fromkeys((".pt", ".pth", ".bin"), _is_archive),
}
"""How a file of each kind shows that it was not cut."""


def put_in_place(made: Path, place: Path) -> None:
    """Move a finished checkpoint to its place by one rename, an older one of that name out of the way before."""
    older = made.with_name(f"{made.name}.older")
    if place.exists():
        place.rename(older)
    made.rename(place)
    shutil.rmtree(older, ignore_errors=True)
