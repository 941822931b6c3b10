"""From the records of a comparison to its summary: estimates with intervals, differences paired by seed and item.

Pure: the same plan and runs give the same summary. docs/compare.md says what each key holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ballast.compare.choose import chosen_rates, swept
from ballast.compare.plan import BASE, RANDOM, REPORT, TUNING, Method, Plan, direction
from ballast.compare.statistics import holm, over_both, over_items, over_seeds, paired_p
from ballast.errors import BallastError
from ballast.evaluation.metrics import LEVEL, Estimate
from ballast.evaluation.metrics import mean as item_mean
from ballast.records.runs import AFTER, BEFORE, START, Failure, Run

FORMAT = 1
WORDS = {1: "higher", -1: "lower", 0: None}


def summarise(plan: Plan, runs: Sequence[Run], failures: Sequence[Failure] = ()) -> dict[str, Any]:
    """Return what ``summary.json`` holds.

    Args:
        plan: the matrix.
        runs: the runs that are done; those that the plan does not have are left out.
        failures: the runs that broke off.

    Raises:
        BallastError: runs that should pair were measured on different items.
    """
    rates = chosen_rates(plan, runs, failures)
    reported = _planned(plan, rates, runs)
    names = _tasks(plan, reported)
    rows = [_start_row(plan, reported, names)]
    rows += [_row(plan, method, rates, runs, failures, reported, names) for method in plan.methods]
    _adjust(rows)
    missing = missing_runs(plan, rates, runs)
    by = plan.compare.choose_by
    return {
        "format": FORMAT,
        "level": LEVEL,
        "baseline": plan.baseline,
        "choose_by": None if by is None else {**by.model_dump(), "better": WORDS[plan.sign]},
        "seeds": {"report": list(plan.seeds), "tuning": list(plan.tuning_seeds)},
        "complete": not missing,
        "missing": missing,
        "failed": [{"run": one.path, "error": one.error} for one in failures],
        "tasks": [_described(name, reported) for name in names],
        "rows": rows,
        "provenance": _provenance([*reported, *(run for run in runs if run.role == TUNING)]),
    }


def missing_runs(plan: Plan, rates: dict[str, float], runs: Iterable[Run]) -> list[str]:
    """Return the folders, below the output, of runs that the matrix has and that are not done."""
    there = {run.path for run in runs}
    reported = [f"cells/{cell.name}" for cell in plan.report(rates)]
    wanted = [f"cells/{cell.name}" for method in plan.methods for cell in plan.tuning(method.label)] + reported
    if plan.rl:
        wanted += [f"cells/{cell.name}/rl" for cell in plan.report(rates) if plan.followed(cell)]
        wanted += [f"base/rl/s{seed}" for seed in plan.seeds]
    wanted += ["base"] if plan.recipe.evaluation.base else []
    unknown = [f"cells/{row.label}-lr…" for row in plan.methods if row.label not in rates]
    return [path for path in wanted if path not in there] + unknown


def _planned(plan: Plan, rates: dict[str, float], runs: Iterable[Run]) -> list[Run]:
    """Return the reported runs that the plan has, by seed: other rates, seeds and labels may lie in the folder too."""

    def wanted(run: Run) -> bool:
        if run.role != REPORT:
            return run.role == START
        return run.seed in plan.seeds and (run.label == BASE or (run.label in rates and run.rate == rates[run.label]))

    return sorted((run for run in runs if wanted(run)), key=lambda run: run.seed)


def _tasks(plan: Plan, reported: Sequence[Run]) -> list[str]:
    names = [task.settings()["name"] for task in plan.tasks(REPORT)]
    return [name for name in names if any(name in run.tasks for run in reported)]


def _described(name: str, reported: Sequence[Run]) -> dict[str, Any]:
    tasks = [run.tasks[name] for run in reported if name in run.tasks]
    metrics = dict.fromkeys(metric for task in tasks for metric in task["metrics"])
    return {
        "name": name,
        "kind": tasks[0]["kind"],
        "n": max(estimate["n"] for task in tasks for estimate in task["metrics"].values()),
        # Every seed has samples of its own.
        "settings": {key: value for key, value in tasks[0]["settings"].items() if key != "seed"},
        "metrics": {metric: {"better": WORDS[direction(metric)]} for metric in metrics},
    }


def _start_row(plan: Plan, reported: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    return {
        "label": BASE,
        "kind": "start",
        "objective": None,
        "rate": None,
        "edge": None,
        "tuning": [],
        "stages": _stages(plan, BASE, False, reported, names),
    }


def _row(
    plan: Plan,
    method: Method,
    rates: dict[str, float],
    runs: Sequence[Run],
    failures: Sequence[Failure],
    reported: Sequence[Run],
    names: Sequence[str],
) -> dict[str, Any]:
    tuned = len(method.rates) > 1
    rate = rates.get(method.label)
    ends = {min(method.rates): "lowest", max(method.rates): "highest"} if tuned else {}
    resolved = next((run.objective for run in runs if run.label == method.label and run.objective), None)
    compared = not method.random and method.label != plan.baseline
    return {
        "label": method.label,
        "kind": RANDOM if method.random else "method",
        "objective": resolved or {"name": method.section.name, **method.section.options},
        "rate": rate,
        "edge": None if rate is None else ends.get(rate),
        "tuning": [swept(plan, method.label, one, runs, failures) for one in method.rates] if tuned else [],
        "stages": _stages(plan, method.label, compared, reported, names),
    }


def _stages(
    plan: Plan, label: str, compared: bool, reported: Sequence[Run], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return a row's stages; ``compared`` says whether it has a difference to the baseline."""
    found = {}
    start = _of(reported, BASE, BEFORE)
    before = _of(reported, label, BEFORE)
    for stage in (BEFORE, AFTER):
        mine = before if stage == BEFORE else _of(reported, label, AFTER)
        if not mine:
            continue
        partners = {
            "to_baseline": _of(reported, plan.baseline, stage) if compared else [],
            "to_start": [] if mine == start else start,
            **({"gain": before} if stage == AFTER else {}),
        }
        tasks: dict[str, dict[str, Any]] = {}
        for name in names:
            for metric in _metrics(mine, name):
                differences = {key: _difference(mine, runs, name, metric) for key, runs in partners.items()}
                tasks.setdefault(name, {})[metric] = {**_result(mine, name, metric), **differences}
        found[stage] = {
            "runs": [run.path for run in mine],
            "seeds": [run.seed for run in mine],
            "budget": {key: [run.budget.get(key) for run in mine] for key in ("steps", "tokens", "seconds")},
            "tasks": tasks,
        }
    return found


