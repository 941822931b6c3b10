"""Likelihood of given text, and distance to the base model on given tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ballast.data.render import Rendered, conversation, encode, render_chat, template_options
from ballast.errors import BallastError
from ballast.evaluation.generation import encode_prompt
from ballast.evaluation.metrics import Estimate, bits_per_character, token_nll
from ballast.evaluation.scoring import (
    BATCH_TOKENS,
    Base,
    ScoredSequence,
    sequence_statistics,
)
from ballast.limits import check_length, context_length
from ballast.protocols import Model, Progress, Tokenizer
from ballast.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds held-out text.

    Attributes:
        nll: nats per token.
        bits_per_character: bits per character of the scored text.
        perplexity: exp of `nll`, with its interval.
        rows, tokens, characters: what was scored.
        unscored_tokens: first tokens of texts that no special token precedes, so nothing predicts them.
    """

    nll: Estimate
    bits_per_character: Estimate
    perplexity: Estimate
    rows: int
    tokens: int
    characters: int
    unscored_tokens: int


@dataclass(frozen=True)
class Divergence:
    """KL(model‖base) over the full vocabulary and the model's entropy, both in nats per token."""

    kl: Estimate
    entropy: Estimate
    tokens: int


def windows(ids: Sequence[int], context: int, *, stride: int | None = None) -> list[ScoredSequence]:
    """Cut a text into windows of at most `context` tokens that together score every token but the first exactly once.

    Every window after the first has at least `context − stride` tokens before the tokens it scores.

    Raises:
        BallastError: if the stride does not lie between 1 and context − 1.

    >>> [(w.ids, w.start) for w in windows((1, 2, 3, 4, 5), 4, stride=2)]
    [((1, 2, 3, 4), 1), ((2, 3, 4, 5), 3)]
    """
    stride = context // 2 if stride is None else stride
    if not 1 <= stride < context:
        raise BallastError(f"stride = {stride}: must lie between 1 and the context of {context} tokens less 1")
    ids = tuple(ids)
    if len(ids) < 2:
        return []
    cut = [ScoredSequence(ids[:context], 1)]
    scored = min(context, len(ids))
    while scored < len(ids):
        end = min(scored + stride, len(ids))
        begin = end - context
        cut.append(ScoredSequence(ids[begin:end], scored - begin))
        scored = end
    return cut


