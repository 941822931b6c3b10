"""Evaluation: generated answers with verifiers, multiple choice, code by its tests, likelihood of held-out text.

Names load on first use, so importing this package loads neither torch nor scipy.
"""

from __future__ import annotations

from typing import Any

from ballast.lazy import on_use

_HOMES = {
    "Completion": "ballast.evaluation.generation",
    "Estimate": "ballast.evaluation.metrics",
    "GenerationOptions": "ballast.evaluation.generation",
    "ScoredBatch": "ballast.verifiers.registry",
    "ScoredSequence": "ballast.evaluation.scoring",
    "Task": "ballast.evaluation.tasks",
    "TaskResult": "ballast.evaluation.results",
    "Verifier": "ballast.verifiers.registry",
    "bits_per_character": "ballast.evaluation.metrics",
    "choice_scores": "ballast.evaluation.choice",
    "evaluate": "ballast.evaluation.run",
    "evaluate_expression": "ballast.verifiers.expression",
    "generate": "ballast.evaluation.generation",
    "kl_to_base": "ballast.evaluation.likelihood",
    "mean": "ballast.evaluation.metrics",
    "mean_pass_at_k": "ballast.evaluation.metrics",
    "pass_at_k": "ballast.evaluation.metrics",
    "proportion": "ballast.evaluation.metrics",
    "run_program": "ballast.verifiers.code",
    "score_answers": "ballast.verifiers.registry",
    "sequence_statistics": "ballast.evaluation.scoring",
    "text_likelihood": "ballast.evaluation.likelihood",
    "token_nll": "ballast.evaluation.metrics",
    "verifier": "ballast.verifiers.registry",
    "write_results": "ballast.evaluation.results",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    return on_use(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return __all__
