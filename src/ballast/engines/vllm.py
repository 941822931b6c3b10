"""vLLM, asked in token ids: prompts go there and answers come back as they were sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import NonNegativeInt

from ballast.engines.base import Reply, Request, Usage
from ballast.engines.client import Client, Counts, Logprobs, Models, Read
from ballast.engines.options import VllmEngine
from ballast.engines.server import Server, served
from ballast.errors import BallastError
from ballast.evaluation.generation import GenerationOptions

LAST_SECONDS = 2.0
"""Seconds in which a server that no longer answers is waited for to have ended."""
PLAIN = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""What a server could take from the model's generation defaults, or its own, if it were left open."""


class Choice(Read):
    """An answer; fields that OpenAI's API has not are vLLM's."""

    text: str
    finish_reason: str
    token_ids: list[NonNegativeInt] | None = None
    prompt_token_ids: list[NonNegativeInt] | None = None
    logprobs: Logprobs | None = None


class Completion(Read):
    """A reply."""

    model: str
    choices: list[Choice]
    usage: Counts


class Version(Read):
    """What vLLM says at ``/version``."""

    version: str


class Vllm:
    """A vLLM server, see `ballast.engines.base.Engine`."""

    kind = "vllm"

    def __init__(self, client: Client, model: str, version: str) -> None:
        self.client, self.model, self.version = client, model, version

    @property
    def usage(self) -> Usage:
        return self.client.usage

    def sample(
        self,
        requests: Sequence[Request],
        options: GenerationOptions,
        ends: Sequence[int],
        done: Callable[[int], object] = lambda _: None,
    ) -> list[Reply]:
        settings = _settings(options, ends)

        def ask(request: Request) -> tuple[Reply, Counts]:
            body = {"model": self.model, "prompt": list(request.ids), "seed": request.seed, **settings}
            found = self.client.post("/completions", body, Completion)
            return _reply(self.client.place, found, request, self.model), found.usage

        def told(found: tuple[Reply, Counts], number: int) -> None:
            self.client.count(found[1])
            done(number)

        return [reply for reply, _ in self.client.each(ask, requests, told)]


def _settings(options: GenerationOptions, ends: Sequence[int]) -> dict[str, Any]:
    return {
        "max_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "stop": list(options.stop),
        # Our end tokens alone: a server adds those of the model's generation defaults otherwise.
        "stop_token_ids": list(ends),
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        **PLAIN,
    }


def _reply(place: str, found: Completion, request: Request, model: str) -> Reply:
    if found.model != model or len(found.choices) != 1:
        raise BallastError(
            f"{place}: was asked for one answer of {model!r} and gives {len(found.choices)} of {found.model!r}; "
            "correct engine.base_url"
        )
    one = found.choices[0]
    if one.token_ids is None or one.prompt_token_ids is None or one.logprobs is None:
        raise BallastError(
            f"{place}: gives no token ids or no log-probabilities, so an answer would be tokenised again, perhaps "
            "otherwise; serve with vLLM 0.10.2 or later, or take engine.kind=openai, which is asked in text"
        )
    if one.prompt_token_ids != list(request.ids):
        raise BallastError(
            f"{place}: read a prompt of {len(request.ids)} tokens as {len(one.prompt_token_ids)} others, so it would "
            "answer something else; serve without truncation"
        )
    if one.finish_reason not in ("stop", "length") or len(one.logprobs.token_logprobs) != len(one.token_ids):
        raise BallastError(
            f"{place}: ended an answer of {len(one.token_ids)} tokens by {one.finish_reason!r}, so it is none; see the "
            "server's own log"
        )
    return Reply(
        text=one.text,
        tokens=len(one.token_ids),
        ended=one.finish_reason == "stop",
        ids=tuple(one.token_ids),
        logprobs=tuple(one.logprobs.token_logprobs),
    )


@contextmanager
def opened(options: VllmEngine, folder: str, dtype: str) -> Iterator[Vllm]:
    """Give the server at ``base_url``, or one that is started on a model's folder for as long as the block lasts.

    Args:
        folder: of the model in transformers format; not read for a server that runs already.
        dtype: that a started server computes in, unless the options name one.

    Raises:
        BallastError: it does not start, cannot be reached, or has no such model.
    """
    if options.base_url is None:
        with served(options, folder, options.dtype or dtype) as server:
            yield from _connected(server.base_url, options, server.model, server)
    else:
        yield from _connected(options.base_url, options, options.model, None)


def _connected(base_url: str, options: VllmEngine, model: str | None, server: Server | None) -> Iterator[Vllm]:
    client = Client(base_url, options)
    try:
        if server is not None:
            server.wait()
        name = model_name(client, model)
        yield Vllm(client, name, client.get(client.root("/version"), Version).version)
    except BallastError as error:
        # A server that has just died takes a moment to be gone.
        if server is not None and (ended := server.ended(LAST_SECONDS)):
            raise BallastError(f"{ended} ({error})") from error
        raise
    finally:
        client.close()


def model_name(client: Client, wanted: str | None) -> str:
    """Return the name of the model that is asked.

    Raises:
        BallastError: the server has no such model, or several where none is named.
    """
    there = [one.id for one in client.get("/models", Models).data]
    if wanted is None and len(there) != 1:
        raise BallastError(f"{client.place}: has {len(there)} models ({', '.join(there)}); name one: engine.model")
    if wanted is not None and wanted not in there:
        raise BallastError(
            f"{client.place}: has no model {wanted!r}, only {', '.join(map(repr, there)) or 'none'}, so another would "
            "be measured; correct engine.model or engine.base_url"
        )
    return wanted or there[0]
