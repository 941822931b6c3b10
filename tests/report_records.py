"""Records as comparisons, runs and `ballast inspect` leave them, made up without training; the same every time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ballast.compare.plan import Plan
from ballast.config.recipe import Recipe
from ballast.evaluation import metrics
from ballast.files import file_name
from ballast.records import write as records
from ballast.records.folder import REPORT, Store
from ballast.records.schema import SCHEMA, CellRecord
from ballast.records.summary import Summary
from ballast.records.tokens import TokensRecord
from ballast.report.source import Source

ITEMS, SAMPLES = 24, 4
SKILL = {"base": 0.35, "sft": 0.45, "prift-mass": 0.75, "eksft": 0.40, "random": 0.05}
"""How often a model answers an item right, at the best rate."""
GAIN = {"base": 0.15, "sft": 0.05, "prift-mass": 0.05, "eksft": 0.40, "random": 0.0}
"""What RL adds to it."""
VERSIONS = {"ballast": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"}


def recipe(output: Path, **compare: Any) -> Recipe:
    """Return the recipe of the comparison whose records are made up; keywords change its ``compare`` section."""
    verifier = "ballast.lab.arithmetic:verify"
    section = {
        "objectives": ["sft", "prift-mass", "eksft"],
        "rates": [1e-4, 3e-4],
        "choose_by": {"task": "validation", "metric": "accuracy"},
        "seeds": 3,
        "tuning_seeds": 2,
        "then": {"rl": {"steps": 30}},
        **compare,
    }
    tasks = [
        {"name": "validation", "data": "lab:validation", "verifier": verifier},
        {"name": "greedy", "data": "lab:test", "verifier": verifier},
        {"name": "sampled", "data": "lab:test", "verifier": verifier, "samples": SAMPLES, "temperature": 1.0},
        {"name": "forgetting", "kind": "nll", "data": "lab:forgetting"},
    ]
    return Recipe.model_validate(
        {
            "model": "lab",
            "data": {"train": "lab:train"},
            "training": {"num_train_epochs": 4, "per_device_train_batch_size": 32},
            "evaluation": {"tasks": tasks},
            "compare": {key: value for key, value in section.items() if value is not None},
            "rl": {"verifier": verifier} if section["then"] else None,
            "output": str(output),
            "seed": 42,
        }
    )


def comparison(folder: Path, *, leave_out: Callable[[str], bool] = lambda path: False, **compare: Any) -> Path:
    """Write the records of a whole comparison and its summary, and return its folder.

    Args:
        leave_out: tells by their path below the folder which runs are not there.
    """
    from ballast.compare.run import write_summary

    plan, store = Plan(recipe(folder, **compare)), Store(folder)
    rates = {row.label: row.rates[-1] for row in plan.methods}
    cells = [cell for row in plan.methods for cell in plan.tuning(row.label)] + plan.report(rates)
    named = [cell.plain() for cell in cells]
    plan_record = {"recipe": plan.recipe.resolved(), "versions": VERSIONS, "commit": "abc123", "cells": named}
    records.write_json(store.plan, {"schema": SCHEMA, **plan_record})
    base = {"model": "base", "step": 0, "tasks": _tasks(plan, "base", 0, REPORT, 0.0, store.base, "base")}
    records.write_jsonl(store.base / records.EVALS, [base])
    for cell in cells:
        if not leave_out(f"cells/{cell.name}"):
            _cell(plan, cell, store)
        if plan.rl and cell.role == REPORT and not leave_out(f"cells/{cell.name}/rl"):
            _rl(plan, cell.label, cell, cell.seed, store.rl(cell.name))
    for seed in plan.seeds if plan.rl else ():
        if not leave_out(f"base/rl/s{seed}"):
            _rl(plan, "base", None, seed, store.base_rl(seed))
    write_summary(store, plan)
    return folder


def with_random(folder: Path) -> Path:
    """Write a comparison with a row from random weights, whose loss is far off, and with rewards that are 0 or 1."""
    made = comparison(folder, random=True, leave_out=lambda path: path.endswith("/rl") and "random" in path)
    for path in made.glob("**/metrics.jsonl"):
        logs = [json.loads(line) for line in path.read_text().splitlines()]
        if path.parent.name.startswith("random"):
            logs = [{**log, "nll": log["nll"] + 5} if "nll" in log else log for log in logs]
        logs = [{**log, "correct": log["reward"]} if "reward" in log else log for log in logs]
        path.write_text("".join(json.dumps(log) + "\n" for log in logs))
    return made


def run(
    folder: Path,
    label: str = "sft",
    *,
    seed: int = 42,
    status: str = "finished",
    base: bool = True,
    skill: float | None = None,
    **recipe_changes: Any,
) -> Path:
    """Write the records of one run of `ballast train`, and return its folder."""
    plan = Plan(recipe(folder))
    resolved = {**plan.recipe.resolved(), "objective": {"name": label}, "compare": None, "seed": seed}
    resolved["training"] = {**resolved["training"], "learning_rate": 2e-4}
    resolved |= recipe_changes
    record = {**_record(resolved, label), "status": status}
    records.write_json(folder / records.RUN, record)
    records.write_jsonl(folder / records.METRICS, _logs(label, seed))
    entries = [("base", 0, SKILL["base"])] if base else []
    entries += [("trained", 48, SKILL.get(label, 0.5) if skill is None else skill)] if status == "finished" else []
    lines = [
        {"model": name, "step": step, "tasks": _tasks(plan, label, seed, REPORT, 0.0, folder, name, right=right)}
        for name, step, right in entries
    ]
    records.write_jsonl(folder / records.EVALS, lines)
    return folder


def tokens(texts: Sequence[Sequence[str]] = (("1", "+", "1", "=", "2", "#", "2"),)) -> dict[str, Any]:
    """Return a record of `ballast inspect` with these tokens, of which all but the first two are trained."""
    chance = np.random.default_rng(3)
    rows, weights = [], []
    for place, text in enumerate(texts, start=1):
        trained = list(range(2, len(text)))
        values = {name: (-chance.random(len(trained))).round(4).tolist() for name in ("logprob", "ref_logprob")}
        others = ("entropy", "kl", "mass", "ref_entropy", "ref_mass")
        values |= {name: chance.random(len(trained)).round(4).tolist() for name in others}
        rows.append({"row": place, "text": list(text), "trained": trained, **values})
        weights.append([(index % 3) / 2 for index in range(len(trained))])
    histogram = {"edges": [0.0, 0.5, 1.0], "counts": [3, 7], "zero": 2, "tokens": 10, "rows": 4}
    objectives = [
        {
            "label": label,
            "name": label,
            "options": {},
            "note": "",
            "rows": [{"weight": one, "extra": None, "selected": [""] * len(one), "logprob": None} for one in weights],
            "histogram": histogram,
        }
        for label in ("prift-mass", "eksft")
    ]
    return {
        "schema": SCHEMA,
        "live": "lab",
        "reference": "lab",
        "same": False,
        "data": ["lab:train"],
        "rows": rows,
        "objectives": objectives,
    }


def tokens_record(texts: Sequence[Sequence[str]] = (("1", "+", "1", "=", "2", "#", "2"),)) -> TokensRecord:
    """Return `tokens` as the record that it is read as."""
    return TokensRecord.model_validate_json(json.dumps(tokens(texts)))


def changed(source: Source, change: Callable[[Any], object]) -> Source:
    """Return a source with its summary changed by a function, which gets it as plain data."""
    summary = source.summary.model_dump(mode="json", by_alias=True)
    change(summary)
    return replace(source, summary=Summary.model_validate_json(json.dumps(summary)))


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file, or of every line of a JSONL file; a dotted key goes inside."""
    lines = path.suffix == ".jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if lines else [json.loads(path.read_text())]
    for record in found:
        for key, value in values.items():
            *inner, last = key.split("__")
            place = record
            for part in inner:
                place = place[int(part)] if isinstance(place, list) else place[part]
            place[last] = value
    path.write_text("".join(json.dumps(one) + "\n" for one in found) if lines else json.dumps(found[0]))


