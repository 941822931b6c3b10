"""Groups in a folder: sampled once, part by part, and read back by runs that do not sample themselves."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError
from ballast.groups.members import Group, Member
from ballast.groups.options import GroupOptions
from ballast.parts import MANIFEST, PartFolder, Revisions, has, read_manifest, unreadable

if TYPE_CHECKING:
    import pyarrow as pa

VERSION, READABLE = 2, (1, 2)
"""What is written, and what can be read: version 1 has no log-probabilities of the model that sampled."""
HOLDS = "groups"
OWN = "transformers"
ADDED = "ref_logprob"
"""The column of version 2."""

NOT_STORED = ("refresh", "batch_tokens", "seconds", "allow_code_execution", "file")
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
    "engine": "it was sampled by another engine",
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
        engine: what sampled, with its version; empty for our own loop.
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
    engine: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as the manifest holds them."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "engine" or self.engine}
        return {**values, "ends": list(self.ends), "groups": dict(self.groups)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoreSettings:
        """Return the settings that a manifest holds.

        Raises:
            KeyError: if one is missing.
        """
        # Folders of versions without other engines do not name theirs.
        found = {one.name: values[one.name] for one in fields(cls) if one.name != "engine" or "engine" in values}
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
                values = "" if name in ("model", "tokenizer", "data") else f" ({theirs or OWN}, not {mine or OWN})"
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


class GroupFolder(PartFolder):
    """A folder of groups; see `PartFolder`.

    Args:
        path: the folder; made if there is none.
        settings: what the groups depend on; a folder made with others is refused.
    """

    holds, doing, command = HOLDS, "sampling", "ballast sample"

    def __init__(self, path: str | Path, settings: StoreSettings) -> None:
        super().__init__(path, settings.rows)
        self.settings = settings

    def manifest(self) -> dict[str, Any]:
        return {"version": VERSION, "settings": self.settings.to_dict()}

    def differences(self) -> list[str]:
        version, begun = _read_manifest(self.path)
        if version != VERSION:
            raise BallastError(
                f"{self.path}: was begun by an earlier version, whose answers have no log-probabilities of the model "
                "that sampled them; name another folder (this one can still be trained on)"
            )
        return self.settings.differences(begun)

    def write(self, number: int, part: Part) -> None:
        """Write a part."""
        self.put(number, _to_parquet(part))

    def read(self) -> Iterator[Part]:
        """Yield all parts in order.

        Raises:
            BallastError: if one is missing or damaged.
        """
        for number, file in enumerate(self.files()):
            part = _from_parquet(file)
            if [group.row for group in part.groups] != self.rows(number):
                raise BallastError(f"{file}: holds other rows than its place says; delete it and sample")
            yield part


def stored_engine(path: str | Path, size: int) -> str | None:
    """Return what sampled a folder of so many prompts where it is full, None where a part is missing."""
    if not (Path(path) / MANIFEST).is_file() or PartFolder(path, size).missing():
        return None
    return read_settings(path).engine


def is_sampled(path: str | Path) -> bool:
    """Return whether `ballast sample` filled a folder, or began to; other groups are made from rows."""
    return (Path(path) / MANIFEST).exists() and not has(path, Revisions.holds)


def read_settings(path: str | Path) -> StoreSettings:
    """Return what the groups of a folder were sampled with.

    Raises:
        BallastError: if its manifest cannot be read.
    """
    return _read_manifest(path)[1]


def _read_manifest(path: str | Path) -> tuple[int, StoreSettings]:
    version, settings = read_manifest(path, HOLDS, READABLE, "sample again")
    try:
        return version, StoreSettings.from_dict(settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, HOLDS, error) from error


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
        ("ref_logprob", pa.list_(pa.float32())),
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
            "ref_logprob": None if member.ref_logprob is None else list(member.ref_logprob),
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
        rows = table.select(
            [name for name in _schema({}).names if name != ADDED or name in table.column_names]
        ).to_pylist()
        groups: dict[int, list[Member]] = {}
        prompts: dict[int, Any] = {}
        for row in rows:
            number, prompt = row.pop("row"), row.pop("prompt")
            prompts[number] = prompt if plain else json.loads(prompt)
            ids, scored = tuple(row.pop("ids")), row.pop(ADDED, None)
            ref_logprob = None if scored is None else tuple(scored)
            groups.setdefault(number, []).append(Member(ids=ids, ref_logprob=ref_logprob, **row))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BallastError(f"{file}: damaged ({reason}); delete it and run `ballast sample` again") from error
    return Part(tuple(Group(row, tuple(members)) for row, members in groups.items()), tuple(prompts.values()), counts)
