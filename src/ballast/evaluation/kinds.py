"""The kinds of task: how each checks its rows, and what it measures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ballast.errors import BallastError
from ballast.evaluation import choice, harness, likelihood, metrics, readiness, revising
from ballast.evaluation.generation import Completion, Sampler, encode_prompts, generate, own_sequences
from ballast.evaluation.results import estimates
from ballast.evaluation.scoring import sequence_statistics
from ballast.evaluation.tasks import (
    ChoiceTask,
    CodeTask,
    GenerateTask,
    JudgedTask,
    LmEvalTask,
    NllTask,
    ReadinessTask,
    SampledTask,
)
from ballast.protocols import Progress
from ballast.ranks import ALONE, Ranks
from ballast.revise.templates import load_templates
from ballast.verifiers import code
from ballast.verifiers import registry as verifiers
from ballast.verifiers.options import judge

Rows = Sequence[Mapping[str, Any]]
Measured = tuple[dict[str, metrics.Estimate], dict[str, int], list[dict[str, Any]]]
"""Metrics and counts by name, and one JSON-able record per row."""


@dataclass(frozen=True)
class Context:
    """What a kind works with.

    Attributes:
        ranks: who shares the batches and answers of a task; each rank has the whole result.
    """

    model: Any
    tokenizer: Any
    base: Any
    progress: Progress | None
    beside: Mapping[str, Rows] = field(default_factory=dict)
    revisers: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    generate: Sampler | None = None
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Kind:
    """How a kind checks its rows before anything runs, and what it measures."""

    check: Callable[[Any, Rows], None]
    measure: Callable[[Any, Rows, Context], Measured]


def _check_generate(task: JudgedTask, rows: Rows) -> None:
    for index, row in enumerate(rows):
        if not isinstance(row.get("prompt"), (str, list, tuple)) or not row["prompt"]:
            raise BallastError(
                f"row {index + 1}: 'prompt' must be text or messages (columns: {', '.join(map(str, row))}); rename "
                "with `columns`"
            )
    verifiers.check_rows(_verifier(task), rows)


def _check_revised(task: GenerateTask, rows: Rows) -> None:
    _check_generate(task, rows)
    if task.revise is not None:
        load_templates(task.revise)


def _verifier(task: JudgedTask) -> verifiers.Verifier:
    return judge(task, task.verifier_seconds)


def _check_code(task: CodeTask, rows: Rows) -> None:
    code.require_permission(task.allow_code_execution, len(rows) * task.samples)
    code.check_rows(rows)
    code.check_limits(_code_limits(task))


def _code_limits(task: CodeTask) -> code.CodeLimits:
    return code.CodeLimits(seconds=task.code_seconds, memory_bytes=task.code_memory_mb * 2**20)


def _check_choice(task: ChoiceTask, rows: Rows) -> None:
    choice.read_questions(rows)


def _check_nll(task: NllTask, rows: Rows) -> None:
    column = "completion" if _are_demonstrations(rows) else "text"
    for index, row in enumerate(rows):
        if not row.get(column):
            raise BallastError(
                f"row {index + 1}: no {column!r} (columns: {', '.join(map(str, row))}); rename with `columns`"
            )


def _are_demonstrations(rows: Rows) -> bool:
    return "text" not in rows[0] and "completion" in rows[0]


def _measure_generate(task: JudgedTask, rows: Rows, context: Context) -> Measured:
    verify, ks = _verifier(task), [k for k in task.k if k > 1]
    measured, counts, items = _measure_judged(task, rows, context, verify)
    if verify.read is None or not ks:
        return measured, counts, items
    answers = [(one["text"], row) for row, item in zip(rows, items, strict=True) for one in item["completions"]]
    found = context.ranks.merge(verifiers.read_answers(verify, context.ranks.share(answers)))
    for place, item in enumerate(items):
        item["read"] = found[place * task.samples : (place + 1) * task.samples]
    return measured | {f"maj@{k}": _voted(items, k, task.seed) for k in ks}, counts, items


def _voted(items: Sequence[Mapping[str, Any]], k: int, seed: int) -> metrics.Estimate:
    return metrics.mean([metrics.maj_at_k(item["read"], item["scores"], k) for item in items], seed=seed)


def _measure_judged(task: JudgedTask, rows: Rows, context: Context, verify: verifiers.Verifier) -> Measured:
    completions, measured, counts = _answers(task, rows, context)
    flat = [(one.text, row) for row, answers in zip(rows, completions, strict=True) for one in answers]
    scored = verifiers.score_answers(verify, flat, context.ranks)
    counts |= {"verifier_errors": scored.errors, "verifier_timeouts": scored.timeouts}
    scores = [scored.scores[i : i + task.samples] for i in range(0, len(flat), task.samples)]
    items = [_item(row, answers, list(given)) for row, answers, given in zip(rows, completions, scores, strict=True)]
    return {**_score_metrics(task, scores), **measured}, counts, items


def _measure_revised(task: GenerateTask, rows: Rows, context: Context) -> Measured:
    if task.revise is None:
        return _measure_generate(task, rows, context)
    drafts = [answers[0] for answers in _answers(task, rows, context)[0]]
    writer = (context.model, context.tokenizer)
    if task.revise.reviser is not None:
        writer = context.revisers[task.revise.reviser]
    judging = revising.Judging(_verifier(task), cut_off=True, ranks=context.ranks)
    revised = revising.revise_drafts(task, rows, drafts, writer, judging, generate=context.generate)
    counts = revising.revision_counts(task, revised)
    counts |= {"verifier_errors": judging.errors, "verifier_timeouts": judging.timeouts}
    items = [revising.revision_item(row, one) for row, one in zip(rows, revised, strict=True)]
    return revising.revision_metrics(task, revised), counts, items


def _measure_readiness(task: ReadinessTask, rows: Rows, context: Context) -> Measured:
    measured, counts, items = _measure_judged(task, rows, context, _verifier(task))
    budget = {"budget_tokens": len(items) * task.samples * task.max_new_tokens}
    measured |= readiness.groups(items, task.group, seed=task.seed)
    beside, rows_beside = readiness.beside(
        task, context.model, context.tokenizer, context.base, context.beside, context.ranks
    )
    return measured | beside, {**counts, **budget, **readiness.spent(items), **rows_beside}, items


def _measure_code(task: CodeTask, rows: Rows, context: Context) -> Measured:
    completions, measured, counts = _answers(task, rows, context)
    programs = [code.assemble(row, one.text) for row, answers in zip(rows, completions, strict=True) for one in answers]
    outcomes = context.ranks.merge(
        code.run_programs(
            context.ranks.share(programs),
            _code_limits(task),
            allow_code_execution=task.allow_code_execution,
            workers=max(1, (os.cpu_count() or 1) // context.ranks.here),
            progress=context.progress,
        )
    )
    per_row = [outcomes[i : i + task.samples] for i in range(0, len(outcomes), task.samples)]
    scores = [tuple(float(one.passed) for one in some) for some in per_row]
    for status in ("timeout", "killed"):
        counts[f"programs_{status}"] = sum(one.status == status for one in outcomes)
    counts["programs_in_bwrap"] = sum(one.sandbox == "bwrap" for one in outcomes)
    items = [
        {**_item(row, answers, list(given)), "outcomes": [f"{one.status} {one.detail}".strip() for one in some]}
        for row, answers, given, some in zip(rows, completions, scores, per_row, strict=True)
    ]
    return {**_score_metrics(task, scores), **measured}, counts, items


def _answers(
    task: SampledTask, rows: Rows, context: Context
) -> tuple[list[list[Completion]], dict[str, metrics.Estimate], dict[str, int]]:
    """Return completions, metrics of the answers as text (length, entropy, KL to base), and counts."""
    given: dict[str, Any] = {"progress": context.progress, "ranks": context.ranks}
    completions = (context.generate or generate)(context.model, context.tokenizer, rows, task.generation(), **given)
    flat = [one for answers in completions for one in answers]
    measured = {
        "answer_tokens": metrics.mean([_mean(one.tokens for one in some) for some in completions], seed=task.seed)
    }
    counts = {"answers": len(flat), "cut_off": sum(not one.ended for one in flat)}
    if task.entropy or task.base_kl:
        encoded = encode_prompts(context.model, context.tokenizer, rows, task.max_new_tokens)
        fields = ("entropy", *(("kl",) if task.base_kl else ()))
        values = sequence_statistics(
            context.model,
            own_sequences(encoded, completions),
            fields,
            base=context.base if task.base_kl else None,
            batch_tokens=task.batch_tokens,
            ranks=context.ranks,
        )
        for name in fields:
            sums, tokens = _per_row([one[name].sum() for one in values], [one.tokens for one in flat], task.samples)
            measured[{"kl": "base_kl"}.get(name, name)] = metrics.token_nll(sums, tokens, seed=task.seed)
    return completions, measured, counts


def _per_row(sums: Sequence[float], tokens: Sequence[int], samples: int) -> tuple[list[float], list[int]]:
    starts = range(0, len(sums), samples)
    return [float(sum(sums[i : i + samples])) for i in starts], [sum(tokens[i : i + samples]) for i in starts]


def _score_metrics(task: SampledTask, scores: Sequence[Sequence[float]]) -> dict[str, metrics.Estimate]:
    """Return accuracy of single answers, or mean@n and pass@k of several; an answer passes with a score of 1."""
    if task.samples == 1:
        return {"accuracy": metrics.mean([given[0] for given in scores], seed=task.seed)}
    correct = [sum(score >= 1.0 for score in given) for given in scores]
    return {
        f"mean@{task.samples}": metrics.mean([_mean(given) for given in scores], seed=task.seed),
        **{f"pass@{k}": metrics.mean_pass_at_k(correct, task.samples, k, seed=task.seed) for k in task.k},
    }


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def _item(row: Mapping[str, Any], answers: Sequence[Completion], scores: list[float]) -> dict[str, Any]:
    kept = {name: row[name] for name in ("task_id", "answer") if name in row}
    completions = [{"text": one.text, "tokens": one.tokens, "ended": one.ended} for one in answers]
    return {"prompt": row["prompt"], **kept, "completions": completions, "scores": scores}


def _measure_choice(task: ChoiceTask, rows: Rows, context: Context) -> Measured:
    scored = choice.choice_scores(
        context.model,
        context.tokenizer,
        rows,
        style=task.style,
        overlong=task.overlong,
        batch_tokens=task.batch_tokens,
        progress=context.progress,
        ranks=context.ranks,
    )
    kept = [one for one in scored if one.loglik is not None]
    names = {"sum": "accuracy", "token": "accuracy_per_token", "character": "accuracy_per_character"}
    measured = {
        names[by]: metrics.proportion(sum(one.picked(by) == one.question.answer for one in kept), len(kept))
        for by in choice.NORMALISATIONS
    }
    measured["chance"] = metrics.mean([1 / len(one.question.options) for one in kept], seed=task.seed)
    items = [
        {"question": one.question.text, "answer": one.question.labels[one.question.answer], "loglik": one.loglik}
        for one in scored
    ]
    return measured, {"overlong": len(scored) - len(kept)}, items


def _measure_nll(task: NllTask, rows: Rows, context: Context) -> Measured:
    if _are_demonstrations(rows):
        return _measure_demonstrations(task, rows, context)
    found = likelihood.text_likelihood(
        context.model,
        context.tokenizer,
        rows,
        context=task.context,
        stride=task.stride,
        batch_tokens=task.batch_tokens,
        seed=task.seed,
        progress=context.progress,
        ranks=context.ranks,
    )
    counts = {"tokens": found.tokens, "characters": found.characters, "unscored_tokens": found.unscored_tokens}
    measured = estimates(found)
    if task.base_kl:
        cut = likelihood.text_windows(context.model, context.tokenizer, rows, context=task.context, stride=task.stride)
        measured |= _divergence(task, cut.pieces, context, cut.owners)
    return measured, counts, []


def _measure_demonstrations(task: NllTask, rows: Rows, context: Context) -> Measured:
    sequences = likelihood.completion_sequences(context.model, context.tokenizer, rows)
    values = sequence_statistics(
        context.model,
        sequences,
        ("logprob", "entropy"),
        batch_tokens=task.batch_tokens,
        progress=context.progress,
        ranks=context.ranks,
    )
    tokens = [len(sequence.targets) for sequence in sequences]
    measured = {
        "nll": metrics.token_nll([-float(one["logprob"].sum()) for one in values], tokens, seed=task.seed),
        "entropy": metrics.token_nll([float(one["entropy"].sum()) for one in values], tokens, seed=task.seed),
    }
    if task.base_kl:
        measured |= _divergence(task, sequences, context)
    return measured, {"tokens": sum(tokens)}, []


def _check_lm_eval(task: LmEvalTask, rows: Rows) -> None:
    """Its rows are the harness's own: what cannot be asked was refused when they were read."""


def _measure_lm_eval(task: LmEvalTask, rows: Rows, context: Context) -> Measured:
    return context.ranks.first(lambda: harness.measure(task, context.model, context.tokenizer, context.progress))


def _divergence(task: NllTask, sequences: Any, context: Context, owners: Any = None) -> dict[str, metrics.Estimate]:
    found = likelihood.kl_to_base(
        context.model,
        context.base,
        sequences,
        owners=owners,
        batch_tokens=task.batch_tokens,
        seed=task.seed,
        ranks=context.ranks,
    )
    return {"base_kl": found.kl, "entropy": found.entropy}


KINDS: dict[str, Kind] = {
    "choice": Kind(_check_choice, _measure_choice),
    "code": Kind(_check_code, _measure_code),
    "generate": Kind(_check_revised, _measure_revised),
    "lm-eval": Kind(_check_lm_eval, _measure_lm_eval),
    "nll": Kind(_check_nll, _measure_nll),
    "readiness": Kind(_check_generate, _measure_readiness),
}
