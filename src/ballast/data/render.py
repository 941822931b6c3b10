"""The one way in which a row becomes text for the model: training, sampling and evaluation all go through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ballast.data.messages import flat, kind, read_tools, template_problem, text_problem
from ballast.errors import BallastError
from ballast.protocols import Tokenizer

Row = Mapping[str, Any]

TEMPLATE_OPTIONS = ("tools", "chat_template_kwargs")
"""Columns that change what a chat template makes of a row's messages."""


@dataclass(frozen=True)
class Rendered:
    """Text as the model reads it.

    Attributes:
        text: what is tokenised.
        special: whether the tokenizer adds its special tokens: a chat template has written them already.
    """

    text: str
    special: bool


def render_prompt(row: Row, tokenizer: Tokenizer, chat_template: str | None = None) -> Rendered:
    """Return a row's prompt, to be continued by the model.

    Text stays as it is; messages go through the chat template with the generation prompt, the row's ``tools`` and
    ``chat_template_kwargs``.

    Args:
        row: with ``prompt``, text or messages.
        chat_template: in place of the tokenizer's own.

    Raises:
        BallastError: the prompt is neither, or there is no chat template for its messages.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return _rendered(prompt, special=True)
    if not isinstance(prompt, Sequence) or not prompt:
        raise BallastError(f"'prompt' is {kind(prompt)}, not text or a list of messages")
    if not (chat_template or getattr(tokenizer, "chat_template", None)):
        raise BallastError(
            "the prompt is a list of messages but the tokenizer has no chat template: give the prompt as text, or set "
            "tokenizer.chat_template"
        )
    return render_chat(flat(prompt), tokenizer, template_options(row, chat_template), add_generation_prompt=True)


def render_chat(
    messages: Sequence[Row], tokenizer: Tokenizer, options: Mapping[str, Any], *, add_generation_prompt: bool = False
) -> Rendered:
    """Return messages as the chat template writes them; `options` are those of `template_options`.

    Raises:
        BallastError: the template refuses them.
    """
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )
    except Exception as error:  # a template may raise anything
        raise BallastError(f"cannot be tokenised: {' '.join(str(error).split()) or type(error).__name__}") from error
    return _rendered(text, special=False)


def _rendered(text: str, special: bool) -> Rendered:
    if problem := text_problem(text):
        raise BallastError(f"the text {problem}")
    return Rendered(text, special)


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, and which token a character of it belongs to, None for no single one."""

    ids: list[int]
    token_at: Callable[[int], int | None] = lambda _: None


def encode(texts: Sequence[Rendered], tokenizer: Tokenizer) -> list[Encoded]:
    """Return the tokens of each text, as if it were the only one; their number is the caller's to check."""
    found: dict[int, Encoded] = {}
    for special in (True, False):
        places = [place for place, one in enumerate(texts) if one.special is special]
        if places:
            made = tokenizer(text=[texts[place].text for place in places], add_special_tokens=special, verbose=False)
            for n, (place, ids) in enumerate(zip(places, made["input_ids"], strict=True)):
                found[place] = Encoded(ids, partial(made.char_to_token, n)) if made.is_fast else Encoded(ids)
    return [found[place] for place in range(len(texts))]


def prompt_ids(row: Row, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the token ids of a row's prompt, see `render_prompt`."""
    return tuple(encode([render_prompt(row, tokenizer)], tokenizer)[0].ids)


def prompt_columns(row: Row) -> dict[str, Any]:
    """Return what of a row makes its prompt: ``prompt``, and the columns of `TEMPLATE_OPTIONS` that have a value."""
    options = {name: row[name] for name in TEMPLATE_OPTIONS if row.get(name) is not None}
    return {"prompt": row["prompt"], **options}


def template_options(row: Row, chat_template: str | None = None) -> dict[str, Any]:
    """Return the arguments of ``apply_chat_template`` that a row brings.

    Raises:
        BallastError: its ``tools`` or ``chat_template_kwargs`` cannot be used.
    """
    if problem := template_problem(row):
        raise BallastError(problem)
    return {"chat_template": chat_template, "tools": read_tools(row), **(row.get("chat_template_kwargs") or {})}


def conversation(row: Row) -> list[dict[str, Any]] | None:
    """Return all messages of a row of demonstrations, None where it is plain text."""
    if "conversations" in row:
        turns = [dict(turn) for turn in row["conversations"]]
        return [{"role": turn.pop("from"), "content": turn.pop("value"), **turn} for turn in turns]
    if "messages" in row:
        return flat(row["messages"])
    if isinstance(row.get("prompt"), list):
        return flat([*row["prompt"], *row["completion"]])
    return None
