"""Answers that are given as text or messages, as the ids that training sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.data.options import PrepareOptions
from ballast.data.prepare import prepare
from ballast.data.readers import from_rows
from ballast.data.render import prompt_columns
from ballast.errors import BallastError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenise(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, path: str | Path
) -> list[tuple[tuple[int, ...], int]]:
    """Return the ids of prompt and response of each row, and the response's first place, as of a demonstration."""
    flat = from_rows([{**prompt_columns(row), "completion": row["response"]} for row in rows], str(path)).dataset
    ready = prepare(flat, tokenizer, PrepareOptions(max_length=None), name=str(path)).dataset
    if len(ready) != len(rows):
        raise BallastError(f"{path}: {len(rows) - len(ready)} responses have no token to train on; remove them")
    pairs = zip(ready["input_ids"], ready["labels"], strict=True)
    return [
        (tuple(ids), next(place for place, label in enumerate(labels) if label != -100 and place))
        for ids, labels in pairs
    ]
