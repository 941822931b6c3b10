"""What of a row's texts a chat template has written out, and what it has left out without a word."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_REASONING = ("reasoning_content", "reasoning", "thinking")
_NAMES = {"system": "system prompt", "user": "question", "assistant": "answer", "tool": "tool result"}


@dataclass(frozen=True)
class Piece:
    """A part of a row that its rendered text should hold: texts that all have to occur.

    Attributes:
        what: its kind, in words.
        message: the place of its message, -1 for what belongs to the whole row.
        in_order: whether it follows the pieces before it.
    """

    what: str
    texts: tuple[str, ...]
    message: int = -1
    in_order: bool = True


@dataclass(frozen=True)
class Audit:
    """What came of a row's pieces.

    Attributes:
        left_out: kinds of pieces that do not occur, each with the beginning of one.
        gone: the beginning of an assistant's message of which nothing occurs, or None.
        spans: ``(place of the message, start, end)`` in characters, of the pieces found in order.
    """

    left_out: dict[str, str]
    gone: str | None
    spans: list[tuple[int, int, int]]


def audit(
    messages: Sequence[Mapping[str, Any]],
    rendered: str,
    tools: Any = None,
    options: Mapping[str, Any] | None = None,
    template: str | None = None,
    trained_from: int = 0,
) -> Audit:
    """Look for every text of a row in what the chat template made of it.

    Args:
        messages: all messages of the row, contents as text.
        rendered: the whole row as the template writes it.
        tools: the row's tools.
        options: the row's ``chat_template_kwargs``.
        template: what ought to read these; None leaves them unchecked.
        trained_from: the first message that is trained; an assistant's message before it may be gone.
    """
    pieces = [piece for place, message in enumerate(messages) for piece in _pieces(place, message)]
    copies = Counter(piece.texts[0] for piece in pieces if piece.in_order)
    spans: list[tuple[int, int, int]] = []
    lost: list[Piece] = []
    kept: set[int] = set()
    end = 0
    for piece in pieces:
        start = rendered.find(piece.texts[0], end) if piece.in_order else -1
        if start >= 0:
            end = start + len(piece.texts[0])
            spans.append((piece.message, start, end))
        found = {text: start >= 0 or _occurs(text, rendered, copies.get(text, 1)) for text in piece.texts}
        # Short texts, such as a number, occur by chance.
        kept |= {piece.message} if found[max(found, key=len)] else set()
        lost += [] if all(found.values()) else [piece]
    trained = {n for n, one in enumerate(messages) if n >= trained_from and one["role"] == "assistant"}
    gone = next((shortened(piece.texts[0]) for piece in lost if piece.message in trained - kept), None)
    lost += [piece for piece in _tools(tools) if not _occurs(piece.texts[0], rendered)]
    left_out = {piece.what: shortened(piece.texts[0]) for piece in reversed(lost)}
    unread = next((name for name in options or () if template is not None and name not in template), None)
    if unread is not None:
        left_out["chat_template_kwargs"] = shortened(unread)
    return Audit(left_out, gone, spans)


def shortened(text: str) -> str:
    """Return the beginning of a text, as Python prints it."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _pieces(place: int, message: Mapping[str, Any]) -> Iterator[Piece]:
    role, content = message["role"], message.get("content") or ""
    for key in _REASONING:
        if isinstance(text := message.get(key), str) and text.strip():
            yield Piece("reasoning", (text.strip(),), place)
    if role == "assistant" and "</think>" in content:
        before, content = content.split("</think>", 1)
        if thought := before.split("<think>")[-1].strip():
            yield Piece("reasoning", (thought,), place)
    if text := content.strip():
        yield Piece(_NAMES.get(role, f"{role} message"), (text,), place)
    for call in message.get("tool_calls") or ():
        if texts := tuple(dict.fromkeys(_call_texts(call))):
            yield Piece("tool call", texts, place, in_order=False)


def _call_texts(call: Any) -> Iterator[str]:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    if isinstance(function, Mapping):
        yield from _leaves(function.get("name"))
        arguments = function.get("arguments")
        if isinstance(arguments, str):  # JSON text, which a template may take apart
            with suppress(ValueError):
                arguments = json.loads(arguments)
        yield from _leaves(arguments)


def _leaves(value: Any) -> Iterator[str]:
    """Texts, keys and whole numbers of a JSON value; how others are written is the template's own."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(key)
            yield from _leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, str | int) and not isinstance(value, bool) and (text := str(value).strip()):
        yield text


def _tools(tools: Any) -> Iterator[Piece]:
    for tool in tools or ():
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if isinstance(name := function.get("name"), str) and name:
            yield Piece("tools", (name,))


def _occurs(text: str, rendered: str, copies: int = 1) -> bool:
    """Whether a text occurs as it stands, inside JSON, or with other white space."""
    for escaped in (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]):
        if rendered.count(escaped) >= copies:
            return True
    return "".join(rendered.split()).count("".join(text.split())) >= copies
