"""Groups in a folder: sampled once, part by part, and read back by runs that do not sample themselves."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError
from ballast.files import write_atomically
from ballast.groups.members import Group, Member
from ballast.groups.options import GroupOptions
from ballast.limits import check_length
from ballast.stats import ORIGINS

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from ballast.protocols import Tokenizer

VERSION = 1
MANIFEST, LOCK = "manifest.json", ".lock"
ROWS_PER_PART = 64
"""Prompts of one part: what a kill costs at most. Answers of one part share batches, so it is the same in every run."""

NOT_STORED = ("refresh", "batch_tokens", "seconds", "file")
"""Options that leave the answers alone, but for rounding and time-outs."""

WHAT_DIFFERS = {
    "model": "it was sampled by another model",
    "dtype": "it was sampled in another dtype",
    "tokenizer": "it was sampled with another tokenizer, end-of-text token or chat template",
    "ends": "it was sampled with other end tokens",
    "data": "it was sampled for other rows",
    "rows": "it was sampled for another number of rows",
    "seed": "it was sampled from another seed",
    "max_length": "its answers were cut at another training.max_length",
    "groups": "it was sampled with other settings",
}


@dataclass(frozen=True)
class StoreSettings:
    """What the groups of a folder depend on.

    Attributes:
        model, dtype: fingerprint and dtype of the model that sampled.
        tokenizer: fingerprint of its tokenizer as training uses it.
        ends: ids that end an answer.
        data: digest of the raw rows.
        rows: number of prompts.
        seed: of the samples.
        max_length: sequences were cut there.
        groups: the `GroupOptions` but for `NOT_STORED`.
    """

    model: str
    dtype: str
    tokenizer: str
    ends: tuple[int, ...]
    data: str
    rows: int
    seed: int
    max_length: int | None
    groups: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as the manifest holds them."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**values, "ends": list(self.ends), "groups": dict(self.groups)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoreSettings:
        """Return the settings that a manifest holds.

        Raises:
            KeyError: if one is missing.
        """
        found = {one.name: values[one.name] for one in fields(cls)}
        return cls(**{**found, "ends": tuple(found["ends"])})

    def differences(self, other: StoreSettings) -> list[str]:
        """Return one phrase per setting that differs, `other` being what a folder was sampled with."""
        found = []
        for name, phrase in WHAT_DIFFERS.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine == theirs:
                continue
            if name == "groups":
                # A folder that is older than an option was sampled with its default.
                stored = {**GroupOptions().to_dict(), **theirs}
                changed = [key for key in mine if mine[key] != stored.get(key)]
                found += [f"{phrase} (groups.{key} {stored.get(key)!r}, not {mine[key]!r})" for key in changed]
            else:
                values = "" if name in ("model", "tokenizer", "data") else f" ({theirs}, not {mine})"
                found.append(f"{phrase}{values}")
        return found


@dataclass(frozen=True)
class Part:
    """The groups of consecutive prompts, their prompts, and how many own answers went wrong how."""

    groups: tuple[Group, ...]
    prompts: tuple[Any, ...]
    counts: Mapping[str, int] = field(default_factory=dict)


def stored_options(options: GroupOptions) -> dict[str, Any]:
    """Return the options that answers depend on."""
    return {name: value for name, value in options.to_dict().items() if name not in NOT_STORED}


def data_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a digest of raw rows, every column counted: a verifier may read any."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=True, default=str)
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


class GroupFolder:
    """A folder of groups being filled by one process at a time; every part is there in full or not at all.

    Args:
        path: the folder; made if there is none.
        settings: what the groups depend on; a folder made with others is refused.
    """

    def __init__(self, path: str | Path, settings: StoreSettings) -> None:
        self.path, self.settings = Path(path), settings

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Hold the folder's lock: no other process samples into it.

        Raises:
            BallastError: if it is another folder, was sampled with other settings, or is being filled.
        """
        from filelock import FileLock, Timeout

        check_target(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BallastError(f"{self.path}: another process is sampling into this folder; wait for it") from None
        try:
            self._begin()
            yield
        finally:
            lock.release()

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not there yet."""
        return [part for part in range(self.parts) if not self._file(part).exists()]

    @property
    def parts(self) -> int:
        """How many parts the folder has when it is full."""
        return math.ceil(self.settings.rows / ROWS_PER_PART)

    def rows(self, part: int) -> list[int]:
        """Return the places of a part's prompts."""
        return list(range(part * ROWS_PER_PART, min((part + 1) * ROWS_PER_PART, self.settings.rows)))

    def write(self, number: int, part: Part) -> None:
        """Write a part."""
        write_atomically(self._file(number), _to_parquet(part))

    def read(self) -> Iterator[Part]:
        """Yield all parts in order.

        Raises:
            BallastError: if one is missing or damaged.
        """
        if missing := self.missing():
            done = self.parts - len(missing)
            raise BallastError(
                f"{self.path}: sampling has not ended ({done} of {self.parts} parts), so prompts would be left out; "
                "run `ballast sample` again, it goes on where it stopped"
            )
        for number in range(self.parts):
            part = _from_parquet(self._file(number))
            if [group.row for group in part.groups] != self.rows(number):
                raise BallastError(f"{self._file(number)}: holds other rows than its place says; delete it and sample")
            yield part

    def _begin(self) -> None:
        manifest = self.path / MANIFEST
        if manifest.exists():
            if found := self.settings.differences(read_settings(self.path)):
                raise BallastError(
                    f"{self.path}: {'; '.join(found)}: answers of two kinds would mix; name another folder"
                )
        else:
            content = {"version": VERSION, "settings": self.settings.to_dict()}
            write_atomically(manifest, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        for leftover in self.path.glob("*.tmp"):
            leftover.unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.parquet"


def check_target(path: Path) -> None:
    """Refuse to fill a file, or a folder that holds something else.

    Raises:
        BallastError: saying what is there.
    """
    if path.exists() and not path.is_dir():
        raise BallastError(f"{path}: is a file; groups are written into a folder, choose another path")
    if path.is_dir() and not (path / MANIFEST).exists():
        ours = (LOCK, MANIFEST)
        foreign = [one.name for one in path.iterdir() if one.name not in ours and not one.name.endswith(".tmp")]
        if foreign:
            raise BallastError(f"{path}: holds {sorted(foreign)[0]!r} and no groups; choose a new or empty folder")


def read_settings(path: str | Path) -> StoreSettings:
    """Return what the groups of a folder were sampled with.

    Raises:
        BallastError: if its manifest cannot be read.
    """
    manifest = Path(path) / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise BallastError(f"{manifest}: written by another version ({content['version']!r}); sample again")
        return StoreSettings.from_dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BallastError):
            raise
        raise BallastError(f"{manifest}: cannot be read as the manifest of groups: {error}") from error


def read_groups(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    context: int | None = None,
) -> list[Group]:
    """Return groups by prompt: of a folder that `ballast sample` filled, or of a file that the user made.

    Args:
        path: a folder with a manifest; or a Parquet or JSONL file (or a folder of them) with one answer a row and the
            columns ``prompt``, ``origin``, ``response`` and ``reward``.
        tokenizer: of the model that trains on them, with the end-of-text token and chat template that training uses.
        max_length: longer sequences are refused; None takes any.
        context: the same of the model's positions.

    Raises:
        BallastError: naming what is missing, damaged or of another tokenizer, with file and row.
    """
    path = Path(path)
    if not path.exists():
        raise BallastError(f"{path}: no such file or folder; `ballast sample` fills one")
    if (path / MANIFEST).exists():
        groups = _read_sampled(path, tokenizer)
    else:
        from ballast.groups.read import read_file

        groups = read_file(path, tokenizer)
    _check(groups, tokenizer, max_length, path)
    for group in groups:
        for member in group.members:
            check_length(f"{path}: prompt {group.row + 1}", len(member.ids), context)
    return groups


def _read_sampled(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    from ballast.reference.fingerprint import tokenizer_fingerprint

    settings = read_settings(path)
    if settings.tokenizer != tokenizer_fingerprint(tokenizer):
        raise BallastError(
            f"{path}: {WHAT_DIFFERS['tokenizer']}, so its token ids would mean other words; sample again"
        )
    return [group for part in GroupFolder(path, settings).read() for group in part.groups]


def _check(groups: Sequence[Group], tokenizer: Tokenizer, max_length: int | None, path: Path) -> None:
    largest = max(tokenizer.get_vocab().values(), default=-1)
    for group in groups:
        for member in group.members:
            if problem := _problem(member, largest, max_length):
                raise BallastError(f"{path}: prompt {group.row + 1}: {problem}")


def _problem(member: Member, largest: int, max_length: int | None) -> str | None:
    if member.origin not in ORIGINS:
        return f"origin {member.origin!r} is none of {', '.join(ORIGINS)}"
    if not math.isfinite(member.reward):
        return f"the reward of the {member.origin}'s answer is {member.reward}; rewards are finite numbers"
    if not 0 < member.start < len(member.ids):
        return f"the {member.origin}'s answer has no token to train on"
    if min(member.ids) < 0 or max(member.ids) > largest:
        return f"token id {max(member.ids)} is not in the tokenizer, whose ids end at {largest}: it is another model's"
    if max_length is not None and len(member.ids) > max_length:
        return (
            f"prompt and answer have {len(member.ids)} tokens, training.max_length is {max_length}: cut after they "
            "were judged, they would not deserve their reward; raise it, or leave the answer out"
        )
    return None


def _schema(metadata: Mapping[str, str]) -> pa.Schema:
    import pyarrow as pa

    columns = [
        ("row", pa.int64()),
        ("prompt", pa.string()),
        ("origin", pa.string()),
        ("text", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("start", pa.int32()),
        ("reward", pa.float64()),
        ("ended", pa.bool_()),
    ]
    return pa.schema(columns, metadata=dict(metadata))


def _to_parquet(part: Part) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    plain = all(isinstance(prompt, str) for prompt in part.prompts)
    rows = [
        {
            "row": group.row,
            "prompt": prompt if plain else json.dumps(prompt, ensure_ascii=False),
            **{name: getattr(member, name) for name in ("origin", "text", "start", "reward", "ended")},
            "ids": list(member.ids),
        }
        for group, prompt in zip(part.groups, part.prompts, strict=True)
        for member in group.members
    ]
    metadata = {"prompt": "text" if plain else "messages", "counts": json.dumps(dict(part.counts))}
    target = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema=_schema(metadata)), target, write_page_checksum=True)
    return target.getvalue()


def _from_parquet(file: Path) -> Part:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(file, page_checksum_verification=True)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        plain, counts = metadata["prompt"] == "text", json.loads(metadata["counts"])
        rows = table.select(_schema({}).names).to_pylist()
        groups: dict[int, list[Member]] = {}
        prompts: dict[int, Any] = {}
        for row in rows:
            number, prompt = row.pop("row"), row.pop("prompt")
            prompts[number] = prompt if plain else json.loads(prompt)
            groups.setdefault(number, []).append(Member(**{**row, "ids": tuple(row["ids"])}))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BallastError(f"{file}: damaged ({reason}); delete it and run `ballast sample` again") from error
    return Part(tuple(Group(row, tuple(members)) for row, members in groups.items()), tuple(prompts.values()), counts)
