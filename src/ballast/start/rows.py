"""Somebody's rows as demonstrations in three parts that share no prompt. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

from ballast.data.messages import last_text
from ballast.data.render import TEMPLATE_OPTIONS
from ballast.errors import BallastError

Row = Mapping[str, Any]
FEWEST = 60
"""Prompts of the smallest data that can be split."""
SHARES = {"test": (0.2, 200), "validation": (0.1, 100)}
"""Share of the prompts of each part, and the most that it takes; the others are trained on."""


@dataclass(frozen=True)
class Parts:
    """Rows to train on, to choose by, and to report."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]


def demonstrations(rows: Sequence[Row], *, chat: bool, as_written: bool) -> list[dict[str, Any]]:
    """Return rows with ``prompt`` and ``completion``, as messages where the tokenizer has a chat template.

    Args:
        chat: whether it has.
        as_written: join plain prompt and answer as they stand; else they are set apart by a line break.

    Raises:
        BallastError: naming the first row that cannot be used.
    """
    return [_demonstration(row, number, chat, as_written) for number, row in enumerate(rows, start=1)]


def _demonstration(row: Row, number: int, chat: bool, as_written: bool) -> dict[str, Any]:
    if "messages" in row:
        turns = row["messages"]
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise BallastError(f"row {number}: its last message is not the assistant's, so nothing is demonstrated")
        prompt, completion = turns[:-1], turns[-1:]
    else:
        prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and not chat:
        raise BallastError(
            f"row {number}: is a chat, and the tokenizer has no chat template; take a chat model, or rows of plain text"
        )
    if isinstance(prompt, str) and chat:
        prompt = [{"role": "user", "content": prompt.strip()}]
        completion = [{"role": "assistant", "content": last_text(completion).strip()}]
    elif isinstance(prompt, str) and not as_written:
        prompt, completion = prompt.rstrip() + "\n", str(completion).strip()
    options = {name: row[name] for name in (*TEMPLATE_OPTIONS, "answer") if row.get(name) is not None}
    return {"prompt": prompt, "completion": completion, **options}


def split(rows: Sequence[Row]) -> Parts:
    """Return the rows in parts by a digest of their prompt, so that no prompt is in two of them.

    Raises:
        BallastError: there are too few prompts.
    """
    by_prompt: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        text = json.dumps(row["prompt"], sort_keys=True)
        by_prompt.setdefault(blake2b(text.encode(), digest_size=16).digest(), []).append(number)
    if len(by_prompt) < FEWEST:
        raise BallastError(
            f"{len(by_prompt)} different prompts are too few to train on some and to test on others; give {FEWEST} or "
            "more, or write a recipe by hand (docs/recipe.md)"
        )
    left = iter(sorted(by_prompt))
    held = {
        name: [rows[by_prompt[key][0]] for key in islice(left, min(most, int(share * len(by_prompt))))]
        for name, (share, most) in SHARES.items()
    }
    return Parts(train=[rows[number] for number in sorted(n for key in left for n in by_prompt[key])], **held)
