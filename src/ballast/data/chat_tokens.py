"""What can be said of a chat once it is tokens: whose they are, whether answers are marked, and how a row ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ballast.data.audit import Audit, shortened
from ballast.data.render import Encoded

NO_END, OTHER_END, UNMARKED = "no end", "other end", "unmarked"
"""Keys beside the kinds of text that a template leaves out: answers that end without the tokenizer's end token, and
answers that are not marked as the assistant's where only that is trained."""
TEMPLATE = "template"
"""What the tokens belong to that are no message's."""


@dataclass(frozen=True)
class Chat:
    """A row of messages, what its template reads beside them, and what it made of them."""

    messages: list[dict[str, Any]]
    options: Mapping[str, Any]
    text: str
    arrived: Audit


def unended(chat: Chat, end: str | None, ends: frozenset[str]) -> dict[str, str]:
    """Return what follows a last answer in place of the end token, nothing where that follows."""
    last, spans = len(chat.messages) - 1, chat.arrived.spans
    if chat.messages[last]["role"] != "assistant" or not spans or spans[-1][0] != last:
        return {}
    tail = chat.text[spans[-1][2] :]
    if end and end in tail:
        return {}
    other = _first_of(ends, tail[:200])
    return {NO_END: shortened(chat.text[-40:])} if other is None else {OTHER_END: shortened(other)}


@lru_cache(maxsize=64)  # all rows of a template have the same few endings
def _first_of(tokens: frozenset[str], text: str) -> str | None:
    pieces = (text[start:end] for start in range(len(text)) for end in range(len(text), start, -1))
    return next((piece for piece in pieces if piece in tokens and piece.strip()), None)


def unmarked(chat: Chat, encoded: Encoded, mask: Sequence[int]) -> dict[str, str]:
    """Return the first text of the assistant that has no marked token before the next text begins."""
    spans = [*chat.arrived.spans, (-1, len(chat.text), len(chat.text))]
    for (place, start, end), (_, following, _) in pairwise(spans):
        if chat.messages[place]["role"] == "assistant":
            first = _token(encoded, range(start, end), 0)
            if 1 not in mask[first : _token(encoded, range(following, len(chat.text)), len(mask))]:
                return {UNMARKED: shortened(chat.text[start:end])}
    return {}


def tokens_by_role(chat: Chat, encoded: Encoded) -> dict[str, int]:
    """Return how many tokens the texts of each role have, and how many are the template's own."""
    counts: Counter[str] = Counter()
    for (place, _, _), (first, last) in zip(chat.arrived.spans, _spans(chat, encoded), strict=True):
        counts[chat.messages[place]["role"]] += last - first
    counts[TEMPLATE] = len(encoded.ids) - counts.total()
    return dict(counts)


def _spans(chat: Chat, encoded: Encoded) -> Iterator[tuple[int, int]]:
    """Yield the tokens ``(first, last + 1)`` of each text found, none of them twice."""
    taken = 0
    for _, start, end in chat.arrived.spans:
        first = max(_token(encoded, range(start, end), taken), taken)
        taken = max(_token(encoded, range(end - 1, start - 1, -1), first - 1) + 1, first)
        yield first, taken


def _token(encoded: Encoded, characters: Iterable[int], otherwise: int) -> int:
    tokens = map(encoded.token_at, characters)
    return next((token for token in tokens if token is not None), otherwise)
