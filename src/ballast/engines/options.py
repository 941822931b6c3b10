"""Which engine samples answers, and how it is asked; imports no torch, so that recipes are checked without it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ballast.errors import suggest
from ballast.options import Options, OptionsError, Text, Texts, Where

DEFAULT = "transformers"
URL = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
TECHNICAL = (
    *("command", "arguments", "environment", "start_seconds", "base_url", "key_variable"),
    *("concurrency", "requests_per_minute", "timeout", "retries", "check", "bound", "price"),
)
"""Options that say where and how fast answers are made, not which: a run may go on with others."""


class TransformersEngine(Options):
    """Our own loop over the model in this process."""

    owner: ClassVar[str] = "engine."

    kind: Literal["transformers"] = "transformers"
    """`transformers`: the model in this process. `vllm`: a vLLM server, started for each model or at `base_url`.
    `openai`: any server that speaks OpenAI's API, at `base_url`."""


class ServerOptions(Options):
    """What engines that are asked over HTTP have in common."""

    owner: ClassVar[str] = "engine."

    key_variable: Text | None = None
    """Environment variable that holds the API key; the key itself is in no recipe and no record."""
    concurrency: int = Field(64, ge=1)
    """Requests under way at a time; the server makes its batches of them."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Requests begun in a minute at most; none given does not wait."""
    timeout: float = Field(600.0, gt=0)
    """Seconds that one answer may take."""
    retries: int = Field(5, ge=0)
    """Further tries of a request after a lost connection, a time-out, or status 408, 409, 429 or 5xx; the waiting time
    is the server's `Retry-After`, else it doubles from half a second to eight."""
    check: int = Field(4, ge=0)
    """Prompts with which the server is checked before anything is sampled; 0 trusts it."""

    @field_validator("base_url", check_fields=False)
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not URL.fullmatch(value):
            raise ValueError(f"{value!r} is no address; write it as http://localhost:8000/v1")
        return value

    @field_validator("key_variable")
    @classmethod
    def _is_no_key(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            # Whoever writes the key itself must not find it in a log.
            raise ValueError("is no name of an environment variable; a key has no place in a recipe")
        return value


class VllmEngine(ServerOptions):
    """vLLM, asked in token ids."""

    kind: Literal["vllm"] = "vllm"
    """A vLLM server, started for each model or at `base_url`."""
    base_url: Text | None = None
    """Address of a server that runs already, such as `http://localhost:8000/v1`; none given starts one for each model
    that samples, on a free port of this machine, and stops it afterwards."""
    model: Text | None = None
    """Name of the model at `base_url`; none given takes the only one there."""
    command: Texts = ("vllm", "serve")
    """How a server is started, in an environment of its own: `[/path/to/vllm, serve]`. The model's folder and
    `arguments` are added."""
    arguments: Texts = ()
    """Further arguments of the server, such as `[--max-model-len, "4096", --gpu-memory-utilization, "0.5"]`."""
    environment: dict[Text, str] = Field(default_factory=dict)
    """Environment variables that the server is started with, beside those of this process."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype that a started server computes in; none given takes that of the model's weights in memory."""
    start_seconds: float = Field(1200.0, gt=0)
    """Seconds that a server has to start."""
    bound: float = Field(0.05, gt=0)
    """Largest mean difference between the engine's log-probabilities of sampled tokens and those of the model in this
    process, in nats, at which the check passes."""

    @model_validator(mode="after")
    def _one_server(self) -> VllmEngine:
        if problems := list(self._conflicts()):
            raise OptionsError(problems, self.owner)
        return self

    def _conflicts(self) -> Iterator[tuple[Where, str]]:
        started = ("command", "arguments", "environment", "dtype", "start_seconds")
        for key in started if self.base_url is not None else ():
            if key in self.model_fields_set:
                yield (key,), "would be ignored: the server at base_url runs already; leave one of the two out"
        if self.base_url is None and self.model is not None:
            yield (
                ("model",),
                "would be ignored: a server that is started has one model, the one that samples; leave it out",
            )
        if not self.command:
            yield ("command",), "is empty, so no server could be started; write [/path/to/vllm, serve]"
        for key in ("--port", "--host", "--served-model-name", "--dtype", "--generation-config"):
            if any(one == key or one.startswith(f"{key}=") for one in self.arguments):
                remedy = "set engine.dtype" if key == "--dtype" else "leave it out"
                yield ("arguments",), f"{key} is set by ballast, and one of the two would be ignored; {remedy}"


class PriceOptions(Options):
    """What a server charges, in any currency, for a million tokens."""

    prompt: float = Field(ge=0)
    """Of prompts."""
    answer: float = Field(ge=0)
    """Of answers."""


class OpenAIEngine(ServerOptions):
    """Any server that speaks OpenAI's API, asked in text."""

    kind: Literal["openai"] = "openai"
    """Any server that speaks OpenAI's API."""
    base_url: Text
    """Address of the server, with the version: `http://localhost:8000/v1`."""
    model: Text
    """Name of the model there."""
    api: Literal["completions", "chat"] = "completions"
    """`completions`: the text of the prompt, with the chat template of the tokenizer here. `chat`: messages, to which
    the server applies a template of its own; a prompt of text is one message of the user."""
    price: PriceOptions | None = None
    """What the server charges; the cost is then told and recorded."""
    timeout: float = Field(120.0, gt=0)
    """Seconds that one answer may take."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at a time."""


Engine = TransformersEngine | VllmEngine | OpenAIEngine
CLASSES: dict[str, type[Options]] = {
    "transformers": TransformersEngine,
    "vllm": VllmEngine,
    "openai": OpenAIEngine,
}


def _known(value: Any) -> Any:
    if value is None:
        return {"kind": DEFAULT}
    if isinstance(value, Mapping):
        kind = value.get("kind", DEFAULT)
        if kind not in CLASSES:
            raise OptionsError([(("kind",), f"{kind!r} is not allowed{suggest(str(kind), tuple(CLASSES))}")])
        return {**value, "kind": kind}
    return value


AnyEngine = Annotated[Engine, Field(discriminator="kind"), BeforeValidator(_known)]
"""The options of an engine, by its ``kind``."""


def is_local(options: Engine) -> bool:
    """Whether the model in this process samples."""
    return isinstance(options, TransformersEngine)


def gives_ids(options: Engine) -> bool:
    """Whether answers come as the token ids that were sampled."""
    return not isinstance(options, OpenAIEngine)


def is_fixed(options: Engine) -> bool:
    """Whether the engine has one model that is not ours to change."""
    return isinstance(options, OpenAIEngine) or (isinstance(options, VllmEngine) and options.base_url is not None)
