"""Messages of a chat: what is wrong with one, and its content as plain text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ballast.errors import BallastError

Message = Mapping[str, Any]

_OURS = (
    *("add_generation_prompt", "continue_final_message", "conversation", "max_length", "padding", "return_tensors"),
    *("return_assistant_tokens_mask", "return_dict", "tokenize", "tokenizer_kwargs", "tools", "truncation"),
)
"""Arguments of ``apply_chat_template`` that decide what is trained."""


def kind(value: Any) -> str:
    """Return what a value is, in words."""
    names = {bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)


def text_problem(value: Any) -> str | None:
    """Return what keeps a value from being trained on as text, as the end of a sentence, or None."""
    if not isinstance(value, str):
        return f"is {kind(value)}, not text"
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at character {error.start + 1}, which no tokenizer can read"
    return None


def _content_problem(content: Any) -> str | None:
    if not isinstance(content, list):
        return text_problem(content)
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            other = repr(part.get("type")) if isinstance(part, Mapping) else kind(part)
            return f"has a part that is {other}, not 'text'; vision rows are not supported"
        if problem := text_problem(part.get("text")):
            return f"has a part whose 'text' {problem}"
    return None


def message_problem(message: Any) -> str | None:
    """Return what keeps a chat template from writing a message out, or None."""
    if not isinstance(message, Mapping):
        return f"a message is {kind(message)}, not an object with 'role' and 'content'"
    if not isinstance(message.get("role"), str):
        return f"a message's 'role' is {kind(message.get('role'))}, not text"
    if message.get("content") is None and message.get("tool_calls"):
        return None
    problem = _content_problem(message.get("content"))
    return problem and f"a message's 'content' {problem}"


def messages_problem(value: Any, column: str) -> str | None:
    """Return what is wrong with a list of messages, or None."""
    if not isinstance(value, list):
        return f"{column!r} is {kind(value)}, not a list of messages"
    if not value:
        return f"{column!r} is an empty list of messages"
    problem = next((found for found in map(message_problem, value) if found), None)
    return problem and f"{column!r}: {problem}"


def template_problem(row: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a row's ``tools`` and ``chat_template_kwargs``, or None."""
    try:
        tools = read_tools(row)
    except json.JSONDecodeError:
        return "'tools' is text, but no JSON"
    if tools is not None and not isinstance(tools, list):
        return f"'tools' is {kind(tools)}, not a list of tools"
    options = row.get("chat_template_kwargs")
    if options is not None and not isinstance(options, Mapping):
        return f"'chat_template_kwargs' is {kind(options)}, not an object"
    ours = next((name for name in options or () if name in _OURS), None)
    return ours and f"'chat_template_kwargs' may not set {ours!r}, which decides what is trained"


def read_tools(row: Mapping[str, Any]) -> Any:
    """Return a row's tools, which may be JSON text."""
    tools = row.get("tools")
    return json.loads(tools) if isinstance(tools, str) else tools


def last_text(answer: Any) -> str:
    """Return an answer's text: it itself, or the content of its last message."""
    return answer if isinstance(answer, str) else str(flat(answer[-1:])[0].get("content") or "")


def flat(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return messages whose content is plain text: of a list of text parts, the parts one after the other.

    Templates drop such a list, or write out how Python prints it.

    Raises:
        BallastError: a message cannot be written out, or has a part that is not text.
    """
    plain = []
    for message in messages:
        if problem := message_problem(message):
            raise BallastError(problem)
        content = message.get("content")
        joined = {"content": "".join(part["text"] for part in content)} if isinstance(content, list) else {}
        plain.append({**message, **joined})
    return plain
