"""What to type next, once a comparison has found what to use. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ballast.compare.plan import has_length, label_of
from ballast.config.recipe import Recipe
from ballast.config.sections import MethodSection
from ballast.records.folder import BEFORE
from ballast.records.summary import Row, Summary


def next_steps(summary: Summary, recipe: Recipe, words: Sequence[str]) -> list[str]:
    """Return commands that train what the last verdict says to use, and then go on from it; none without a winner.

    Args:
        words: the recipe and the settings that the comparison was started with.
    """
    assert recipe.compare is not None
    winner = next((one.winner for one in reversed(summary.verdicts) if one.kind in ("use", "same", "baseline")), None)
    method = next((one for one in recipe.compare.objectives if label_of(one) == winner), None)
    row = next((one for one in summary.rows if one.label == winner), None)
    if method is None or row is None or row.rate is None:
        return []
    return list(_commands(recipe, method, row, words))


def _commands(recipe: Recipe, method: MethodSection, row: Row, words: Sequence[str]) -> Iterator[str]:
    final = f"{recipe.output}-final"
    settings = {**_length(recipe, method), **_settings(method, row.rate), "output": final}
    given = " ".join(shlex.quote(word) for word in words)
    yield f"train it: ballast train {given} {' '.join(_override(key, value) for key, value in settings.items())}"
    if runs := row.stages[BEFORE].runs if BEFORE in row.stages else ():
        yield f"or take a run as it is: {shlex.quote(f'{recipe.output}/{runs[0]}')}"
    if recipe.rl is not None:
        yield f"go on with RL: ballast rl {given} {_override('model', final)} {_override('output', f'{final}-rl')}"
    served = final
    if recipe.model is not None and recipe.model.lora is not None:
        served = f"{final}-merged"
        yield f"put the adapter into the weights: ballast merge {shlex.quote(final)} --output {shlex.quote(served)}"
    yield f"serve it: transformers serve {shlex.quote(served)}, or vllm serve {shlex.quote(served)}"


def _length(recipe: Recipe, method: MethodSection) -> dict[str, Any]:
    """Return how long the compared runs were, which the rate was chosen for; a budget in tokens has no setting."""
    budget = recipe.compare.budget if recipe.compare is not None else None
    if budget is None or budget.steps is None or has_length(method.training):
        return {}
    return {"training.max_steps": budget.steps}


def _settings(method: MethodSection, rate: float | None) -> dict[str, Any]:
    """Return what a row of a comparison lays over its recipe."""
    return {
        "objective": {"name": method.name, **method.options} if method.options else method.name,
        **({"data.train": list(method.data)} if method.data else {}),
        **{f"groups.{key}": value for key, value in method.groups.items()},
        **{f"training.{key}": value for key, value in method.training.items()},
        "training.learning_rate": rate,
    }


def _override(key: str, value: Any) -> str:
    plain = value if isinstance(value, str) else _flow(value)
    return shlex.quote(f"{key}={plain}")


def _flow(value: Any) -> str:
    """Return a value in YAML's flow style, which JSON is."""
    return json.dumps(dict(value) if isinstance(value, Mapping) else value)
