"""What tasks measured, as data, and the files that it is kept in. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ballast.evaluation.metrics import Estimate
from ballast.files import write_atomically


@dataclass(frozen=True)
class TaskResult:
    """What a task measured.

    Attributes:
        name, kind: the task's.
        metrics: estimates with interval and number of items.
        counts: plain numbers: rows, answers cut off, verifier errors, over-long rows, tokens.
        settings: the task's options.
        seconds: wall clock.
        items: one JSON-able record per row (prompt, completions, scores).
    """

    name: str
    kind: str
    metrics: dict[str, Estimate]
    counts: dict[str, int]
    settings: dict[str, Any]
    seconds: float
    items: tuple[dict[str, Any], ...] = field(repr=False, default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the result without its items, JSON-able."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("items", "metrics")}
        return {**values, "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()}}


def write_results(path: str | Path, results: Sequence[TaskResult], *, extra: Mapping[str, Any] | None = None) -> None:
    """Write results as one JSON file, with `extra` beside them; whole or not at all."""
    document = {**(extra or {}), "tasks": [result.to_dict() for result in results]}
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_items(path: str | Path, result: TaskResult) -> None:
    """Write the records of a task as JSON lines; whole or not at all."""
    write_atomically(path, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in result.items))


def estimates(values: Any) -> dict[str, Estimate]:
    """Return the `Estimate` fields of a dataclass by name."""
    return {one.name: value for one in fields(values) if isinstance(value := getattr(values, one.name), Estimate)}
