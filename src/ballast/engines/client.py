"""Requests to a server that speaks OpenAI's API: many at a time, tried again, and read strictly."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt

from ballast.engines.base import Usage
from ballast.engines.options import ServerOptions
from ballast.errors import BallastError
from ballast.packages import refuse_without

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S", bound=BaseModel)
SHOWN = 200
"""Characters of what a server says that an error repeats."""


class Read(BaseModel):
    """Part of a reply; what is not read here may stand beside."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True)


class Counts(Read):
    """Tokens of a request, as the server counts them."""

    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class Logprobs(Read):
    """Log-probabilities of an answer's tokens."""

    token_logprobs: list[FiniteFloat]


class Listed(Read):
    """A model that a server has."""

    id: str


class Models(Read):
    """All of them."""

    data: list[Listed]


class RateLimit:
    """At most so many beginnings a minute, evenly spread; None does not wait. Safe to call from several threads."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next one may begin."""
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._gap
        time.sleep(max(0.0, mine - now))


class Client:
    """A server, and how it is asked.

    Args:
        base_url: its address, with the version.
        options: how many at a time, how often again, how long.

    Raises:
        BallastError: the package `openai` is not installed, or the variable of the key is not set.
    """

    def __init__(self, base_url: str, options: ServerOptions) -> None:
        refuse_without("openai", "engine", f"engine.kind: {getattr(options, 'kind', '')}", "engine=transformers")
        self.base_url, self.options, self.usage = base_url.rstrip("/"), options, Usage()
        self._rate = RateLimit(options.requests_per_minute)
        self._client = _client(self.base_url, options, _key(options))

    @property
    def place(self) -> str:
        """What errors call the server."""
        return f"engine: {self.base_url}"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, url: str, reads: type[S]) -> S:
        """Return what lies at an address, below the server's or absolute.

        Raises:
            BallastError: it cannot be had or read.
        """
        return self._read(lambda: self._client.get(url, cast_to=object), reads)

    def root(self, path: str) -> str:
        """Return the address of something beside the API, such as vLLM's ``/version``."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc}{path}"

    def post(self, path: str, body: Mapping[str, Any], reads: type[S]) -> S:
        """Return the reply to a request.

        Raises:
            BallastError: it is refused, overran its time, or cannot be read.
        """
        self._rate.wait()
        return self._read(lambda: self._client.post(path, body=dict(body), cast_to=object), reads)

    def count(self, counts: Counts) -> None:
        """Add a reply's tokens to the usage; from the thread that `each` runs in."""
        self.usage.requests += 1
        self.usage.prompt_tokens += counts.prompt_tokens
        self.usage.answer_tokens += counts.completion_tokens

    def each(self, ask: Callable[[T], R], items: Sequence[T], told: Callable[[R, int], object]) -> list[R]:
        """Return what `ask` returns for every item, `concurrency` at a time; the first error ends all.

        Args:
            told: called with each result as it comes and their number so far, from this thread.
        """
        found: dict[int, R] = {}
        pool = ThreadPoolExecutor(min(self.options.concurrency, max(1, len(items))), thread_name_prefix="engine")
        try:
            pending: dict[Future[R], int] = {pool.submit(ask, item): place for place, item in enumerate(items)}
            for future in as_completed(pending):
                place = pending[future]
                found[place] = future.result()
                told(found[place], len(found))
        except BaseException as error:
            # What is under way would hold up the end of this process for as long as an answer may take.
            pool.shutdown(wait=False, cancel_futures=True)
            self.close()
            if isinstance(error, BallastError):
                raise BallastError(f"{error} ({len(found):,} of {len(items):,} answers had come)") from error
            raise
        pool.shutdown()
        return [found[place] for place in range(len(items))]

    def _read(self, ask: Callable[[], object], reads: type[S]) -> S:
        import openai

        tries = f"after {counted(self.options.retries + 1)}"
        said: object = None
        try:
            said = ask()
            return reads.model_validate(said)
        except openai.APITimeoutError as error:
            raise BallastError(
                f"{self.place}: no answer within {self.options.timeout:g} seconds, {tries}; raise engine.timeout, or "
                "lower engine.concurrency"
            ) from error
        except openai.APIConnectionError as error:
            reason = error.__cause__ or error
            raise BallastError(
                f"{self.place}: cannot be reached, {tries} ({_line(reason)}); start the server, or correct "
                "engine.base_url; what is done stays"
            ) from error
        except openai.APIStatusError as error:
            raise BallastError(self._refusal(error, tries)) from error
        except (ValueError, RecursionError) as error:
            # Of pydantic, or of JSON that is none.
            raise BallastError(
                f"{self.place}: answers what is no reply of OpenAI's API ({_line(said or error)}); correct "
                "engine.base_url, which ends in /v1 as a rule"
            ) from error

    def _refusal(self, error: Any, tries: str) -> str:
        code, said = error.status_code, _line(error.response.text or error.response.reason_phrase)
        if code in (401, 403):
            named = self.options.key_variable
            remedy = f"look at the key in {named}" if named else "name the variable of a key: engine.key_variable"
            return f"{self.place}: lets nobody in without another key (status {code}: {said}); {remedy}"
        if code == 429:
            return (
                f"{self.place}: asks for fewer requests, {tries} (status 429: {said}); set engine.requests_per_minute, "
                "lower engine.concurrency, or raise engine.retries"
            )
        if code == 404:
            return f"{self.place}: has no such model or path (status 404: {said}); correct engine.model or base_url"
        return f"{self.place}: status {code}{f', {tries}' if code >= 500 else ''}: {said}; see the server's own log"


def _key(options: ServerOptions) -> str:
    if options.key_variable is None:
        return "none"
    key = os.environ.get(options.key_variable, "").strip()
    if not key:
        raise BallastError(key_problem(options.key_variable))
    return key


def key_problem(variable: str) -> str:
    """Return what to say where the variable of a key is not set."""
    return (
        f"engine.key_variable: {variable} is not set, so the server would let nobody in; export {variable}=…, or leave "
        "it out for a server without keys"
    )


def _client(base_url: str, options: ServerOptions, key: str) -> OpenAI:
    import openai

    return openai.OpenAI(base_url=base_url, api_key=key, timeout=options.timeout, max_retries=options.retries)


def counted(tries: int) -> str:
    """Return ``1 try``, or ``n tries``."""
    return "1 try" if tries == 1 else f"{tries} tries"


def _line(said: object) -> str:
    text = " ".join(str(said).split()) or type(said).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