def _of(runs: Iterable[Run], label: str, stage: str) -> list[Run]:
    return [run for run in runs if run.label == label and run.stage == stage]


def _metrics(runs: Sequence[Run], name: str) -> list[str]:
    return list(dict.fromkeys(metric for run in runs for metric in run.tasks.get(name, {}).get("metrics", {})))


def _result(runs: Sequence[Run], name: str, metric: str) -> dict[str, Any]:
    values = [run.value(name, metric) for run in runs]
    table = _table(runs, name, metric)
    # Of scores that are all 0 or 1, as of one run, Wilson's interval.
    items = _own_interval(runs, name, metric) if table is None else item_mean(table.mean(axis=0))
    return {
        "values": values,
        "over_seeds": over_seeds([value for value in values if value is not None]).to_dict(),
        "over_items": None if items is None else items.to_dict(),
        "over_both": None if table is None or len(table) < 2 else over_both(table).to_dict(),
    }


def _own_interval(runs: Sequence[Run], name: str, metric: str) -> Estimate | None:
    """Return the interval that a single run came with: its task keeps no scores of items to make one of."""
    found = runs[0].tasks.get(name, {}).get("metrics", {}).get(metric)
    if len(runs) != 1 or found is None:
        return None
    return Estimate(**{**found, "value": np.nan if found["value"] is None else found["value"]})


def _table(runs: Sequence[Run], name: str, metric: str) -> np.ndarray | None:
    """Return the scores as seeds × items, None where a run has none.

    Raises:
        BallastError: the runs were measured on different items.
    """
    columns = [run.items.get(name, {}).get(metric) for run in runs]
    kept = [column for column in columns if column is not None]
    if not kept or len(kept) < len(columns):
        return None
    _check_items(runs, name)
    return np.stack(kept)


def _check_items(runs: Sequence[Run], name: str) -> None:
    first = runs[0]
    other = next((run for run in runs if run.prompts[name] != first.prompts[name]), None)
    if other is not None:
        raise BallastError(
            f"{other.path}: task {name!r} was measured on other items than {first.path}, so the two do not pair; "
            "remove one of the folders to have it done again"
        )


def _difference(runs: Sequence[Run], others: Sequence[Run], name: str, metric: str) -> dict[str, Any] | None:
    """Return runs minus others; a single start is the partner of every seed."""
    pairs = _pairs(runs, others, name, metric)
    if not pairs:
        return None
    values = np.array([one - other for _, one, other in pairs])
    seeds = [seed for seed, _, _ in pairs]
    mine, theirs = _by_seed(runs, seeds), _by_seed(others, seeds)
    tables = _table(mine, name, metric), _table(theirs, name, metric)
    table = None
    if tables[0] is not None and tables[1] is not None:
        _check_items([mine[0], theirs[0]], name)
        table = tables[0] - tables[1]
    return {
        "seeds": seeds,
        "values": values.tolist(),
        "over_seeds": over_seeds(values).to_dict(),
        "over_items": None if table is None else over_items(table).to_dict(),
        "over_both": None if table is None or len(table) < 2 else over_both(table).to_dict(),
        "p": paired_p(values),
    }


def _pairs(runs: Sequence[Run], others: Sequence[Run], name: str, metric: str) -> list[tuple[int, float, float]]:
    """Return (seed, value, the other's value) for every seed that both have."""
    found = []
    for run in runs:
        other = next(iter(_by_seed(others, [run.seed])), None)
        values = run.value(name, metric), None if other is None else other.value(name, metric)
        if values[0] is not None and values[1] is not None:
            found.append((run.seed, values[0], values[1]))
    return found


def _by_seed(runs: Sequence[Run], seeds: Sequence[int]) -> list[Run]:
    """Return the run of each seed; a start has no seed and stands for all."""
    if len(runs) == 1 and runs[0].role == START:
        return [runs[0]] * len(seeds)
    return [run for seed in seeds for run in runs if run.seed == seed]


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Add Holm's adjustment over the methods, for each stage, task and metric by itself."""
    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        for stage, found in row["stages"].items():
            for task, metrics in found["tasks"].items():
                for metric, result in metrics.items():
                    if result["to_baseline"] is not None:
                        families.setdefault((stage, task, metric), []).append(result["to_baseline"])
    for family in families.values():
        for difference, adjusted in zip(family, holm([one["p"] for one in family]), strict=True):
            difference["p_holm"] = adjusted


def _provenance(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the runs were made with, each value once."""
    found: dict[str, list[Any]] = {"versions": [], "commits": [], "devices": []}
    for run in runs:
        for key, name in (("versions", "versions"), ("commits", "commit"), ("devices", "device")):
            value = run.provenance.get(name)
            if value is not None and value not in found[key]:
                found[key].append(value)
    return found
