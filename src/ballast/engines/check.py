"""Whether a server has the model that it should have: asked once, before anything is sampled.

A server with other weights, another dtype or another tokenizer would answer as well, and only the figures would be
those of another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ballast.engines.base import Engine, Reply, Request
from ballast.errors import BallastError
from ballast.evaluation.generation import GenerationOptions, end_ids, generate
from ballast.evaluation.scoring import ScoredSequence, sequence_statistics
from ballast.evaluation.stopping import answer_text
from ballast.protocols import Model, Tokenizer

TOKENS = 32
"""Tokens of an answer that is checked."""
SEED = 20_000
SHOWN = 60
"""Characters of an answer that an error repeats."""


def check_logprobs(
    engine: Engine, model: Model, tokenizer: Tokenizer, requests: Sequence[Request], bound: float
) -> float:
    """Return the mean difference between the engine's log-probabilities and the model's, in nats per sampled token.

    Sampled at temperature 1, so that likely and unlikely tokens are among them.

    Raises:
        BallastError: it is beyond the bound, or the server's tokenizer writes the ids as another text.
    """
    options = GenerationOptions(max_new_tokens=TOKENS, temperature=1.0)
    asked = _spread(requests, options)
    replies = engine.sample(asked, options, sorted(end_ids(model, tokenizer)))
    for request, reply in zip(asked, replies, strict=True):
        _check_text(tokenizer, request, reply)
    pairs = [(one, reply) for one, reply in zip(asked, replies, strict=True) if reply.ids]
    size = len(getattr(tokenizer, "get_vocab", dict)())
    if wrong := [token for _, reply in pairs for token in reply.ids or () if token >= max(size, _rows(model))]:
        raise BallastError(f"engine: gives token {wrong[0]}, and the model here has no such row; {_REMEDY}")
    sequences = [ScoredSequence(one.ids + (reply.ids or ()), len(one.ids)) for one, reply in pairs]
    own = [float(value) for found in sequence_statistics(model, sequences) for value in found["logprob"]]
    theirs = [value for _, reply in pairs for value in reply.logprobs or ()]
    apart = sum(abs(a - b) for a, b in zip(own, theirs, strict=True)) / max(1, len(own))
    if not apart <= bound:
        raise BallastError(
            f"engine: {engine.model} gives sampled tokens a mean log-probability of {_mean(theirs):.3f} nats, the "
            f"model here {_mean(own):.3f}; by token they differ by {apart:.3f}, engine.bound is {bound:g}: {_REMEDY}"
        )
    return apart


_REMEDY = (
    "it serves other weights, in another dtype or with another tokenizer, whose answers would count as this model's; "
    "serve the model's own folder, or raise engine.bound for a coarser dtype"
)


def check_greedy(engine: Engine, model: Model, tokenizer: Tokenizer, requests: Sequence[Request]) -> float:
    """Return the share of prompts to which server and model give the same greedy answer, as text.

    Raises:
        BallastError: it is below a half.
    """
    options = GenerationOptions(max_new_tokens=8)
    asked = [replace(one, seed=0) for one in _distinct(requests)]
    replies = engine.sample(asked, options, sorted(end_ids(model, tokenizer)))
    own = [found[0].text for found in generate(model, tokenizer, [one.row for one in asked], options)]
    differing = [
        (mine, reply.text) for mine, reply in zip(own, replies, strict=True) if mine.strip() != reply.text.strip()
    ]
    if 2 * len(differing) > len(asked):
        mine, theirs = differing[0]
        raise BallastError(
            f"engine: to {len(differing)} of {len(asked)} prompts {engine.model} answers something else than the model "
            f"here, such as {_shown(theirs)} and not {_shown(mine)}: {_OTHER}"
        )
    return 1 - len(differing) / max(1, len(asked))


def check_draws(engine: Engine, requests: Sequence[Request], ends: Sequence[int]) -> None:
    """Refuse a server that draws nothing: at temperature 2 two seeds have the same answer to every prompt.

    Raises:
        BallastError: saying so.
    """
    options = GenerationOptions(max_new_tokens=8, temperature=2.0)
    asked = _distinct(requests)
    first, second = (
        [one.text for one in engine.sample([replace(one, seed=seed) for one in asked], options, ends)]
        for seed in (SEED, SEED + 1)
    )
    if first == second:
        raise BallastError(
            f"engine: {engine.model} answers the same from two seeds at temperature 2, so samples would all be one; "
            "let the server sample (transformers serve: do_sample in the model's generation_config.json), or ask at "
            "temperature 0"
        )


_OTHER = (
    "another model, or another chat template, whose answers would count as this model's; serve the model's own folder, "
    "or set engine.check=0 for a model that is not here"
)


def _check_text(tokenizer: Tokenizer, request: Request, reply: Reply) -> None:
    """Refuse a text that differs from ours in more than what is left of a character, or of a space, at an end."""
    own = answer_text(tokenizer, request.ids, reply.ids or ())
    if own.strip("\ufffd \n") != reply.text.strip("\ufffd \n"):
        raise BallastError(
            f"engine: writes the tokens of an answer as {_shown(reply.text)}, the tokenizer here as {_shown(own)}: it "
            "has another tokenizer, and stop strings and answers would be others; serve the model's own folder"
        )


def _spread(requests: Sequence[Request], options: GenerationOptions) -> list[Request]:
    return [replace(one, seed=SEED + place) for place, one in enumerate(_distinct(requests))]


def _distinct(requests: Sequence[Request]) -> list[Request]:
    return list({one.ids: one for one in requests}.values())


def _rows(model: Model) -> int:
    return int(getattr(model.config.get_text_config(), "vocab_size", 0))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
