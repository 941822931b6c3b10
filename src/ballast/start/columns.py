"""Which columns of somebody's rows hold the prompt and the demonstrated answer. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ballast.data.columns import Columns
from ballast.errors import BallastError

PAIRS = (
    ("prompt", "completion"),
    ("question", "solution"),
    ("problem", "solution"),
    ("question", "answer"),
    ("problem", "answer"),
    ("query", "response"),
    ("question", "response"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("instruction", "response"),
    ("input", "output"),
)
"""Names of prompt and answer, in the order in which they are looked for; case does not count."""


@dataclass(frozen=True)
class Layout:
    """How the columns are read.

    Attributes:
        columns: as in ``data.columns``.
        said: the same in words.
        as_written: whether prompt and answer are joined as they stand, being written for each other.
    """

    columns: Columns
    said: str
    as_written: bool = False


def recognise(names: Sequence[str], source: str) -> Layout:
    """Return how rows with these columns are read.

    Raises:
        BallastError: no prompt and answer are found among them.
    """
    lower = {name.lower(): name for name in reversed(names)}
    if "messages" in names:
        return Layout(None, "chats in messages, whose last turn is the demonstration")
    if "conversations" in names:
        return Layout("sharegpt", "ShareGPT's conversations, whose last turn is the demonstration")
    if {"instruction", "output"} <= set(names):
        return Layout("alpaca", "Alpaca's instruction, input and output")
    for prompt, answer in PAIRS:
        if prompt in lower and answer in lower:
            found = {"prompt": lower[prompt], "completion": lower[answer]}
            written = found == {"prompt": "prompt", "completion": "completion"}
            return Layout(
                None if written else found, f"{found['prompt']} asks and {found['completion']} answers", written
            )
    raise BallastError(
        f"{source}: no prompt and answer among the columns ({', '.join(names)}); name yours, as in "
        "--columns '{prompt: ask, completion: reply}'"
    )
