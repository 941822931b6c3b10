"""Measurements of all runs as one record, with intervals over stories, and as Markdown tables.

python tables.py results.json
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 10_000
BASE = "no training"
MEASURED = "measured.json"
"""Beside a run's record: the commit that it was trained at, and its seconds of CPU."""
GROUPS = ("groups/cut_off", "groups/verifier_errors", "groups/verifier_timeouts", "seconds/sampling", "seconds/scoring")
TRAINING = ("start", "objective", "CPU seconds", "sampling", "judging", "cut off", "own answers' reward by epoch")
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
        for name in objectives:
            rows[name]["training"] = [_training(work / "runs" / start / run) for run in folders[name]]
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


def _training(folder: Path) -> dict[str, Any]:
    """Return when and how long a run was trained, and what its groups were."""
    seconds = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]["train"]
    found = {**json.loads((folder / MEASURED).read_text(encoding="utf-8")), "train_seconds": seconds}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "own/reward" in line]
    if not steps:
        return found
    # Training ends an epoch at a whole number, so the epoch that a step belongs to is the one rounded up.
    epochs = [math.ceil(line["epoch"] - 1e-6) for line in steps]
    by_epoch = [[line for line, of in zip(steps, epochs, strict=True) if of == epoch] for epoch in sorted(set(epochs))]
    return {
        **found,
        **{name: _rounded(sum(line[name] for line in steps)) for name in GROUPS},
        **{
            f"{name} by epoch": [_rounded(np.mean([line[name] for line in part])) for part in by_epoch]
            for name in ("own/reward", "own/length", "own/entropy", "groups/zero_advantage")
        },
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
    """Return a Markdown table per start, and one of the time that training took and the answers it sampled."""
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
            "",
            _measured(found["rows"]),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, _times(results["starts"])])


def _measured(rows: Mapping[str, Any]) -> str:
    """Say which rows were measured at which commit."""
    named: dict[str, list[str]] = {}
    for name, row in rows.items():
        for commit in dict.fromkeys(run["commit"] for run in row.get("training", ())):
            named.setdefault(commit, []).append(name)
    parts = (f"{', '.join(names)} at commit {commit[:7]}" for commit, names in named.items())
    return f"Trained: {'; '.join(parts)}."


def _times(starts: Mapping[str, Any]) -> str:
    """Return a line per start and objective whose time is known; everything is a mean over the runs."""
    lines = [f"| {' | '.join(TRAINING)} |", "|---" * len(TRAINING) + "|"]
    for start, found in starts.items():
        for name, row in found["rows"].items():
            runs = [run for run in row.get("training", ()) if "cpu_seconds" in run]
            if runs:
                lines.append(f"| {' | '.join([start, name, *_time(runs)])} |")
    return "\n".join(lines)


def _time(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    seconds = f"{np.mean([run['cpu_seconds'] for run in runs]):.0f}"
    if "seconds/sampling" not in runs[0]:
        return [seconds, "", "", "", ""]
    shares = [
        f"{100 * np.mean([run[f'seconds/{part}'] / run['train_seconds'] for run in runs]):{digits}} %"
        for part, digits in (("sampling", ".0f"), ("scoring", ".1f"))
    ]
    rewards = np.mean([run["own/reward by epoch"] for run in runs], axis=0)
    cut_off = f"{np.mean([run['groups/cut_off'] for run in runs]):.0f}"
    return [seconds, *shares, cut_off, " ".join(f"{one:.2f}" for one in rewards)]


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
