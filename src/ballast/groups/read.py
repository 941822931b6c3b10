"""Groups from a file that the user made: one answer a row, with its prompt, its origin and its reward."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.data.load import load_rows
from ballast.data.messages import last_text, messages_problem
from ballast.data.options import PrepareOptions
from ballast.data.prepare import prepare
from ballast.data.readers import from_rows
from ballast.data.render import TEMPLATE_OPTIONS, prompt_columns
from ballast.errors import BallastError
from ballast.groups.members import Group, Member
from ballast.stats import ORIGINS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("prompt", "origin", "response", "reward")


def read_file(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    """Return the groups of a Parquet or JSONL file, or of a folder of them, in the order of their first rows.

    Rows with the same prompt are one group. Prompt and response are both text, or both messages, and are tokenised as a
    demonstration is: a response ends with the end-of-text token.

    Raises:
        BallastError: naming the file and the column or row that cannot be used.
    """
    rows = load_rows(str(path)).with_format(None)
    if lacking := [name for name in COLUMNS if name not in rows.column_names]:
        raise BallastError(
            f"{path}: no column {lacking[0]!r} (columns: {', '.join(rows.column_names)}); a file of groups has "
            f"{', '.join(COLUMNS)}"
        )
    columns = [name for name in (*COLUMNS, *TEMPLATE_OPTIONS) if name in rows.column_names]
    plain = list(rows.select_columns(columns))
    for index, row in enumerate(plain):
        if problem := _row_problem(row):
            raise BallastError(f"{path}: row {index + 1}: {problem}")
    found: dict[str, list[Member]] = {}
    for row, (ids, start) in zip(plain, _tokenise(plain, tokenizer, path), strict=True):
        member = Member(ids, start, row["origin"], float(row["reward"]), last_text(row["response"]))
        found.setdefault(json.dumps(prompt_columns(row), sort_keys=True), []).append(member)
    return [Group(number, tuple(members)) for number, members in enumerate(found.values())]


def _row_problem(row: Mapping[str, Any]) -> str | None:
    prompt, response, reward = row["prompt"], row["response"], row["reward"]
    if not isinstance(prompt, (str, list)) or not prompt:
        return "the prompt is empty, or neither text nor messages"
    if type(response) is not type(prompt) or not response:
        return f"the response is empty, or not {'text' if isinstance(prompt, str) else 'messages'} like the prompt"
    if isinstance(response, list) and (problem := messages_problem(response, "response")):
        return problem
    if row["origin"] not in ORIGINS:
        return f"origin {row['origin']!r} is none of {', '.join(ORIGINS)}"
    if isinstance(reward, bool) or not isinstance(reward, (int, float)) or not math.isfinite(reward):
        return f"reward {reward!r} is no finite number"
    return None


def _tokenise(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, path: str | Path
) -> list[tuple[tuple[int, ...], int]]:
    flat = from_rows([{**prompt_columns(row), "completion": row["response"]} for row in rows], str(path)).dataset
    ready = prepare(flat, tokenizer, PrepareOptions(max_length=None), name=str(path)).dataset
    if len(ready) != len(rows):
        raise BallastError(f"{path}: {len(rows) - len(ready)} responses have no token to train on; remove them")
    pairs = zip(ready["input_ids"], ready["labels"], strict=True)
    return [
        (tuple(ids), next(place for place, label in enumerate(labels) if label != -100 and place))
        for ids, labels in pairs
    ]
