"""Both judges of the code tasks over many answers: the interpreter of the small language, and Python in its process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from ballast.lab import code_tasks
from ballast.verifiers.code import CodeLimits, run_program

LIMITS = CodeLimits(seconds=120.0)

BOTH = """
import json

def verdict(source, tests):
    names = {{}}
    try:
        exec(compile(source, "answer", "exec"), names)
        for given, wanted in tests:
            found = names["f"](given)
            assert type(found) is type(wanted) and found == wanted
    except Exception:
        return 0.0
    return 1.0

for place, (source, tests, said) in enumerate(json.loads({answers!r})):
    assert verdict(source, json.loads(tests)) == said, (place, said, source)
"""


def disagreement(answers: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return the first answer of which Python says something else than `verify`, empty where there is none."""
    asked = [(answer, row["tests"], code_tasks.verify(answer, row)) for answer, row in answers]
    result = run_program(BOTH.format(answers=json.dumps(asked)), LIMITS, allow_code_execution=True)
    return "" if result.passed else f"{result.status} {result.detail}"


def deletions(rows: Sequence[dict[str, Any]], count: int, seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Return references with one character left out."""
    rng, found = Random(f"deletions {seed}"), []
    for _ in range(count):
        row = rng.choice(rows)
        place = rng.randrange(len(row["completion"]))
        found.append((row["completion"][:place] + row["completion"][place + 1 :], row))
    return found


def plain_outputs(source: str, inputs: Sequence[Any]) -> list[Any]:
    """Return what one of our own programs gives, by Python itself."""
    names: dict[str, Any] = {}
    exec(source, names)
    return [names["f"](list(value) if isinstance(value, list) else value) for value in inputs]
