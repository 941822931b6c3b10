"""Revised rows in a folder: demonstrations with their drafts and all versions, those that are trained on apart."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.data.readers import from_rows
from ballast.parts import MANIFEST, Revisions, read_manifest, revisions
from ballast.revise.loop import Revised, Version
from ballast.revise.options import ReviseOptions

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
OWN = "transformers"
LEFT_OUT = "left-out"
"""Folder of the rows that are not trained on, part by part."""
NOT_STORED = (
    "batch_tokens",
    "seconds",
    "allow_code_execution",
    "file",
    "pairs",
    "label",
    "reviser",
    "templates",
    "draft",
)
"""Options that leave the rows alone, or stand in the settings by their content."""
OTHER_FORMATS = ("messages", "conversations", "text", "input_ids", "labels", "completion_mask", "assistant_masks")
"""Columns that would make a second training format of a row with prompt and completion."""
WHAT_DIFFERS = {
    "model": "it was revised with another model",
    "reviser": "it was revised by another reviser",
    "dtype": "it was revised in another dtype",
    "tokenizer": "it was revised with another tokenizer, end-of-text token or chat template",
    "ends": "it was revised with other end tokens",
    "data": "it was revised for other rows",
    "drafts": "it was revised from other drafts",
    "rows": "it was revised for another number of rows",
    "seed": "it was revised from another seed",
    "templates": "it was revised with other templates",
    "options": "it was revised with other settings",
    "engine": "it was revised by another engine",
}


@dataclass(frozen=True)
class Settings:
    """What revised rows depend on.

    Attributes:
        model, reviser: fingerprints; empty where none was asked.
        dtype: that the models computed in.
        tokenizer: fingerprint of the model's.
        ends: ids that end an answer.
        data: digest of the raw rows.
        drafts: where drafts come from, or a digest of given ones.
        rows: number of prompts.
        seed: of the samples.
        templates: the texts, by key.
        options: the `ReviseOptions` but for `NOT_STORED`.
        engine: what sampled, with its version; empty for our own loop.
    """

    model: str
    reviser: str
    dtype: str
    tokenizer: str
    ends: tuple[int, ...]
    data: str
    drafts: str
    rows: int
    seed: int
    templates: Mapping[str, str]
    options: Mapping[str, Any]
    engine: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as the manifest holds them."""
        named = (name for name in self.__dataclass_fields__ if name != "engine" or self.engine)
        values = {name: getattr(self, name) for name in named}
        return {**values, "ends": list(self.ends), "templates": dict(self.templates), "options": dict(self.options)}

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return one phrase for each setting that differs from those of a folder."""
        found = []
        named = {"engine": ""}
        for name, mine in (named | self.to_dict()).items():
            theirs = (named | dict(other)).get(name)
            if name == "options" and isinstance(theirs, Mapping):
                stored = {**stored_options(ReviseOptions()), **theirs}
                changed = [key for key in mine if mine[key] != stored.get(key)]
                found += [f"{WHAT_DIFFERS[name]} (revise.{key} {stored[key]!r}, not {mine[key]!r})" for key in changed]
            elif mine != theirs:
                plain = name in ("rows", "seed", "dtype", "ends", "engine")
                found.append(WHAT_DIFFERS[name] + (f" ({theirs or OWN}, not {mine or OWN})" if plain else ""))
        return found


def stored_options(options: ReviseOptions) -> dict[str, Any]:
    """Return the options that rows depend on."""
    return {name: value for name, value in options.to_dict().items() if name not in NOT_STORED}


class RevisionFolder(Revisions):
    """The folder of revised rows being filled; see `PartFolder`."""

    def __init__(self, path: str | Path, settings: Settings) -> None:
        super().__init__(path, settings.rows)
        self.settings = settings

    def manifest(self) -> dict[str, Any]:
        return {"version": VERSION, "holds": self.holds, "settings": self.settings.to_dict()}

    def differences(self) -> list[str]:
        return self.settings.differences(read_settings(self.path))

    def write(self, number: int, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> None:
        """Write the rows of `record` of a part, apart by ``kept``, and what went wrong with its answers."""
        kept, left = ([row for row in rows if row["kept"] is wanted] for wanted in (True, False))
        beside = (LEFT_OUT, _to_parquet(left, counts)) if left else None
        # A run that was stopped between the two may have left some of other settings.
        (self.path / LEFT_OUT / self.file(number).name).unlink(missing_ok=True)
        self.put(number, _to_parquet(kept, counts), beside)

    def read(self) -> Iterator[tuple[list[dict[str, Any]], dict[str, int]]]:
        """Yield all rows of each part and its counts, those that were left out behind the others.

        Raises:
            BallastError: if a part is missing or damaged.
        """
        for file in self.files():
            kept, counts = _from_parquet(file)
            beside = self.path / LEFT_OUT / file.name
            yield kept + (_from_parquet(beside)[0] if beside.exists() else []), counts


def stored_engine(path: str | Path, size: int) -> str | None:
    """Return what sampled a folder of so many prompts where it is full, None where a part is missing."""
    if not (Path(path) / MANIFEST).is_file() or Revisions(path, size).missing():
        return None
    return str(read_settings(path).get("engine", ""))


def read_settings(path: str | Path) -> Mapping[str, Any]:
    """Return what the rows of a folder were revised with.

    Raises:
        BallastError: if its manifest cannot be read.
    """
    return read_manifest(path, Revisions.holds, (VERSION,), "revise again")[1]


def read_kept(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a full folder that are trained on.

    Raises:
        BallastError: if a part is missing or damaged.
    """
    return [row for file in revisions(Path(path)) for row in _from_parquet(file)[0]]


