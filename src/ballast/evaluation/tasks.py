"""Evaluation tasks and their results, as data. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ballast.errors import BallastError, suggest
from ballast.evaluation.metrics import Estimate
from ballast.files import write_atomically

KINDS = ("choice", "code", "generate", "nll", "readiness")
SAMPLING = ("generate", "code", "readiness")
SOURCES = ("data", "demonstrations", "forgetting")
"""Options that are rows, or name a source of them."""
GROUP = 8
"""Answers to one prompt in a step of reinforcement learning, unless the task says otherwise."""


@dataclass(frozen=True)
class Task:
    """One thing to measure.

    Attributes:
        name: names the task in results and files; unique within a run.
        kind: ``generate`` (answers judged by a verifier), ``choice`` (options by likelihood), ``code`` (answers judged
            by their tests), ``nll`` (likelihood of held-out text) or ``readiness`` (``generate``, read as the start of
            reinforcement learning).
        data: rows, or a source that `ballast.data.load_rows` reads.
        verifier: of ``generate``: ``exact``, ``expression``, ``last-number``, ``math`` or ``package.module:function``.
        verifier_seconds: wall clock of one verdict of ``math`` or a function of one's own.
        samples, temperature, top_p, max_new_tokens: of ``generate``, ``code`` and ``readiness``; temperature 0 is
            greedy. None is 1 sample at temperature 0; for ``readiness`` `group` samples at temperature 1.
        k: pass@k to report, each at most `samples`; empty means k = `samples` where there are several.
        entropy: of ``generate`` and ``code``: also the mean entropy of the model on its own answers.
        base_kl: of ``generate``, ``code`` and ``nll``: also KL(model‖base) on the scored tokens; needs a base.
            ``readiness`` has both, unless they are set to False.
        group: of ``readiness``: answers to one prompt in a step of reinforcement learning; None is 8.
        demonstrations, forgetting: of ``readiness``: rows or a source with ``prompt`` and ``completion``, on which the
            KL to the base is measured too, and of rows with ``text``, for its likelihood.
        style, overlong: of ``choice``, see `choice_scores`.
        context, stride: of ``nll``, see `text_likelihood`.
        limit: first rows to use; None takes all.
        seed: of samples and bootstrap intervals.
        batch_tokens: padded tokens of one batch.
        split, columns: passed to `ballast.data.load_rows` with a source.
        allow_code_execution: lets ``code`` run what the model wrote on this machine.
        code_seconds, code_memory_mb: limits of one program.

    Raises:
        BallastError: for an unknown kind or a value out of range.
    """

    name: str
    kind: str
    data: str | Sequence[Mapping[str, Any]] = field(repr=False)
    verifier: str = "exact"
    verifier_seconds: float = 10.0
    samples: int | None = None
    temperature: float | None = None
    top_p: float = 1.0
    k: tuple[int, ...] = ()
    max_new_tokens: int = 256
    entropy: bool | None = None
    base_kl: bool | None = None
    style: str = "text"
    overlong: str = "refuse"
    context: int | None = None
    stride: int | None = None
    limit: int | None = None
    seed: int = 0
    batch_tokens: int = 16384
    split: str | None = None
    columns: str | Mapping[str, str] | None = None
    allow_code_execution: bool = False
    code_seconds: float = 10.0
    code_memory_mb: int = 1024
    group: int | None = None
    demonstrations: str | Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    forgetting: str | Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BallastError(f"task {self.name!r}: unknown kind {self.kind!r}{suggest(self.kind, KINDS)}")
        for name, value in self._defaults().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("samples", "max_new_tokens", "batch_tokens", "limit", "context", "stride", "group"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise BallastError(f"task {self.name!r}: {name} = {value!r}: must be a whole number of at least 1")
        object.__setattr__(self, "k", self._passes())
        wrong = [k for k in self.k if not isinstance(k, int) or not 1 <= k <= self.samples]
        if wrong:
            raise BallastError(
                f"task {self.name!r}: pass@{wrong[0]} cannot be estimated from {self.samples} samples; raise samples"
            )
        if self.kind in SAMPLING:
            self.generation()

    def _defaults(self) -> dict[str, Any]:
        if self.kind == "readiness":
            group = GROUP if self.group is None else self.group
            return {"group": group, "samples": group, "temperature": 1.0, "entropy": True, "base_kl": True}
        for name in ("group", "demonstrations", "forgetting"):
            if getattr(self, name) is not None:
                raise BallastError(f"task {self.name!r}: {name} is of kind readiness, {self.kind} would ignore it")
        return {"samples": 1, "temperature": 0.0, "entropy": False, "base_kl": False}

    def _passes(self) -> tuple[int, ...]:
        """Return the k of pass@k; readiness always has 1 and the group's."""
        if self.kind != "readiness":
            return tuple(self.k) or ((self.samples,) if self.samples > 1 else ())
        if self.group < 2:
            raise BallastError(
                f"task {self.name!r}: group = {self.group}: a group of one answer never has a gradient; at least 2"
            )
        return tuple(dict.fromkeys((1, self.group, *self.k)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """Return a task from a recipe's mapping.

        Raises:
            BallastError: for a misspelt or missing key, or a bad value.
        """
        known = [one.name for one in fields(cls)]
        label = f"task {values.get('name', '?')!r}"
        for key in values:
            if key not in known:
                raise BallastError(f"{label}: unknown option {key!r}{suggest(str(key), known)}")
        for key in ("name", "kind", "data"):
            if key not in values:
                raise BallastError(f"{label}: {key!r} is missing")
        return cls(**{**values, "k": tuple(_listed(values.get("k", ())))})

    def generation(self) -> Any:
        """Return the task's `GenerationOptions`.

        Raises:
            BallastError: naming the task, for a value out of range.
        """
        from ballast.evaluation.generation import GenerationOptions

        names = [one.name for one in fields(GenerationOptions)]
        try:
            return GenerationOptions(**{name: getattr(self, name) for name in names})
        except BallastError as error:
            raise BallastError(f"task {self.name!r}: {error}") from error

    def settings(self) -> dict[str, Any]:
        """Return everything but the rows, JSON-able; a source is kept by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in SOURCES}
        values["k"] = list(self.k)
        values["columns"] = dict(self.columns) if isinstance(self.columns, Mapping) else self.columns
        named = {name: getattr(self, name) for name in SOURCES}
        return {**values, **{name: value if isinstance(value, str) else None for name, value in named.items()}}


def _listed(value: Any) -> Sequence[int]:
    return [value] if isinstance(value, int) else value


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
