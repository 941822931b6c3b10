"""Evaluation: generated answers with verifiers, multiple choice, code by its tests, likelihood of held-out text.

Names load on first use, so importing this package loads neither torch nor scipy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Completion": "generation",
    "Estimate": "metrics",
    "GenerationOptions": "generation",
    "ScoredBatch": "ballast.verifiers.registry",
    "ScoredSequence": "scoring",
    "Task": "tasks",
    "TaskResult": "tasks",
    "Verifier": "ballast.verifiers.registry",
    "bits_per_character": "metrics",
    "choice_scores": "choice",
    "evaluate": "evaluate",
    "evaluate_expression": "ballast.verifiers.expression",
    "generate": "generation",
    "kl_to_base": "likelihood",
    "mean": "metrics",
    "mean_pass_at_k": "metrics",
    "pass_at_k": "metrics",
    "proportion": "metrics",
    "run_program": "ballast.verifiers.code",
    "score_answers": "ballast.verifiers.registry",
    "sequence_statistics": "scoring",
    "text_likelihood": "likelihood",
    "token_nll": "metrics",
    "verifier": "ballast.verifiers.registry",
    "write_results": "tasks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(import_module(home if home.startswith("ballast.") else f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
