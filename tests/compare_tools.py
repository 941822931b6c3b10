"""A comparison small enough for a test: a random model of a few thousand weights and twelve sums."""

from __future__ import annotations

import gc
import importlib
import json
import re
from pathlib import Path
from typing import Any

TIMES = re.compile(r"started|finished|seconds.*|versions|commits?|.*(runtime|per_second|time|flos)")
"""Keys of records that differ between two runs of the same thing."""

BINARY = (".bin", ".safetensors", ".md")


HEAVY = (
    "ballast.compare",
    "ballast.evaluation.kinds",
    "ballast.pipeline",
    "ballast.rl.trl",
    "ballast.rl.train",
    "ballast.training",
    "scipy.stats",
)
"""Modules that a comparison imports on its way."""


def preload() -> None:
    """Import what a comparison needs, and let the collector pass it over.

    After every job it would look through all of it, which takes longer than a job this small.
    """
    for name in HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def write_inputs(folder: Path) -> None:
    """Write model and rows into a folder: ``model``, ``rows.jsonl``, ``validation.jsonl``, ``test.jsonl``."""
    from tiny import char_tokenizer, tiny_model

    preload()
    tiny_model().save_pretrained(folder / "model")
    char_tokenizer().save_pretrained(folder / "model")
    for name, start, size in (("rows", 0, 12), ("validation", 30, 4), ("test", 60, 5)):
        rows = [
            {"prompt": f"{i}+{i}=", "completion": str(2 * i), "answer": str(2 * i)} for i in range(start, start + size)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def matrix(folder: Path, output: str | Path = "out", **compare: Any) -> Any:
    """Return the recipe of a comparison on the inputs in a folder; keywords change its ``compare`` section."""
    from ballast.config.recipe import Recipe

    section = {
        "objectives": ["sft", "prift-mass"],
        "rates": [1e-3, 3e-2],
        "choose_by": {"task": "validation", "metric": "nll"},
        "seeds": 2,
        "tuning_seeds": 1,
        **compare,
    }
    rl = {"verifier": "compare_tools:liking"} if section.get("then") else None
    return Recipe.model_validate(
        {
            "model": {"path": str(folder / "model")},
            "data": {"train": [str(folder / "rows.jsonl")]},
            "compare": section,
            "rl": rl,
            "training": {
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "logging_steps": 1,
                "gradient_checkpointing": False,
            },
            "evaluation": {
                "tasks": [
                    {"name": "validation", "kind": "nll", "data": str(folder / "validation.jsonl")},
                    {
                        "name": "test",
                        "data": str(folder / "test.jsonl"),
                        "verifier": "compare_tools:liking",
                        "max_new_tokens": 3,
                        "samples": 2,
                        "temperature": 1.0,
                    },
                    {"name": "text", "kind": "nll", "data": str(folder / "test.jsonl"), "base_kl": True},
                ]
            },
            "output": str(output if Path(output).is_absolute() else folder / output),
            "seed": 5,
        }
    )


ONE = {"objectives": ["sft", "dft"], "rates": [1e-3], "choose_by": None, "seeds": 2}


def one_rate(folder: Path, output: str | Path, **changes: Any) -> Any:
    """The cheapest matrix: no tuning, every task reported."""
    return matrix(folder, output, **{**ONE, **changes})


THEN = {"rl": {"steps": 1, "prompts": 4, "group": 4, "max_new_tokens": 24, "learning_rate": 1e-2}}


def liking(completion: str, row: Any) -> float:
    """A verifier with a score for everything, so that samples of a random model are not all alike."""
    return (sum(map(ord, completion)) % 4) / 3


def run_quietly(recipe: Any, **options: Any) -> dict[str, Any]:
    """Run a comparison without a word, and return its summary as it is stored."""
    from ballast.compare import run_compare

    return run_compare(recipe, say=lambda _: None, **options).plain()


def cell(label: str, rate: float | None, seed: int, role: str = "report") -> Any:
    """Return which run of a comparison it is."""
    from ballast.records.schema import CellRecord

    return CellRecord(label=label, rate=rate, seed=seed, role=role)


def job(kind: str, *of: Any) -> Any:
    """Return a job on a cell, given as `cell` takes it."""
    from ballast.compare.jobs import Job

    return Job(kind=kind, cell=cell(*of))


class Listed:
    """Jobs of which none waits for another; keeps how each ended."""

    def __init__(self, jobs: Any) -> None:
        self.waiting, self.ends = list(jobs), {}

    def __len__(self) -> int:
        return len(self.waiting)

    def next(self) -> Any:
        return self.waiting.pop(0) if self.waiting else None

    def settle(self, job: Any, *, done: bool) -> None:
        self.ends[job] = done

    def again(self, job: Any) -> None:
        self.waiting.insert(0, job)


def task_record(metrics: dict[str, Any], **facts: Any) -> Any:
    """Return what a task measured; metrics are estimates, or values without an interval."""
    from ballast.records.schema import Estimate, TaskRecord

    made = {
        name: one
        if isinstance(one, Estimate)
        else Estimate(value=one, n=9, low=None, high=None, level=0.95, method="none")
        for name, one in metrics.items()
    }
    return TaskRecord(
        **{"name": "test", "kind": "nll", "counts": {}, "settings": {}, "seconds": 1.0, **facts}, metrics=made
    )


def stored_run(of: Any, stage: str, tasks: dict[str, Any], *, path: str = "", **facts: Any) -> Any:
    """Return a run as it is read back; keywords are fields of its record, or parts of `Measured` beside the tasks."""
    from ballast.records.runs import Measured, Run
    from ballast.records.schema import LogRecord, RunRecord

    parts = {name: facts.pop(name) for name in ("items", "prompts", "scores") if name in facts}
    record = RunRecord(**{"schema": 1, "status": "finished", "recipe": {}, "seconds": {"train": 1.5}, **facts})
    path = path or f"cells/{of.name}"
    log = (LogRecord(step=8, num_tokens=1000),)
    result = Measured(tasks, **parts) if record.status == "finished" else None
    return Run(path, Path(path), of.label, of.rate, of.seed, of.role, stage, record, log=log, result=result)


def records_of(output: Path, *copied_from: Path) -> dict[str, Any]:
    """Return every record below an output as plain values, times and places left out; weights by their bytes."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        name = path.relative_to(output).as_posix()
        left_out = path.name in (".lock", "jobs.log", "training_args.bin", "README.md")
        if left_out or name.startswith("cache/") or path.suffix == ".txt":
            continue
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
            continue
        text = path.read_text()
        for place in (output, *copied_from):
            text = text.replace(str(place), "OUT")
        lines = [line for line in text.split("\n") if line] if path.suffix == ".jsonl" else [text]
        found[name] = [timeless(json.loads(line)) for line in lines]
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if not TIMES.fullmatch(key)}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value