def _cell(plan: Plan, cell: CellRecord, store: Store) -> None:
    folder = store.cell(cell.name)
    worse = 0.0 if cell.rate == plan.method(cell.label).rates[-1] else -0.2
    own = plan.recipe.resolved() | {"objective": {"name": cell.label}, "compare": None, "rl": None, "seed": cell.seed}
    own["training"] = {**own["training"], "learning_rate": cell.rate}
    finished = {"status": "finished", "cell": cell.plain()}
    records.write_json(folder / records.RUN, {**_record(own, cell.label), **finished})
    records.write_jsonl(folder / records.METRICS, _logs(cell.label, cell.seed))
    tasks = _tasks(plan, cell.label, cell.seed, cell.role, worse, folder, "trained")
    records.write_jsonl(folder / records.EVALS, [{"model": "trained", "step": 48, "tasks": tasks}])


def _rl(plan: Plan, label: str, cell: CellRecord | None, seed: int, folder: Path) -> None:
    cell = cell or CellRecord(label="base", rate=None, seed=seed, role=REPORT)
    own = {**plan.recipe.resolved(), "compare": None, "seed": seed}
    finished = {"status": "finished", "cell": cell.plain(), "rl": {"steps": 30}}
    record = {**_record(own, label), "objective": None, **finished}
    records.write_json(folder / records.RUN, record)
    chance = np.random.default_rng([7, seed, len(label)])
    start, gain = SKILL[label], GAIN[label]
    noise = chance.normal(0, 0.03, 30)
    logs = [
        {"step": step, "reward": float(start + gain * step / 30 + noise[step - 1]), "mixed": 0.75}
        for step in range(1, 31)
    ]
    records.write_jsonl(folder / records.METRICS, logs)
    tasks = _tasks(plan, label, seed, REPORT, gain, folder, "after rl")
    records.write_jsonl(folder / records.EVALS, [{"model": "after rl", "step": 30, "tasks": tasks}])


