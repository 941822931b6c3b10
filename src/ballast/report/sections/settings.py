"""What was run, and how to run it again: recipe, commands, versions, commit, devices, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ballast.records.runs import AFTER, BEFORE
from ballast.report.charts.data import Cell, Section, Table
from ballast.report.figures import STAGES, rows, stages
from ballast.report.source import Source
from ballast.report.text import counted, number, rate


def settings(source: Source) -> Section:
    """Return the settings of all runs, what each run cost, and commands that repeat them."""
    tables = (_facts(source), *_methods(source), *_cost(source))
    return Section("settings", "Settings, to repeat it", tables=tables, code=tuple(_commands(source)))


def _recipe(source: Source) -> Mapping[str, Any]:
    if source.plan is not None and isinstance(source.plan.get("recipe"), Mapping):
        return source.plan["recipe"]
    return next((run.record["recipe"] for run in source.runs if isinstance(run.record.get("recipe"), Mapping)), {})


def subject(source: Source) -> str:
    """Return in a line what was trained on what: ``lab on lab:train (256 rows): 3 objectives, 3 seeds``."""
    recipe, summary = _recipe(source), source.summary
    model, demonstrations = _at(recipe, "model", "path"), _listed(_at(recipe, "data", "train"))
    count = _data(source).get("rows_out")
    size = f" ({counted(count, 'row')})" if isinstance(count, int) else ""
    where = " on ".join(filter(None, (str(model or ""), f"{demonstrations}{size}")))
    parts = [counted(len(rows(summary, "method")), "objective")]
    if rates := max((len(row["tuning"]) for row in summary["rows"]), default=0):
        parts[0] += f" at {counted(rates, 'learning rate')}"
    parts.append(f"{counted(len(summary['seeds']['report']), 'seed')}")
    parts += ["RL after each"] if AFTER in stages(summary) else []
    return f"{where}: {', '.join(parts)}" if where else ", ".join(parts)


def _data(source: Source) -> Mapping[str, Any]:
    return next((run.record["data"]["train"] for run in source.runs if "train" in (run.record.get("data") or {})), {})


def _facts(source: Source) -> Table:
    recipe = _recipe(source)
    model: Mapping[str, Any] = next(
        (run.record["model"] for run in source.runs if isinstance(run.record.get("model"), Mapping)), {}
    )
    made = source.summary.get("provenance", {})
    size = f"{model['parameters']:,} parameters" if isinstance(model.get("parameters"), int) else ""
    facts = [
        (
            "model",
            _at(recipe, "model", "path") or model.get("path"),
            ", ".join(filter(None, (model.get("type"), size))),
        ),
        ("demonstrations", _listed(_at(recipe, "data", "train")), _rows_of(_data(source))),
        ("seeds reported", _listed(source.summary["seeds"]["report"]), ""),
        ("seeds of the sweep", _listed(source.summary["seeds"].get("tuning", [])), ""),
        *((f"task {task['name']}", *_task(task)) for task in source.summary["tasks"]),
        *(
            ("versions", ", ".join(f"{name} {v}" for name, v in found.items()), "")
            for found in made.get("versions", ())
        ),
        ("training", _keys(_shared(source)), ""),
        ("RL", _keys(_rl(recipe)) if AFTER in stages(source.summary) else "", ""),
        ("commit", _listed([_short(one) for one in made.get("commits", ())]), _uncommitted(made.get("commits", ()))),
        ("device", _listed(made.get("devices", ())), ""),
    ]
    return Table(("", ""), tuple((Cell(a), Cell(str(b), str(c))) for a, b, c in facts if b), words=True)


def _at(recipe: Mapping[str, Any], section: str, key: str) -> Any:
    found = recipe.get(section)
    return found.get(key) if isinstance(found, Mapping) else None


def _rl(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of RL: the recipe's, and over them what the comparison sets."""
    then = _at(recipe, "compare", "then")
    laid = then.get("rl") if isinstance(then, Mapping) else None
    own = recipe.get("rl")
    given = {**(own if isinstance(own, Mapping) else {}), **(laid if isinstance(laid, Mapping) else {})}
    return {key: value for key, value in given.items() if value not in (None, {}, [])}


def _keys(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in given.items())


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values or "")


def _rows_of(data: Mapping[str, Any]) -> str:
    if not {"rows_out", "trained_tokens"} <= data.keys():
        return ""
    return f"{counted(data['rows_out'], 'row')}, {data['trained_tokens']:,} trained tokens"


