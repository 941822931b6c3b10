"""How ready a model is for reinforcement learning: what groups of its own answers hold, from the samples at hand.

A step of GRPO compares the answers to one prompt with each other. So what counts is what a group of k answers is like,
and n ≥ k samples tell without bias: each figure here is the mean over all ways to draw k of the n.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError
from ballast.evaluation import likelihood, metrics
from ballast.evaluation.scoring import sequence_statistics
from ballast.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from ballast.evaluation.metrics import Estimate
    from ballast.evaluation.tasks import ReadinessTask

Rows = Sequence[Mapping[str, Any]]

COLUMNS = {"demonstrations": ("prompt", "completion"), "forgetting": ("text",)}
"""What the rows beside the prompts must have."""


def mixed_share(scores: Sequence[float], k: int) -> float:
    """Return the share of groups of `k` drawn from the scores of one prompt whose rewards are not all equal.

    ``1 − Σ_v C(n_v, k) / C(n, k)`` over the n_v samples with score v: unbiased for the chance that k fresh answers
    differ in reward, which is ``1 − p^k − (1 − p)^k`` for right answers with probability p. Equal rewards have equal
    advantages, so such a group has no gradient.

    Raises:
        BallastError: unless 1 ≤ k ≤ number of scores.

    >>> mixed_share([1.0, 0.0, 0.0, 0.0], 2)
    0.5
    """
    _check(len(scores), k)
    return 1.0 - sum(math.comb(count, k) for count in Counter(scores).values()) / math.comb(len(scores), k)


def distinct_answers(texts: Sequence[str], k: int) -> float:
    """Return the mean number of different texts among `k` drawn from the answers to one prompt.

    ``Σ_texts 1 − C(n − n_text, k) / C(n, k)``, unbiased for k fresh answers; texts that differ in white space alone are
    one.

    Raises:
        BallastError: unless 1 ≤ k ≤ number of texts.

    >>> distinct_answers(["a", "a ", "b"], 3)
    2.0
    """
    _check(len(texts), k)
    counts = Counter(" ".join(text.split()) for text in texts).values()
    return sum(metrics.pass_at_k(len(texts), count, k) for count in counts)


def groups(items: Rows, k: int, *, seed: int = 0) -> dict[str, Estimate]:
    """Return ``mixed@k`` and ``distinct@k`` over prompts, from the items of a task that sampled answers."""
    mixed = [mixed_share(item["scores"], k) for item in items]
    distinct = [distinct_answers([one["text"] for one in item["completions"]], k) for item in items]
    return {f"mixed@{k}": metrics.mean(mixed, seed=seed), f"distinct@{k}": metrics.mean(distinct, seed=seed)}


def spent(items: Rows) -> dict[str, int]:
    """Return how many tokens were generated."""
    return {"generated_tokens": sum(one["tokens"] for item in items for one in item["completions"])}


def check_beside(beside: Mapping[str, Rows]) -> None:
    """Refuse demonstrations and texts that lack their columns.

    Raises:
        BallastError: naming the option and the row.
    """
    for name, rows in beside.items():
        for index, row in enumerate(rows):
            for column in COLUMNS[name]:
                if not row.get(column):
                    raise BallastError(
                        f"{name}: row {index + 1}: no {column!r} (columns: {', '.join(map(str, row))}); name others in "
                        f"a task of kind readiness, or leave {name} out of it"
                    )


def beside(
    task: ReadinessTask, model: Any, tokenizer: Any, base: Any, rows: Mapping[str, Rows], ranks: Ranks = ALONE
) -> tuple[dict[str, Estimate], dict[str, int]]:
    """Return what the model is like on text that it did not write, in nats per token, and the number of rows.

    ``demonstrations_nll`` and, with a base, ``demonstrations_kl`` = KL(model‖base) where it was taught;
    ``forgetting`` = negative log-likelihood of texts that it was not taught.
    """
    measured: dict[str, Estimate] = {}
    if "demonstrations" in rows:
        reference = base if task.base_kl else None
        measured |= _demonstrations(task, model, tokenizer, reference, rows["demonstrations"], ranks)
    if "forgetting" in rows:
        found = likelihood.text_likelihood(
            model, tokenizer, rows["forgetting"], batch_tokens=task.batch_tokens, seed=task.seed, ranks=ranks
        )
        measured["forgetting"] = found.nll
    return measured, {f"{name}_rows": len(some) for name, some in rows.items()}


def _demonstrations(
    task: ReadinessTask, model: Any, tokenizer: Any, base: Any, rows: Rows, ranks: Ranks
) -> dict[str, Estimate]:
    try:
        sequences = likelihood.completion_sequences(model, tokenizer, rows)
    except BallastError as error:
        raise BallastError(f"demonstrations: {error}") from error
    fields = ("logprob",) if base is None else ("logprob", "kl")
    values = sequence_statistics(model, sequences, fields, base=base, batch_tokens=task.batch_tokens, ranks=ranks)
    tokens = [len(sequence.targets) for sequence in sequences]
    sums = {name: [float(one[name].sum(dtype="float64")) for one in values] for name in fields}
    measured = {"demonstrations_nll": metrics.token_nll([-one for one in sums["logprob"]], tokens, seed=task.seed)}
    if base is not None:
        measured["demonstrations_kl"] = metrics.token_nll(sums["kl"], tokens, seed=task.seed)
    return measured


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise BallastError(f"groups of {k} from {n} samples: k must lie between 1 and the number of samples")
