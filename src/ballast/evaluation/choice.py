"""Multiple choice by the log-likelihood of every option."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ballast.errors import BallastError, suggest
from ballast.evaluation.generation import encode_prompt
from ballast.evaluation.likelihood import common_prefix
from ballast.evaluation.scoring import BATCH_TOKENS, ScoredSequence, sequence_statistics
from ballast.limits import context_length
from ballast.protocols import Model, Progress, Tokenizer
from ballast.ranks import ALONE, Ranks

NORMALISATIONS = ("sum", "token", "character")
"""Log-likelihood of an option: as it is, per token, per character."""


@dataclass(frozen=True)
class Question:
    """One row, resolved: option labels and texts in order, and the index of the right one."""

    text: str
    labels: tuple[str, ...]
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceScore:
    """Scores of one question: `loglik[normalisation]` has one value per option, in nats; None when over-long."""

    question: Question
    loglik: dict[str, tuple[float, ...]] | None

    def picked(self, normalisation: str) -> int:
        """Return the index of the likeliest option; of equal ones the first."""
        assert self.loglik is not None
        return int(np.argmax(self.loglik[normalisation]))


def _text_style(question: Question) -> tuple[str, list[str]]:
    return f"{question.text}\nAnswer:", [f" {option}" for option in question.options]


def _letter_style(question: Question) -> tuple[str, list[str]]:
    listed = "\n".join(f"{label}. {text}" for label, text in zip(question.labels, question.options, strict=True))
    return f"{question.text}\n{listed}\nAnswer:", [f" {label}" for label in question.labels]


STYLES: dict[str, Callable[[Question], tuple[str, list[str]]]] = {"letter": _letter_style, "text": _text_style}
"""``text``: the option's words follow the question. ``letter``: options are listed, their label follows."""


def question(row: Mapping[str, Any]) -> Question:
    """Return the row's question with options in order (a dict's own labels, or A, B, … for a list) and the answer.

    The answer is `answer_idx` (a label, or an index into the list), or else `answer` (a label or an option's text).

    Raises:
        BallastError: if something is missing, the answer fits no option or several, or `answer` contradicts
            `answer_idx`.
    """
    for name in ("question", "options"):
        if row.get(name) is None:
            raise BallastError(f"no {name!r} (columns: {', '.join(map(str, row))})")
    options = row["options"]
    if isinstance(options, Mapping):
        offered = {str(label): str(text) for label, text in options.items() if text is not None}
        labels, texts = tuple(offered), tuple(offered.values())
    else:
        texts = tuple(map(str, options))
        labels = tuple(chr(ord("A") + i) for i in range(len(texts)))
    if len(texts) < 2:
        raise BallastError(f"{len(texts)} options: a choice needs at least two")
    return Question(str(row["question"]), labels, texts, _answer_index(row, labels, texts))


def _answer_index(row: Mapping[str, Any], labels: tuple[str, ...], texts: tuple[str, ...]) -> int:
    index, answer = row.get("answer_idx"), row.get("answer")
    if index is None and answer is None:
        raise BallastError("no 'answer_idx' or 'answer' says which option is right")
    given = answer if index is None else index
    if isinstance(given, int) and not isinstance(given, bool):
        places = [given] if 0 <= given < len(texts) else []
    else:
        places = [i for i, label in enumerate(labels) if label == str(given)]
        places = places or [i for i, text in enumerate(texts) if text == str(given)]
    if len(places) != 1:
        raise BallastError(f"the answer {given!r} names {len(places) or 'none'} of the options {', '.join(labels)}")
    place = places[0]
    if index is not None and isinstance(answer, str) and answer in texts and texts[place] != answer:
        raise BallastError(f"answer_idx {index!r} and answer {answer!r} name different options")
    return place


def choice_scores(
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
    *,
    style: str = "text",
    overlong: str = "refuse",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> list[ChoiceScore]:
    """Return the log-likelihood of every option of every row, as a continuation of the question.

    Args:
        style: one of `STYLES`.
        overlong: ``refuse`` rows of which an option exceeds the model's context, or ``skip`` them (`loglik` None).
        ranks: who shares the batches.

    Raises:
        BallastError: for an unknown style, a row that cannot be read, or over-long rows under ``refuse``.
    """
    if style not in STYLES:
        raise BallastError(f"unknown choice style {style!r}{suggest(style, list(STYLES))}")
    if overlong not in ("refuse", "skip"):
        raise BallastError(f"overlong = {overlong!r}: must be 'refuse' or 'skip'")
    questions = read_questions(rows)
    encoded = [_sequences(tokenizer, one, style) for one in questions]
    context = context_length(model)
    fits = [context is None or max(len(s.ids) for s in sequences) <= context for sequences in encoded]
    if overlong == "refuse" and not all(fits):
        first = fits.index(False)
        tokens = max(len(sequence.ids) for sequence in encoded[first])
        raise BallastError(
            f"row {first + 1}: {tokens} tokens exceed the context of {context} ({fits.count(False)} of {len(fits)} "
            "rows do): cut questions would be scored on what is left; set overlong='skip' to leave these rows out and "
            "count them"
        )
    flat = [sequence for sequences, fit in zip(encoded, fits, strict=True) if fit for sequence in sequences]
    scores = iter(sequence_statistics(model, flat, batch_tokens=batch_tokens, progress=progress, ranks=ranks))
    results = []
    for one, fit in zip(questions, fits, strict=True):
        logprobs = [next(scores)["logprob"].astype(np.float64) for _ in one.options] if fit else None
        results.append(ChoiceScore(one, None if logprobs is None else _loglik(one, logprobs, style)))
    return results


def read_questions(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """Return all rows as questions.

    Raises:
        BallastError: naming the first row that is none.
    """
    questions = []
    for index, row in enumerate(rows):
        try:
            questions.append(question(row))
        except BallastError as error:
            raise BallastError(f"row {index + 1}: {error}") from error
    return questions


def _loglik(one: Question, logprobs: list[np.ndarray], style: str) -> dict[str, tuple[float, ...]]:
    sums = [float(values.sum()) for values in logprobs]
    characters = [max(1, len(continuation.strip())) for continuation in STYLES[style](one)[1]]
    return {
        "sum": tuple(sums),
        "token": tuple(total / len(values) for total, values in zip(sums, logprobs, strict=True)),
        "character": tuple(total / length for total, length in zip(sums, characters, strict=True)),
    }


def _sequences(tokenizer: Tokenizer, one: Question, style: str) -> list[ScoredSequence]:
    """Return one sequence per option; scoring starts where its ids part from those of the prompt alone."""
    prompt, continuations = STYLES[style](one)
    prompt_ids = encode_prompt(tokenizer, prompt)
    sequences = []
    for continuation in continuations:
        ids = encode_prompt(tokenizer, prompt + continuation)
        sequences.append(ScoredSequence(ids, max(1, common_prefix(prompt_ids, ids))))
    return sequences