def _task(task: Mapping[str, Any]) -> tuple[str, str]:
    given = task.get("settings", {})
    data = given.get("data") or "rows"
    named = ("verifier", "samples", "temperature", "top_p", "max_new_tokens", "limit")
    told = [f"{key} {given[key]}" for key in named if given.get(key) is not None and task["kind"] != "nll"]
    return f"{task['kind']} on {data}, {counted(task['n'], 'item')}", ", ".join(told)


def _short(commit: Any) -> str:
    """Return a commit by its first twelve digits, with the mark of changes that it had."""
    return str(commit)[:12] + ("+" if str(commit).endswith("+") else "")


def _uncommitted(commits: Iterable[str]) -> str:
    return "+: with changes that were not committed" if any(str(one).endswith("+") for one in commits) else ""


def _methods(source: Source) -> list[Table]:
    found = [row for row in rows(source.summary, "method", "random") if row.get("objective")]
    shared = _shared(source)
    lines = tuple(
        (
            Cell(row["label"], f"rate {rate(row['rate'])}" if row["rate"] else ""),
            Cell(*_options(row["objective"]), note=_own(source, row, shared)),
        )
        for row in found
    )
    return (
        [Table(("", "objective, its options and its own training settings"), lines, "Objectives", True)]
        if lines
        else []
    )


def _options(objective: Any) -> tuple[str, str]:
    """Return an objective's name and its options."""
    if not isinstance(objective, Mapping):
        return str(objective), ""
    options = ", ".join(f"{key} {value}" for key, value in objective.items() if key != "name" and value is not None)
    return str(objective.get("name", "")), options


def _training(source: Source, label: str) -> dict[str, str]:
    """Return a method's training settings but for the rate, which has a column."""
    recipes = [run.record.get("recipe") or {} for run in source.reported(BEFORE) if run.label == label]
    found = recipes[0].get("training") if recipes else None
    given = found if isinstance(found, Mapping) else {}
    return {str(key): str(value) for key, value in given.items() if key != "learning_rate"}


def _shared(source: Source) -> dict[str, str]:
    """Return the training settings that more than half of the rows have; the others' are their own."""
    found = [_training(source, row["label"]) for row in rows(source.summary, "method", "random")]
    known = [given for given in found if given]
    pairs = Counter(pair for given in known for pair in given.items())
    return {key: value for (key, value), count in pairs.items() if 2 * count > len(known)}


def _own(source: Source, row: Mapping[str, Any], shared: Mapping[str, str]) -> str:
    given = _training(source, row["label"])
    own = {key: value for key, value in given.items() if shared.get(key) != value}
    own |= {key: "as by default" for key in shared if given and key not in given}
    return f"training: {_keys(own)}" if own else ""


def _cost(source: Source) -> list[Table]:
    lines = []
    for row in rows(source.summary, "method", "random"):
        for stage in (BEFORE, AFTER):
            budget = row["stages"].get(stage, {}).get("budget")
            if budget:
                figures = (_mean(budget.get(key, ())) for key in ("steps", "tokens", "seconds"))
                lines.append((Cell(row["label"]), Cell(STAGES[stage]), *(Cell(figure) for figure in figures)))
    heads = ("", "", "steps", "tokens read", "seconds of training")
    return [Table(heads, tuple(lines), "Cost of a run, mean over seeds")] if lines else []


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if isinstance(value, int | float)]
    if not known:
        return "–"
    mean = sum(known) / len(known)
    return f"{mean:,.0f}" if mean >= 10 or mean == int(mean) else number(mean, 1)


def _commands(source: Source) -> list[tuple[str, str]]:
    recipe = _recipe(source)
    if source.plan is not None:
        return [("ballast compare recipe.yaml, with this recipe", _yaml(recipe))] if recipe else []
    commands = []
    for run in source.runs:
        own = run.record.get("recipe")
        if isinstance(own, Mapping):
            verb = "train" if run.stage == BEFORE else "rl"
            commands.append((f"{run.label}, seed {run.seed}: ballast {verb} recipe.yaml, with this recipe", _yaml(own)))
    return commands


def _yaml(recipe: Mapping[str, Any]) -> str:
    from io import StringIO

    from ruamel.yaml import YAML

    writer, text = YAML(), StringIO()
    writer.default_flow_style = False
    writer.width = 10_000
    writer.dump(_without_empty(recipe), text)
    return text.getvalue()


def _without_empty(value: Any) -> Any:
    """Leave out what is null or empty: those are the defaults."""
    if isinstance(value, Mapping):
        return {key: kept for key, inner in value.items() if (kept := _without_empty(inner)) not in (None, {}, [])}
    return [_without_empty(inner) for inner in value] if isinstance(value, list | tuple) else value