def text_likelihood(
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
    *,
    column: str = "text",
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Likelihood:
    """Return the likelihood of the rows' text, tokenised with the tokenizer's own special tokens.

    A text longer than the context is read through overlapping windows; no token is dropped or counted twice.

    Args:
        context: window length in tokens; None takes the model's context.
        stride: tokens scored by every window after the first; None takes half the context.
        seed: of the bootstrap behind the intervals, which are over rows.
        ranks: who shares the batches.

    Raises:
        BallastError: if a row has no text, or no row has a token to score.
    """
    cut = text_windows(model, tokenizer, rows, column=column, context=context, stride=stride)
    scores = sequence_statistics(model, cut.pieces, batch_tokens=batch_tokens, progress=progress, ranks=ranks)
    nll, tokens = _by_owner([-one["logprob"].sum(dtype=np.float64) for one in scores], cut.pieces, cut.owners)
    return _likelihood(nll, tokens, cut.characters, cut.unscored_tokens, seed)


@dataclass(frozen=True)
class TextWindows:
    """Texts cut to the context: windows, the row each comes from, scored characters by row, unscored first tokens."""

    pieces: tuple[ScoredSequence, ...]
    owners: tuple[int, ...]
    characters: np.ndarray
    unscored_tokens: int


def text_windows(
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
    *,
    column: str = "text",
    context: int | None = None,
    stride: int | None = None,
) -> TextWindows:
    """Tokenise texts and cut them into windows; see `text_likelihood` for the arguments.

    Raises:
        BallastError: if a row has no text, or no row has a token to score.
    """
    context = min(filter(None, (context, context_length(model))), default=None)
    pieces: list[ScoredSequence] = []
    owners: list[int] = []
    characters = np.zeros(len(rows))
    unscored = 0
    for index, row in enumerate(rows):
        text = _text(row, column, index)
        ids = tokenizer(text=text, verbose=False)["input_ids"]
        cut = windows(ids, context or max(len(ids), 2), stride=stride)
        headless = bool(ids) and ids[0] not in tokenizer.all_special_ids
        unscored += headless
        characters[index] = len(text) - (len(tokenizer.decode(ids[:1])) if headless else 0)
        pieces += cut
        owners += [index] * len(cut)
    if not pieces:
        raise BallastError("no row has a token that another one precedes: there is nothing to score")
    return TextWindows(tuple(pieces), tuple(owners), characters, unscored)


def _by_owner(
    values: Sequence[float], sequences: Sequence[ScoredSequence], owners: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of values and of scored tokens, one entry per row."""
    rows = max(owners) + 1
    tokens = [len(sequence.targets) for sequence in sequences]
    return np.bincount(owners, values, rows), np.bincount(owners, tokens, rows).astype(int)


def completion_sequences(
    model: Model, tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], *, append_end: bool = True
) -> list[ScoredSequence]:
    """Return demonstrations {prompt, completion} as sequences whose completion tokens are scored.

    The completion starts where the ids of prompt and of prompt + completion part, and ends with the end token, as
    in fine-tuning.

    Raises:
        BallastError: naming a row without the columns, without scored tokens, or longer than the model's context.
    """
    context = context_length(model)
    sequences = []
    for index, row in enumerate(rows):
        missing = [name for name in ("prompt", "completion") if name not in row]
        if missing:
            raise BallastError(f"row {index + 1}: no column {missing[0]!r} (columns: {', '.join(map(str, row))})")
        try:
            prompt, ids = _demonstration(tokenizer, row, append_end)
        except BallastError as error:
            raise BallastError(f"row {index + 1}: {error}") from error
        start = common_prefix(prompt, ids)
        if start == 0 or start >= len(ids):
            raise BallastError(f"row {index + 1}: the completion has no token that the prompt precedes")
        check_length(f"row {index + 1}", len(ids), context)
        sequences.append(ScoredSequence(ids, start))
    return sequences


def kl_to_base(
    model: Model,
    base: Model | Base,
    sequences: Sequence[ScoredSequence],
    *,
    owners: Sequence[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Divergence:
    """Return the mean full-vocabulary KL(model‖base) and entropy on the scored tokens, in nats per token.

    On demonstrations (`completion_sequences`) it says how far the model moved where it was taught; on its own samples
    it estimates the KL divergence between the two policies.

    Args:
        base: the model before training, or an object with ``hidden(**inputs)`` and ``head`` (`ballast.reference`).
        owners: row that each sequence comes from, where rows have several; intervals are over rows.
        seed: of the bootstrap behind the intervals.
        ranks: who shares the batches.

    Raises:
        BallastError: if there is no sequence, or one is longer than the model's context.
    """
    if not sequences:
        raise BallastError("no sequence to compare the model with its base on")
    fields = ("kl", "entropy")
    scores = sequence_statistics(
        model, sequences, fields, base=base, batch_tokens=batch_tokens, progress=progress, ranks=ranks
    )
    owners = range(len(sequences)) if owners is None else owners
    estimated = {}
    for name in fields:
        sums, tokens = _by_owner([one[name].sum(dtype=np.float64) for one in scores], sequences, owners)
        estimated[name] = token_nll(sums[tokens > 0], tokens[tokens > 0], seed=seed)
    return Divergence(**estimated, tokens=sum(len(sequence.targets) for sequence in sequences))


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the number of leading ids that both have in common."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _demonstration(tokenizer: Tokenizer, row: Mapping[str, Any], append_end: bool) -> tuple[tuple[int, ...], ...]:
    messages = conversation({name: row[name] for name in ("prompt", "completion")})
    if messages is not None:
        whole = render_chat(messages, tokenizer, template_options(row))
    else:
        completion, end = row["completion"], (tokenizer.eos_token or "") if append_end else ""
        whole = Rendered(row["prompt"] + completion + ("" if completion.endswith(end) else end), special=True)
    return encode_prompt(tokenizer, row), tuple(encode([whole], tokenizer)[0].ids)


def _text(row: Mapping[str, Any], column: str, index: int) -> str:
    text = row.get(column)
    if not isinstance(text, str):
        found = f"a {type(text).__name__}" if column in row else f"absent (columns: {', '.join(map(str, row))})"
        raise BallastError(f"row {index + 1}: {column!r} must be text, it is {found}")
    return text


def _likelihood(nll: np.ndarray, tokens: np.ndarray, characters: np.ndarray, unscored: int, seed: int) -> Likelihood:
    characters = characters[: len(tokens)]
    scored = tokens > 0
    per_token = token_nll(nll[scored], tokens[scored], seed=seed)
    with np.errstate(over="ignore"):
        low, high = (None if bound is None else float(np.exp(bound)) for bound in (per_token.low, per_token.high))
        perplexity = replace(per_token, value=float(np.exp(per_token.value)), low=low, high=high)
    return Likelihood(
        nll=per_token,
        bits_per_character=bits_per_character(nll[scored], characters[scored], seed=seed),
        perplexity=perplexity,
        rows=int(scored.sum()),
        tokens=int(tokens.sum()),
        characters=int(characters[scored].sum()),
        unscored_tokens=unscored,
    )
