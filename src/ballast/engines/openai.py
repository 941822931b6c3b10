"""Any server that speaks OpenAI's API, asked in text: what it gives back has no token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ballast.data.render import TEMPLATE_OPTIONS, prompt_columns
from ballast.engines.base import Reply, Request, Usage
from ballast.engines.client import Client, Counts, Read
from ballast.engines.options import OpenAIEngine
from ballast.errors import BallastError
from ballast.evaluation.generation import GenerationOptions
from ballast.protocols import Tokenizer

ENDED = {"stop": True, "eos": True, "length": False, "max_tokens": False}
"""Reasons for the end of an answer that are known, and whether it ended by itself."""


class Message(Read):
    """What an assistant says; None where it says something else than text."""

    content: str | None = None


class Choice(Read):
    """An answer of either interface."""

    text: str | None = None
    message: Message | None = None
    finish_reason: str | None = None


class Completion(Read):
    """A reply of either interface."""

    choices: list[Choice]
    usage: Counts


class OpenAI:
    """A server of text, see `ballast.engines.base.Engine`."""

    kind = "openai"
    version = None

    def __init__(self, client: Client, options: OpenAIEngine, tokenizer: Tokenizer) -> None:
        self.client, self.options, self.model, self._tokenizer = client, options, options.model, tokenizer

    @property
    def usage(self) -> Usage:
        return self.client.usage

    @property
    def cost(self) -> float | None:
        """What the requests so far cost, None without a price."""
        price, used = self.options.price, self.usage
        if price is None:
            return None
        return (price.prompt * used.prompt_tokens + price.answer * used.answer_tokens) / 1e6

    def sample(
        self,
        requests: Sequence[Request],
        options: GenerationOptions,
        ends: Sequence[int],
        done: Callable[[int], object] = lambda _: None,
    ) -> list[Reply]:
        settings = _settings(options)
        path = "/chat/completions" if self.options.api == "chat" else "/completions"

        def ask(request: Request) -> tuple[Reply, Counts]:
            body = {"model": self.model, "seed": request.seed, **settings, **self._prompt(request)}
            found = self.client.post(path, body, Completion)
            return _reply(self.client.place, found), found.usage

        def told(found: tuple[Reply, Counts], number: int) -> None:
            self.client.count(found[1])
            done(number)

        return [reply for reply, _ in self.client.each(ask, requests, told)]

    def _prompt(self, request: Request) -> dict[str, Any]:
        row = prompt_columns(request.row if isinstance(request.row, Mapping) else {"prompt": request.row})
        prompt = row["prompt"]
        if self.options.api == "chat":
            if beside := [name for name in TEMPLATE_OPTIONS if name in row]:
                raise BallastError(
                    f"engine.api: chat has no {beside[0]!r}, which a row brings, so its prompt would be another; take "
                    "engine.api=completions, where the chat template of the tokenizer here writes it"
                )
            return {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)}
        # The server puts its own begin-of-text token before a text.
        if isinstance(prompt, str):
            return {"prompt": prompt}
        return {"prompt": self._tokenizer.decode(_without_begin(self._tokenizer, request.ids))}


def _without_begin(tokenizer: Tokenizer, ids: Sequence[int]) -> Sequence[int]:
    begin = getattr(tokenizer, "bos_token_id", None)
    return ids[1:] if begin is not None and ids[:1] == (begin,) else ids


def _settings(options: GenerationOptions) -> dict[str, Any]:
    stop = {"stop": list(options.stop)} if options.stop else {}
    settings = {"max_tokens": options.max_new_tokens, "temperature": options.temperature, "top_p": options.top_p}
    return {**settings, **stop}


def _reply(place: str, found: Completion) -> Reply:
    one = found.choices[0] if len(found.choices) == 1 else None
    text = None if one is None else one.text if one.message is None else one.message.content
    if one is None or text is None or one.finish_reason not in ENDED:
        reason = "no single answer" if one is None else f"no text (finish_reason {one.finish_reason!r})"
        raise BallastError(
            f"{place}: gives {reason} to a prompt, and a row without an answer would be scored as wrong; see whether "
            "the model answers in text, or take another engine.api"
        )
    return Reply(text=text, tokens=found.usage.completion_tokens, ended=ENDED[one.finish_reason])


@contextmanager
def opened(options: OpenAIEngine, tokenizer: Tokenizer) -> Iterator[OpenAI]:
    """Give the server at ``base_url``; whether it has the model, its first answer says: not every one lists its own.

    Raises:
        BallastError: the client is not installed, or the key not set.
    """
    client = Client(options.base_url, options)
    try:
        yield OpenAI(client, options, tokenizer)
    finally:
        client.close()