def record(place: int, row: Mapping[str, Any], revised: Revised, options: ReviseOptions) -> dict[str, Any]:
    """Return the row of a folder: the raw row with the answer as its completion, the draft and every version.

    Columns of ours take the place of the raw row's of the same name.
    """
    place_of_answer = revised.best if options.accept == "verifier" else len(revised.versions) - 1
    answer = revised.versions[place_of_answer]
    beside = {name: value for name, value in row.items() if name not in OTHER_FORMATS}
    return {
        **beside,
        "completion": as_completion(row["prompt"], answer.text),
        "row": place,
        "draft": revised.draft.text,
        "draft_ids": list(revised.draft.ids),
        "versions": [
            {name: getattr(one, name) for name in ("text", "feedback", "reward", "ended", "tokens")}
            for one in revised.versions
        ],
        "answer_version": place_of_answer,
        "label": revised.label,
        "origin": options.draft if options.draft in ("own", "completion") else "given",
        "spent": revised.spent,
        "no_room": revised.no_room,
        "kept": _is_kept(answer, revised, options),
    }


def as_completion(prompt: Any, text: str) -> Any:
    """Return an answer's text as a completion of the prompt's kind: text, or one message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _is_kept(answer: Version, revised: Revised, options: ReviseOptions) -> bool:
    # An answer that was cut off would teach to end in the middle of a sentence.
    wanted = revised.label is None or revised.label in options.keep
    return answer.ended and wanted and (not options.only_correct or (answer.reward or 0.0) >= 1)


def _to_parquet(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    ours = _schema()
    beside = [{name: value for name, value in row.items() if name not in ours.names} for row in rows]
    table = from_rows(beside, "revised rows").dataset.data.table.replace_schema_metadata(None) if rows else pa.table({})
    for field in ours:
        table = table.append_column(field, pa.array([row[field.name] for row in rows], field.type))
    metadata = {"counts": json.dumps(dict(counts))}
    target = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata(metadata), target, write_page_checksum=True)
    return target.getvalue()


def _from_parquet(file: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    import pyarrow as pa
    from pyarrow import parquet

    from ballast.data.exact import from_table
    from ballast.errors import BallastError

    try:
        table = parquet.read_table(file, page_checksum_verification=True)
        counts: dict[str, int] = json.loads((table.schema.metadata or {})[b"counts"])
        if lacking := [name for name in _schema().names if name not in table.column_names]:
            raise KeyError(lacking[0])
        rows = list(from_table(table.replace_schema_metadata(None))) if table.num_rows else []
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BallastError(f"{file}: damaged ({reason}); delete it and run `ballast revise` again") from error
    return rows, counts


def _schema() -> pa.Schema:
    import pyarrow as pa

    version = [("text", pa.string()), ("feedback", pa.string()), ("reward", pa.float64()), ("ended", pa.bool_())]
    return pa.schema(
        [
            ("row", pa.int64()),
            ("draft", pa.string()),
            ("draft_ids", pa.list_(pa.int32())),
            ("versions", pa.list_(pa.struct([*version, ("tokens", pa.int64())]))),
            ("answer_version", pa.int64()),
            ("label", pa.string()),
            ("origin", pa.string()),
            ("spent", pa.int64()),
            ("no_room", pa.bool_()),
            ("kept", pa.bool_()),
        ]
    )
