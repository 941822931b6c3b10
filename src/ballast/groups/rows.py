"""Rows of rejection sampling: the right ones among own answers, as demonstrations beside the expert's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballast.data.messages import last_text
from ballast.errors import BallastError
from ballast.files import place_problem, write_atomically
from ballast.groups.members import Group
from ballast.groups.options import RowsOptions

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RejectionRows:
    """Rows to train on, in the order of their prompts; how many prompts have a right own answer, and how many rows are
    own answers."""

    rows: tuple[Row, ...]
    prompts: int
    own: int


def rejection_rows(raw: Sequence[Row], groups: Iterable[Group], most: int) -> RejectionRows:
    """Return each prompt's right own answers, no text twice and at most `most`, and after them the expert's row.

    An own answer is right with a reward of 1 where it ended by itself. The expert's text counts as one that is there
    already. Rows keep their other columns. Source: ReFT, arXiv:2401.08967, offline self-training.

    Args:
        raw: the rows that the groups were made of; `Group.row` is a place among them.
    """
    found: list[Row] = []
    prompts = own = 0
    for group in groups:
        row = raw[group.row]
        experts = [row for member in group.members if member.origin == "expert"]
        texts = list(_right(group, [last_text(one["completion"]) for one in experts]))[:most]
        found += [{**row, "completion": _like(row["prompt"], text)} for text in texts] + experts
        prompts, own = prompts + bool(texts), own + len(texts)
    return RejectionRows(tuple(found), prompts, own)


def _right(group: Group, known: Sequence[str]) -> Iterator[str]:
    seen = {"", *known}
    for member in group.members:
        right = member.reward is not None and member.reward >= 1
        if member.origin == "own" and member.ended and right and member.text not in seen:
            seen.add(member.text)
            yield member.text


def _like(prompt: Any, text: str) -> Any:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def rows_problem(options: RowsOptions) -> str | None:
    """Return what keeps the rows from being written, None where nothing does."""
    file = Path(options.file)
    if file.is_dir():
        return f"{file}: is a folder; name a file, such as {file / 'rows.jsonl'}"
    if file.exists() or file.is_symlink():
        return f"{file}: is there already and would be overwritten; name another file, or remove it"
    return place_problem(file.parent)


def write_rows(file: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, all or nothing.

    Raises:
        BallastError: if there are none.
    """
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    if not lines:
        raise BallastError(
            f"{file}: no own answer is right and there are no experts', so there is nothing to train on; raise "
            "groups.own, or set groups.expert to 1"
        )
    write_atomically(file, "\n".join(lines) + "\n")
