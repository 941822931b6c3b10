"""An engine as a function with the signature of `ballast.evaluation.generation.generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from ballast.engines.base import Engine, Reply, Request
from ballast.errors import BallastError
from ballast.evaluation.generation import (
    Completion,
    GenerationOptions,
    Prompt,
    check_streams,
    encode_prompts,
    end_ids,
    read_completion,
)
from ballast.evaluation.stopping import before_stop, check_stop
from ballast.protocols import Model, Progress, Tokenizer
from ballast.ranks import ALONE, Ranks

Check = Callable[[Engine, Model, Tokenizer, Sequence[Request]], float]
"""Refuses a server of another model, by some requests; returns what it found."""
Draws = Callable[[Engine, Sequence[Request], Sequence[int]], None]


class Sampling:
    """Answers of an engine in place of our own loop's.

    Args:
        engine: the server.
        model: that it serves, here: its context, its end tokens, and what the server is checked against.
        check: looks at the server by its first prompts; None trusts it.
        prompts: how many of them.
        draws: refuses a server that does not sample, by the same; None trusts it.

    Attributes:
        checked: what the check found; None as long as there was none.
    """

    checked: float | None

    def __init__(
        self, engine: Engine, model: Model, check: Check | None, prompts: int, draws: Draws | None = None
    ) -> None:
        self.engine, self.checked = engine, None
        self._model, self._check, self._prompts, self._draws = model, check, prompts, draws

    def generate(
        self,
        model: Model,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        options: GenerationOptions | None = None,
        *,
        streams: Sequence[Sequence[int]] | None = None,
        progress: Progress | None = None,
        ranks: Ranks = ALONE,
    ) -> list[list[Completion]]:
        """As `ballast.evaluation.generation.generate`, the answers being the engine's.

        Raises:
            BallastError: as there, or what the engine raises; `model` is not the one that is served, or several
                processes ask.
        """
        if ranks.size > 1:
            raise BallastError(f"engine: {ranks.size} processes would each ask for the same answers; start one process")
        if model is not self._model:
            raise BallastError(
                "engine: serves one model, and a second one writes here (revise.reviser), whose texts would be the "
                "first one's; leave engine out"
            )
        options = options or GenerationOptions()
        streams = [(row,) for row in range(len(prompts))] if streams is None else streams
        check_streams(streams, len(prompts))
        check_stop(tokenizer, options.stop)
        encoded = encode_prompts(model, tokenizer, prompts, options.max_new_tokens)
        requests = [
            Request(ids, prompt, seed_of((options.seed, *stream, sample)))
            for ids, prompt, stream in zip(encoded, prompts, streams, strict=True)
            for sample in range(options.samples)
        ]
        ends = end_ids(model, tokenizer)
        self._look(model, tokenizer, requests, sorted(ends) if options.temperature else None)

        def done(number: int) -> None:
            if progress is not None:
                progress(number, len(requests))

        replies = self.engine.sample(requests, options, sorted(ends), done)
        answers = (
            _completion(tokenizer, request, reply, ends, options.stop)
            for request, reply in zip(requests, replies, strict=True)
        )
        return [list(islice(answers, options.samples)) for _ in prompts]

    def _look(
        self, model: Model, tokenizer: Tokenizer, requests: Sequence[Request], drawn: Sequence[int] | None
    ) -> None:
        """Check the server once, and once more where samples are drawn, `drawn` being the end tokens then."""
        some = list({one.ids: one for one in requests}.values())[: self._prompts]
        if self._check is not None and some:
            self.checked, self._check = self._check(self.engine, model, tokenizer, some), None
        if self._draws is not None and some and drawn is not None:
            self._draws(self.engine, some, drawn)
            self._draws = None


def seed_of(stream: Sequence[int]) -> int:
    """Return a seed of 31 bits that numbers name: what every server takes."""
    return int(np.random.SeedSequence(list(stream)).generate_state(1, np.uint32)[0] >> 1)


def _completion(
    tokenizer: Tokenizer, request: Request, reply: Reply, ends: set[int], stop: Sequence[str]
) -> Completion:
    if reply.ids is not None:
        return read_completion(tokenizer, request.ids, reply.ids, ends, stop)
    before = before_stop(reply.text, stop)
    text = reply.text if before is None else before
    return Completion(text=text, tokens=reply.tokens, ended=reply.ended or before is not None, ids=())