def _record(resolved: Mapping[str, Any], label: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "recipe": dict(resolved),
        "objective": {"name": label},
        "model": {"path": "lab", "type": "llama", "parameters": 1_217_280, "dtype": "float32"},
        "data": {"train": {"name": "train", "rows_in": 64, "rows_out": 64, "tokens": 2000, "trained_tokens": 1500}},
        "versions": VERSIONS,
        "commit": "0123456789abcdef0123456789abcdef01234567+",
        "device": "cpu",
        "started": "2030-01-01T00:00:00+00:00",
        "seconds": {"train": 12.5},
    }


def _logs(label: str, seed: int) -> list[dict[str, Any]]:
    chance = np.random.default_rng([5, seed, len(label)])
    slope = 0.1 + 0.02 * len(label)
    found = []
    for step in range(8, 49, 8):
        noise = float(chance.normal(0, 0.01))
        log = {
            "step": step,
            "nll": slope + 1 / step + noise,
            "entropy": 0.1 + noise,
            "weight_zero_share": 0.01 * len(label),
        }
        found.append({**log, "loss": 0.1, "num_tokens": 100 * step})
    return [*found, {"train_runtime": 12.5, "step": 48}]


def _tasks(
    plan: Plan, label: str, seed: int, role: str, extra: float, folder: Path, model: str, *, right: float | None = None
) -> list[dict[str, Any]]:
    """Write the answers of each task and return its record; the same items are hard for every model."""
    skill = (SKILL.get(label, 0.5) if right is None else right) + extra
    skill += float(np.random.default_rng([11, seed, len(label)]).normal(0, 0.04))
    sections = plan.tasks(role) if plan.compare.choose_by else plan.recipe.evaluation.tasks
    named = [section.name for section in sections]
    return [_task(name, skill, seed, folder, model, plan) for name in named]


def _task(name: str, skill: float, seed: int, folder: Path, model: str, plan: Plan) -> dict[str, Any]:
    sections = {section.name: section.settings() for section in plan.recipe.evaluation.tasks}
    shared = {"name": name, "kind": sections[name]["kind"], "counts": {"rows": ITEMS}, "seconds": 1.0}
    if shared["kind"] == "nll":
        nll = metrics.Estimate(0.8 - 0.3 * skill, ITEMS, 0.75 - 0.3 * skill, 0.85 - 0.3 * skill, 0.95, "bootstrap-bca")
        kl = metrics.Estimate(0.2 * max(skill, 0.0), ITEMS, None, None, 0.95, "none")
        return {**shared, "settings": sections[name], "metrics": {"nll": nll.to_dict(), "base_kl": kl.to_dict()}}
    samples = sections[name].get("samples", 1)
    hard = np.random.default_rng([13, len(name)]).normal(0, 0.25, ITEMS)
    chance = np.random.default_rng([17, seed, len(name), round(1000 * skill) % 100_000])
    scores = (chance.random((ITEMS, samples)) < (skill + hard)[:, None]).astype(float).tolist()
    lines = [
        {
            "prompt": f"{name} {place}",
            "completions": [{"text": "1", "tokens": 1, "ended": True}] * samples,
            "scores": row,
        }
        for place, row in enumerate(scores)
    ]
    records.write_jsonl(folder / "evals" / file_name(model) / f"{file_name(name)}.jsonl", lines)
    correct = [int(sum(row)) for row in scores]
    if samples == 1:
        found = {"accuracy": metrics.proportion(sum(correct), ITEMS)}
    else:
        found = {f"mean@{samples}": metrics.mean([sum(row) / samples for row in scores])}
        found[f"pass@{samples}"] = metrics.mean_pass_at_k(correct, samples, samples)
    return {**shared, "settings": sections[name], "metrics": {key: one.to_dict() for key, one in found.items()}}
