"""The row formats that TRL trains on, told apart by column names and checked row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ballast.data.messages import kind, messages_problem, template_problem, text_problem
from ballast.data.render import TEMPLATE_OPTIONS
from ballast.errors import BallastError

Row = Mapping[str, Any]
Place = Callable[[int], str]
TEXT = "text"


@dataclass(frozen=True)
class Format:
    """Columns that make up a format, and the check of one row: it returns what is wrong, or None."""

    name: str
    required: tuple[str, ...]
    check: Callable[[Row], str | None]
    optional: tuple[str, ...] = ()

    def present(self, columns: Sequence[str]) -> list[str]:
        """The format's columns among ``columns``."""
        return [column for column in (*self.required, *self.optional) if column in columns]


def _check_prompt_completion(row: Row) -> str | None:
    prompt, completion = row["prompt"], row["completion"]
    for column, value in (("prompt", prompt), ("completion", completion)):
        if isinstance(value, str) and (problem := text_problem(value)):
            return f"{column!r} {problem}"
        if not isinstance(value, str | list):
            mapped = f"; make text of it with columns={{{column!r}: '{{NAME}}'}}, NAME being the column"
            remedy = mapped if kind(value) == "a number" else ""
            return f"{column!r} is {kind(value)}, not text or a list of messages{remedy}"
    if type(prompt) is not type(completion):
        return f"'prompt' is {kind(prompt)} but 'completion' is {kind(completion)}; make both text or both messages"
    if isinstance(prompt, str):
        return None
    return messages_problem(prompt, "prompt") or messages_problem(completion, "completion") or template_problem(row)


def _check_conversations(row: Row) -> str | None:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        return f"'conversations' is {'an empty list' if turns == [] else kind(turns)}, not a list of turns"
    for turn in turns:
        if not isinstance(turn, Mapping) or not {"from", "value"} <= set(turn):
            return "a turn of 'conversations' has no 'from' and 'value'"
        if turn["from"] not in ("system", "user", "assistant", "tool"):
            return (
                f"the role {turn['from']!r} means nothing to a chat template; load the rows with columns='sharegpt', "
                "which names human and gpt as templates do"
            )
        if problem := text_problem(turn["value"]):
            return f"a turn's 'value' {problem}"
    return template_problem(row)


def _check_text(column: str) -> Callable[[Row], str | None]:
    def check(row: Row) -> str | None:
        problem = text_problem(row[column])
        return problem and f"{column!r} {problem}"

    return check


def _check_tokenised(row: Row) -> str | None:
    ids = row["input_ids"]
    for column in ("input_ids", "labels", "completion_mask", "assistant_masks"):
        values = row.get(column, ids)
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            return f"{column!r} is not a list of integers"
        if len(values) != len(ids):
            return f"{column!r} has {len(values)} entries for {len(ids)} token ids"
    if not ids:
        return "'input_ids' is empty"
    if min(ids) < 0:
        return f"'input_ids' holds {min(ids)}; token ids are not negative"
    if max(ids) >= 2**31:
        return f"'input_ids' holds {max(ids)}, which is no token id"
    wrong = [label for label in row.get("labels", ()) if label < 0 and label != -100]
    return f"'labels' holds {wrong[0]}; labels are token ids or -100" if wrong else None


def formats(text_field: str = TEXT) -> tuple[Format, ...]:
    """The formats, in the order in which they are recognised; ``text_field`` names the column of plain text."""
    return (
        Format("tokenised", ("input_ids",), _check_tokenised, ("labels", "completion_mask", "assistant_masks")),
        Format("prompt-completion", ("prompt", "completion"), _check_prompt_completion, TEMPLATE_OPTIONS),
        Format("messages", ("messages",), _messages_check, TEMPLATE_OPTIONS),
        Format("conversations", ("conversations",), _check_conversations, TEMPLATE_OPTIONS),
        Format("text", (text_field,), _check_text(text_field)),
    )


def _messages_check(row: Row) -> str | None:
    return messages_problem(row["messages"], "messages") or template_problem(row)


def find_format(columns: Sequence[str], text_field: str = TEXT) -> Format | None:
    """Return the one format that the columns make up; None where there is none, or more than one."""
    found = _found(columns, text_field)
    return found[0] if len(found) == 1 else None


def _found(columns: Sequence[str], text_field: str) -> list[Format]:
    found = [layout for layout in formats(text_field) if set(layout.required) <= set(columns)]
    # Token ids make every other column a leftover of their own preparation.
    return found[:1] if found and found[0].name == "tokenised" else found


def require_format(columns: Sequence[str], text_field: str = TEXT, name: str = "data") -> Format:
    """Return the format that the columns make up.

    Raises BallastError naming the nearest column where there is none, or the formats where there are several: TRL
    would then pick by an order of its own that users cannot see.
    """
    found = _found(columns, text_field)
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(f"{layout.name} ({', '.join(layout.required)})" for layout in found)
        raise BallastError(f"{name}: two formats at once, {names}; remove the columns not to be trained on")
    have = ", ".join(columns)
    known = [column for layout in formats(text_field) for column in layout.required]
    for ours, other in (("prompt", "completion"), ("completion", "prompt")):
        if ours in columns:
            raise BallastError(
                f"{name}: no column {other!r} beside {ours!r}; there are: {have}{_near(other, columns)}; "
                f"name yours with columns={{{other!r}: '...'}}"
            )
    if {"chosen", "rejected"} & set(columns):
        raise BallastError(f"{name}: chosen and rejected are no demonstrations; give prompt and completion")
    if {"instruction", "output"} <= set(columns):
        raise BallastError(f"{name}: instruction and output look like Alpaca rows; read them with columns=alpaca")
    near = next((hint for hint in (_near(column, columns) for column in known) if hint), "")
    raise BallastError(
        f"{name}: no column to train on; there are: {have}; wanted: prompt and completion, messages, "
        f"{text_field} or input_ids{near}; name yours with columns={{'prompt': '...', 'completion': '...'}}"
    )


def _near(wanted: str, columns: Sequence[str]) -> str:
    near = get_close_matches(wanted, columns, n=1, cutoff=0.6)
    return f" (is {near[0]!r} meant for {wanted!r}?)" if near else ""


def check_rows(rows: Iterable[Row], layout: Format, place: Place) -> None:
    """Check every row against its format.

    Raises BallastError with the place of the first row that does not fit.
    """
    for index, row in enumerate(rows):
        problem = layout.check(row)
        if problem:
            raise BallastError(f"{place(index)}: {problem}")
