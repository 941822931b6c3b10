"""The engine that a recipe names, opened for one model for as long as it samples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import ModelSection
from ballast.engines.options import DEFAULT, Engine, OpenAIEngine, TransformersEngine, VllmEngine, is_local
from ballast.files import temporary_folder
from ballast.protocols import Model, Tokenizer
from ballast.records.schema import EngineRecord
from ballast.records.write import disk_full_as_error

if TYPE_CHECKING:
    from ballast.engines import base
    from ballast.engines.sampling import Check, Draws
    from ballast.evaluation.generation import Sampler


COPY = "ballast-model-"
"""What the name of a model's copy for a server begins with."""


@dataclass(frozen=True)
class Opened:
    """An engine at work.

    Attributes:
        generate: what samples; None is our own loop.
        record: returns which engine that is, and what it was asked so far.
    """

    generate: Sampler | None
    record: Callable[[], EngineRecord]

    @property
    def identity(self) -> str:
        """What sampled, with its version, as folders keep it; empty for our own loop, which older ones had alone."""
        record = self.record()
        return "" if record.kind == DEFAULT else record.identity


@contextmanager
def opened(options: Engine, model: Model, tokenizer: Tokenizer, section: ModelSection | None) -> Iterator[Opened]:
    """Give the engine for a model, which it is checked against; a server that is started ends with the block.

    Args:
        section: where the model lies on disk, as it is in memory; None only for our own loop.

    Raises:
        BallastError: the server does not start, is away, or has another model.
    """
    with OPENERS[type(options)](options, model, tokenizer, section) as found:
        yield found


@contextmanager
def _transformers(
    options: TransformersEngine, model: Model, tokenizer: Tokenizer, section: ModelSection | None
) -> Iterator[Opened]:
    yield Opened(None, lambda: EngineRecord(kind=options.kind, version=metadata.version("transformers")))


@contextmanager
def _vllm(options: VllmEngine, model: Model, tokenizer: Tokenizer, section: ModelSection | None) -> Iterator[Opened]:
    from ballast.engines import check, vllm

    look = partial(check.check_logprobs, bound=options.bound)
    dtype = str(model.dtype).removeprefix("torch.")
    if options.base_url is not None:
        with vllm.opened(options, "", dtype) as engine:
            yield _sampling(engine, model, look, options.check)
        return
    assert section is not None
    with _folder(section) as folder, vllm.opened(options, folder, dtype) as engine:
        # The name that it was served under is of this start alone.
        yield _sampling(engine, model, look, options.check, named=False)


@contextmanager
def _openai(
    options: OpenAIEngine, model: Model, tokenizer: Tokenizer, section: ModelSection | None
) -> Iterator[Opened]:
    from ballast.engines import check, openai

    with openai.opened(options, tokenizer) as engine:
        found = _sampling(engine, model, check.check_greedy, options.check, draws=check.check_draws)
        yield Opened(found.generate, lambda: found.record().model_copy(update={"cost": engine.cost}))


@contextmanager
def filling(
    options: Engine, model: Model, tokenizer: Tokenizer, section: ModelSection | None, there: str | None
) -> Iterator[Opened]:
    """Give the engine that fills a folder; for one that is full already none is started.

    Args:
        there: identity of what filled it where it is full.
    """
    if there is None or is_local(options) or there.partition(" ")[0] != options.kind:
        with opened(options, model, tokenizer, section) as found:
            yield found
        return
    kind, _, version = there.partition(" ")
    yield Opened(_none_missing, lambda: EngineRecord(kind=kind, version=version or None))


def _none_missing(*_: Any, **__: Any) -> Any:
    raise AssertionError("the folder is full")


OPENERS: dict[type[Any], Callable[[Any, Model, Tokenizer, ModelSection | None], Any]] = {
    TransformersEngine: _transformers,
    VllmEngine: _vllm,
    OpenAIEngine: _openai,
}


def _sampling(
    engine: base.Engine, model: Model, look: Check, prompts: int, *, draws: Draws | None = None, named: bool = True
) -> Opened:
    from ballast.engines.sampling import Sampling

    sampling = Sampling(engine, model, look if prompts else None, prompts, draws if prompts else None)

    def record() -> EngineRecord:
        used = engine.usage
        return EngineRecord(
            kind=engine.kind,
            version=engine.version,
            model=engine.model if named else None,
            requests=used.requests,
            prompt_tokens=used.prompt_tokens,
            answer_tokens=used.answer_tokens,
            checked=sampling.checked,
        )

    return Opened(sampling.generate, record)


@contextmanager
def _folder(section: ModelSection) -> Iterator[str]:
    """Give a folder with the model as a server reads it: its own, or a copy with the adapter in the weights."""
    path = Path(section.path)
    if section.adapter is None and path.is_dir():
        yield str(path)
        return
    # It is as large as the model, so that what a killed command left is not let lie.
    with temporary_folder(COPY, tempfile.gettempdir()) as place:
        with disk_full_as_error(place):
            loaded: Any = models.load_model(section)
            if section.adapter is not None:
                loaded = loaded.merge_and_unload(safe_merge=True)
            loaded.save_pretrained(str(place))
            models.load_tokenizer(section).save_pretrained(str(place))
            del loaded
        yield str(place)


def line(record: EngineRecord) -> str | None:
    """Return what to say of an engine that was asked; None of our own loop."""
    if not record.requests:
        return None
    version = f" {record.version}" if record.version else ""
    named = f" ({record.model})" if record.model else ""
    cost = "" if record.cost is None else f", cost {record.cost:.4g}"
    return (
        f"engine: {record.kind}{version}{named}: {record.requests:,} requests, {record.prompt_tokens:,} prompt and "
        f"{record.answer_tokens:,} answer tokens{cost}; {_checked(record)}"
    )


def _checked(record: EngineRecord) -> str:
    if record.checked is None:
        return "not checked"
    if record.kind == "openai":
        return f"{record.checked:.0%} of the greedy answers that were checked are the model's own"
    return f"log-probabilities {record.checked:.2g} nats from the model's"
