"""Answers revised before the last of them counts: how a model writes in the loop, and what draft and last answer score.

What counts is the last answer, never the best so far: whoever uses the model cannot tell which that is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ballast.evaluation import metrics
from ballast.evaluation.generation import Completion, GenerationOptions, Sampler, encode_rows, generate
from ballast.limits import context_length
from ballast.protocols import Model, Tokenizer
from ballast.ranks import ALONE, Ranks
from ballast.revise.loop import Asked, Revised, Version, revise, sampled
from ballast.revise.options import LABELS
from ballast.revise.templates import load_templates
from ballast.verifiers.registry import Verifier, score_answers

if TYPE_CHECKING:
    from ballast.evaluation.tasks import GenerateTask

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Writer:
    """A model that writes drafts, critiques or revisions.

    Attributes:
        options: how it samples; `samples` is 1.
        stream: names the random stream of a row's place and a step.
        ranks: who shares the batches.
    """

    model: Model
    tokenizer: Tokenizer
    options: GenerationOptions
    stream: Callable[[int, int], tuple[int, ...]] = lambda place, step: (step, place)
    generate: Sampler | None = None
    ranks: Ranks = ALONE

    def __call__(self, asked: Asked, step: int) -> list[Completion | None]:
        """Return what the model writes of each row, None where the context has no room for prompt and answer."""
        limit = context_length(self.model)
        sizes = [len(ids) for ids in encode_rows(self.tokenizer, [row for _, row in asked])]
        fits = [limit is None or size + self.options.max_new_tokens <= limit for size in sizes]
        some = [one for one, fit in zip(asked, fits, strict=True) if fit]
        streams = [self.stream(place, step) for place, _ in some]
        prompts = [row for _, row in some]
        given: dict[str, Any] = {"streams": streams, "ranks": self.ranks}
        write = self.generate or generate
        written = iter(write(self.model, self.tokenizer, prompts, self.options, **given) if some else ())
        return [next(written)[0] if fit else None for fit in fits]


@dataclass
class Judging:
    """A verifier asked by the loop, and how often it failed.

    Attributes:
        cut_off: whether an answer that has not ended is judged; else it scores 0.
        ranks: who shares the answers.
    """

    verify: Verifier | None
    cut_off: bool = False
    ranks: Ranks = ALONE
    errors: int = 0
    timeouts: int = 0

    def __call__(self, versions: Sequence[Version], rows: Rows) -> list[float | None]:
        """Return the score of each version, 0 … 1; None of all without a verifier."""
        if self.verify is None:
            return [None] * len(versions)
        judged = [one.ended or self.cut_off for one in versions]
        pairs = [(one.text, row) for one, row, asked in zip(versions, rows, judged, strict=True) if asked]
        scored = score_answers(self.verify, pairs, self.ranks)
        self.errors, self.timeouts = self.errors + scored.errors, self.timeouts + scored.timeouts
        scores = iter(scored.scores)
        return [next(scores) if asked else 0.0 for asked in judged]


def revise_drafts(
    task: GenerateTask,
    rows: Rows,
    drafts: Sequence[Completion],
    writer: tuple[Model, Tokenizer],
    judging: Judging,
    *,
    generate: Sampler | None = None,
) -> list[Revised]:
    """Return what becomes of a task's drafts by its ``revise``.

    Args:
        writer: the model that is measured, or the reviser, with its tokenizer; the ranks are those of `judging`.
        generate: what samples; None is our own loop.
    """
    assert task.revise is not None
    # Of five numbers, the last but one not 0: no draft's stream, (seed, row, sample), is among these.
    options = replace(task.generation(), temperature=task.revise.heat(task.temperature))
    named: dict[str, Any] = {"generate": generate, "ranks": judging.ranks}
    write = Writer(*writer, options, stream=lambda place, step: (place, step, 1), **named)
    templates = load_templates(task.revise)
    return revise(rows, [sampled(one) for one in drafts], task.revise, templates, write=write, judge=judging)


def revision_metrics(task: GenerateTask, revised: Sequence[Revised]) -> dict[str, metrics.Estimate]:
    """Return what draft and last answer score, and how often a revision mended or spoilt an answer.

    ``right_to_wrong`` and ``wrong_to_right`` are shares of all rows; right is a score of 1. With scores of 0 and 1
    accuracy is ``draft_accuracy − right_to_wrong + wrong_to_right``.
    """
    assert task.revise is not None
    drafts, last = [one.draft.reward or 0.0 for one in revised], [one.last.reward or 0.0 for one in revised]
    right = [(before >= 1, after >= 1) for before, after in zip(drafts, last, strict=True)]
    values: dict[str, Sequence[float]] = {
        "draft_accuracy": drafts,
        "oracle_accuracy" if task.revise.oracle else "accuracy": last,
        "right_to_wrong": [float(before and not after) for before, after in right],
        "wrong_to_right": [float(after and not before) for before, after in right],
        "revised": [float(one.last.text != one.draft.text) for one in revised],
        "draft_tokens": [one.draft.tokens for one in revised],
        "answer_tokens": [one.last.tokens for one in revised],
        "spent_tokens": [one.spent for one in revised],
    }
    return {name: metrics.mean(some, seed=task.seed) for name, some in values.items()}


def revision_counts(task: GenerateTask, revised: Sequence[Revised]) -> dict[str, int]:
    """Return how many last answers were cut off and how many rows had no room, and of a reviser its labels."""
    assert task.revise is not None
    said = Counter(one.label for one in revised)
    labels = {f"label_{label}": said[label] for label in LABELS} if task.revise.how == "reviser" else {}
    cut_off = sum(not one.last.ended for one in revised)
    return {"answers": len(revised), "cut_off": cut_off, "no_room": sum(one.no_room for one in revised), **labels}


def revision_item(row: Mapping[str, Any], revised: Revised) -> dict[str, Any]:
    """Return a row's record: the last answer as that of every task, then the versions before it."""
    kept = {name: row[name] for name in ("task_id", "answer") if name in row}
    names = ("text", "tokens", "ended", "reward", "feedback")
    versions = [{name: getattr(one, name) for name in names} for one in revised.versions]
    last = {name: versions[-1][name] for name in names[:3]}
    return {
        "prompt": row["prompt"],
        **kept,
        "completions": [last],
        "scores": [revised.last.reward or 0.0],
        "versions": versions,
        "label": revised.label,
    }
