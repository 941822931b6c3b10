"""Verifiers: how right an answer is, by name, by expression, by mathematics, by the tests of a program.

Names load on first use.
"""

from __future__ import annotations

from typing import Any

from ballast.lazy import on_use

_HOMES = {
    "CodeLimits": "ballast.verifiers.code",
    "ScoredBatch": "ballast.verifiers.registry",
    "Verifier": "ballast.verifiers.registry",
    "check_rows": "ballast.verifiers.registry",
    "evaluate_expression": "ballast.verifiers.expression",
    "run_program": "ballast.verifiers.code",
    "run_programs": "ballast.verifiers.code",
    "score_answers": "ballast.verifiers.registry",
    "verifier": "ballast.verifiers.registry",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    return on_use(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return __all__
