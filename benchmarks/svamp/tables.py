"""Measurements of all runs as one record, with intervals over stories, and as two Markdown tables.

python tables.py results.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 10_000
BASE = "no training"
HEADER = (
    *("objective", "accuracy, %", "minus sft", "mean@8, %", "minus sft", "pass@8, %"),
    *("entropy", "KL to start", "stories, bits/char"),
)


def collect(work: Path, chosen: Mapping[str, Any], objectives: Sequence[str], seeds: int) -> dict[str, Any]:
    """Return the record of every start: rate, validation accuracies, and a summary per objective.

    Intervals (95 %) are of a bootstrap that draws whole stories: the rows of a story stand or fall together. A row's
    value is its mean over the seeds, so the intervals hold for these seeds and say little of others.
    """
    stories = [json.loads(line)["story"] for line in (work / "data" / "test.jsonl").read_text().splitlines()]
    weights = _draws(stories)
    starts = {}
    for start, (rate, validation) in chosen.items():
        folders = {BASE: ["base"]} | {name: [f"{name}-{rate}-{seed}" for seed in range(seeds)] for name in objectives}
        read = {name: [_read(work, f"test/{start}/{run}") for run in runs] for name, runs in folders.items()}
        rows = {name: _summary(runs, read["sft"], weights) for name, runs in read.items()}
        starts[start] = {
            "seeds": seeds,
            "learning_rate": rate,
            "validation_accuracy": _record(work, f"validation/{start}-base")["tasks"][0]["metrics"]["accuracy"][
                "value"
            ],
            "validation_accuracy_of_sft": validation,
            "rows": rows,
        }
    return {"test_rows": len(stories), "test_stories": len(set(stories)), "starts": starts}


def _draws(stories: Sequence[int]) -> np.ndarray:
    """Return row weights ``[DRAWS, rows]`` of a bootstrap over stories; each line sums to 1."""
    _, story_of_row = np.unique(stories, return_inverse=True)
    count = story_of_row.max() + 1
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    weights = times[:, story_of_row].astype(np.float64)
    return weights / weights.sum(1, keepdims=True)


def _record(work: Path, name: str) -> dict[str, Any]:
    return json.loads((work / "evals" / f"{name}.json").read_text(encoding="utf-8"))[0]


def _read(work: Path, name: str) -> dict[str, Any]:
    record = _record(work, name)
    metrics = {task["name"]: {key: one["value"] for key, one in task["metrics"].items()} for task in record["tasks"]}
    scores = {}
    for task in ("greedy", "sampled"):
        (file,) = (work / "items" / name).glob(f"*/{task}.jsonl")
        scores[task] = np.array([json.loads(line)["scores"] for line in file.read_text(encoding="utf-8").splitlines()])
    return {
        "accuracy": scores["greedy"][:, 0],
        "mean@8": scores["sampled"].mean(1),
        "pass@8": scores["sampled"].max(1),
        "entropy": metrics["greedy"]["entropy"],
        "kl": metrics["greedy"]["base_kl"],
        "stories_bits_per_character": metrics["stories"]["bits_per_character"],
        "stories_kl": metrics["stories"]["base_kl"],
    }


def _summary(runs: Sequence[Mapping[str, Any]], sft: Sequence[Mapping[str, Any]], weights: np.ndarray) -> Any:
    summary: dict[str, Any] = {"runs": len(runs)}
    for name, value in runs[0].items():
        values = [run[name] for run in runs]
        if not isinstance(value, np.ndarray):
            summary[name] = {"value": _rounded(np.mean(values)), "runs": [_rounded(one) for one in values]}
            continue
        rows = np.mean(values, axis=0)
        against = rows - np.mean([run[name] for run in sft], axis=0)
        summary[name] = {
            "value": _rounded(rows.mean()),
            "interval": _interval(weights @ rows),
            "runs": [_rounded(one.mean()) for one in values],
            "minus_sft": _rounded(against.mean()),
            "minus_sft_interval": _interval(weights @ against),
        }
    return summary


def _interval(draws: np.ndarray) -> list[float]:
    return [_rounded(one) for one in np.quantile(draws, (0.025, 0.975))]


def _rounded(value: float) -> float:
    return round(float(value), 5)


def tables(results: Mapping[str, Any]) -> str:
    """Return a Markdown table per start."""
    parts = []
    for start, found in results["starts"].items():
        seen = ", ".join(f"{rate} {100 * value:.1f} %" for rate, value in found["validation_accuracy_of_sft"].items())
        lines = [
            f"**From the {start} start**: {found['seeds']} seeds, rate {found['learning_rate']}; on validation "
            f"the start has {100 * found['validation_accuracy']:.1f} %, sft by learning rate {seen}.",
            "",
            f"| {' | '.join(HEADER)} |",
            "|---" * len(HEADER) + "|",
            *(_line(name, row) for name, row in found["rows"].items()),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _line(name: str, row: Mapping[str, Any]) -> str:
    beside = name in ("sft", BASE)
    minus = {
        task: _percent(row[task]["minus_sft"], row[task]["minus_sft_interval"], "+") for task in ("accuracy", "mean@8")
    }
    cells = [
        name,
        _percent(row["accuracy"]["value"], row["accuracy"]["interval"]),
        "" if beside else minus["accuracy"],
        _percent(row["mean@8"]["value"], row["mean@8"]["interval"]),
        "" if beside else minus["mean@8"],
        _percent(row["pass@8"]["value"], row["pass@8"]["interval"]),
        f"{row['entropy']['value']:.2f}",
        "" if name == BASE else f"{row['kl']['value']:.2f}",
        f"{row['stories_bits_per_character']['value']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _percent(value: float, interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
