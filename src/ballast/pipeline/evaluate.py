"""`ballast evaluate`: models on the recipe's tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ballast.pipeline.prepare import Say
from ballast.recipe import Recipe


@dataclass(frozen=True)
class Measured:
    """One model's results on the recipe's tasks."""

    name: str
    results: tuple[Any, ...]

    def record(self, **extra: Any) -> dict[str, Any]:
        return {"model": self.name, **extra, "results": list(self.results)}


def measure(recipe: Recipe, model: Any, tokenizer: Any, *, name: str, say: Say) -> list[Measured]:
    if not recipe.evaluation.tasks:
        return []
    raise NotImplementedError


def run_evaluate(recipe: Recipe, *, models: tuple[str, ...] = (), say: Say = print) -> list[dict[str, Any]]:
    raise NotImplementedError
