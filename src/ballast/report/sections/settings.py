"""What was run, and how to run it again: recipe, commands, versions, commit, devices, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO

from pydantic import JsonValue

from ballast.compare.figures import STAGES, rows, stages
from ballast.compare.numbers import counted, number, rate
from ballast.records.folder import AFTER, BEFORE
from ballast.records.schema import Number, RowsRecord, Values
from ballast.records.summary import Row, Summary, TaskSummary
from ballast.report.charts.data import Cell, Section, Table
from ballast.report.source import Source
from ballast.rl.options import RLOptions

TASK_OPTIONS = ("verifier", "samples", "temperature", "top_p", "max_new_tokens", "limit")
RL_OPTIONS = ("data", "verifier", "prompts", "group", "max_new_tokens", "learning_rate", "steps")
COMMIT_DIGITS = 12


def settings(source: Source) -> Section:
    """Return the settings of all runs, what each run cost, and commands that repeat them."""
    tables = (_facts(source), *_objectives(source), *_cost(source))
    return Section("settings", "Settings", tables=tables, code=tuple(_commands(source)))


def subject(source: Source) -> str:
    """Return in a line what was trained on what: ``lab on lab:train (256 rows): 3 objectives, 3 seeds``."""
    recipe, summary, data = _recipe(source), source.summary, _data(source)
    model, demonstrations = _section(recipe, "model").get("path"), _listed(_section(recipe, "data").get("train") or ())
    size = f" ({counted(data.rows_out, 'row')})" if data is not None else ""
    where = " on ".join(filter(None, (str(model or ""), f"{demonstrations}{size}")))
    parts = [counted(len(rows(summary, "method")), "objective")]
    swept = ({one.rate for one in row.rungs or row.tuning} for row in summary.rows)
    if rates := max(map(len, swept), default=0):
        parts[0] += f" at {counted(rates, 'learning rate')}"
    parts.append(counted(len(summary.seeds.report), "seed"))
    parts += ["RL after each"] if AFTER in stages(summary) else []
    return f"{where}: {', '.join(parts)}" if where else ", ".join(parts)


def _recipe(source: Source) -> Values:
    """Return the comparison's recipe, or the first run's."""
    if source.plan is not None:
        return source.plan.recipe
    return next((run.record.recipe for run in source.runs), {})


def _section(recipe: Values, name: str) -> Values:
    """Return a section of a recipe, empty where it has none."""
    section = recipe.get(name)
    return section if isinstance(section, dict) else {}


def _data(source: Source) -> RowsRecord | None:
    """Return what became of the training rows, None where no run says."""
    rows_of_runs = (run.record.data.get("train") for run in source.runs)
    return next((data for data in rows_of_runs if isinstance(data, RowsRecord)), None)


def _facts(source: Source) -> Table:
    recipe, summary, data = _recipe(source), source.summary, _data(source)
    model = next((run.record.model for run in source.runs if run.record.model is not None), None)
    made = summary.provenance
    path = _section(recipe, "model").get("path") or (model.path if model else "")
    rl = _rl(recipe) if AFTER in stages(summary) else {}
    size = f"{counted(data.rows_out, 'row')}, {data.trained_tokens:,} trained tokens" if data else ""
    facts = [
        ("model", str(path), f"{model.type}, {model.parameters:,} parameters" if model else ""),
        ("demonstrations", _listed(_section(recipe, "data").get("train") or ()), size),
        ("seeds reported", _listed(summary.seeds.report), ""),
        ("halving", *_halving(summary)),
        ("seeds of the sweep", _listed(summary.seeds.tuning), ""),
        *((f"task {task.name}", *_task(task)) for task in summary.tasks),
        *(("versions", _pairs(versions), "") for versions in made.versions),
        ("training", _pairs(_shared_training(source)), ""),
        ("RL", _pairs(rl), ""),
        ("commit", _listed([_short(commit) for commit in made.commits]), _uncommitted(made.commits)),
        ("device", _listed(made.devices), ""),
        ("answers sampled by", _listed(made.engines), ""),
    ]
    lines = ((Cell(name), Cell(text, detail)) for name, text, detail in facts if text)
    return Table(("", ""), tuple(lines), prose=True)


def _halving(summary: Summary) -> tuple[str, str]:
    """Return the rungs, and what they saved."""
    found = summary.halving
    if found is None:
        return "", ""
    rungs = ", ".join(f"{one.pairs} × {one.steps} steps" for one in found.rungs)
    known = "" if found.steps is None else f"{found.steps:,} steps in place of {found.full_steps:,}"
    return f"{rungs}, eta {found.eta}", known


def _pairs(options: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{key} {_listed(value)}" for key, value in options.items())


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _rl(recipe: Values) -> Values:
    """Return the settings of RL, the recipe's and over them the comparison's: the main ones, and all but defaults."""
    own, then = _section(recipe, "rl"), _section(_section(recipe, "compare"), "then")
    options, defaults = {**own, **_section(then, "rl")}, RLOptions().model_dump(mode="json")
    shown = {key: options.get(key) for key in RL_OPTIONS}
    shown |= {key: value for key, value in options.items() if value != defaults.get(key)}
    return {key: value for key, value in shown.items() if value not in (None, {}, [])}


def _task(task: TaskSummary) -> tuple[str, str]:
    options = {key: task.settings.get(key) for key in TASK_OPTIONS if task.kind != "nll"}
    named = {key: value for key, value in options.items() if value is not None}
    return f"{task.kind} on {task.settings.get('data') or 'rows'}, {counted(task.n, 'item')}", _pairs(named)


def _short(commit: str) -> str:
    """Return a commit by its first digits, with the mark of changes that it had."""
    return commit[:COMMIT_DIGITS] + ("+" if commit.endswith("+") else "")


def _uncommitted(commits: Iterable[str]) -> str:
    return "+: with uncommitted changes" if any(commit.endswith("+") for commit in commits) else ""


def _objectives(source: Source) -> list[Table]:
    shared = _shared_training(source)
    lines = tuple(
        (
            Cell(row.label, f"rate {rate(row.rate)}" if row.rate else ""),
            Cell(*_name_and_options(row.objective), note=_own_training(source, row, shared)),
        )
        for row in rows(source.summary, "method", "random")
        if row.objective
    )
    columns = ("", "objective, its options and its own training settings")
    return [Table(columns, lines, "Objectives", prose=True)] if lines else []


def _name_and_options(objective: Values) -> tuple[str, str]:
    options = {key: value for key, value in objective.items() if key != "name" and value is not None}
    return str(objective.get("name", "")), _pairs(options)


def _training(source: Source, label: str) -> dict[str, str]:
    """Return a row's training settings but for the rate, which has a column."""
    recipe = next((run.record.recipe for run in source.reported(BEFORE) if run.label == label), {})
    return {key: str(value) for key, value in _section(recipe, "training").items() if key != "learning_rate"}


def _shared_training(source: Source) -> dict[str, str]:
    """Return the training settings that more than half of the rows have; the others' are their own."""
    trainings = [_training(source, row.label) for row in rows(source.summary, "method", "random")]
    known = [training for training in trainings if training]
    pairs = Counter(pair for training in known for pair in training.items())
    return {key: value for (key, value), count in pairs.items() if 2 * count > len(known)}


def _own_training(source: Source, row: Row, shared: Mapping[str, str]) -> str:
    training = _training(source, row.label)
    own = {key: value for key, value in training.items() if shared.get(key) != value}
    own |= {key: "as by default" for key in shared if training and key not in training}
    return f"training: {_pairs(own)}" if own else ""


def _cost(source: Source) -> list[Table]:
    lines = []
    for row in rows(source.summary, "method", "random"):
        for stage in (one for one in STAGES if one in row.stages):
            budget = row.stages[stage].budget
            figures = (Cell(_mean(values)) for values in (budget.steps, budget.tokens, budget.seconds))
            lines.append((Cell(row.label), Cell(STAGES[stage]), *figures))
    columns = ("", "", "steps", "tokens read", "seconds of training")
    return [Table(columns, tuple(lines), "Cost of a run, mean over seeds")] if lines else []


def _mean(values: Sequence[Number | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = sum(known) / len(known)
    return f"{mean:,.0f}" if mean >= 10 or mean == int(mean) else number(mean, 1)


def _commands(source: Source) -> list[tuple[str, str]]:
    if source.plan is not None:
        return [("ballast compare recipe.yaml, with this recipe", _yaml(source.plan.recipe))]
    verbs = {BEFORE: "train", AFTER: "rl"}
    return [
        (f"{run.label}, seed {run.seed}: ballast {verbs[run.stage]} recipe.yaml, with this recipe", _yaml(recipe))
        for run in source.runs
        if (recipe := run.record.recipe)
    ]


def _yaml(recipe: Values) -> str:
    from ruamel.yaml import YAML

    writer, text = YAML(), StringIO()
    writer.default_flow_style = False
    writer.width = 10_000
    writer.dump(_without_empty(recipe), text)
    return text.getvalue()


def _without_empty(value: JsonValue) -> JsonValue:
    """Leave out what is null or empty: those are the defaults."""
    if isinstance(value, dict):
        parts = {key: _without_empty(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part not in (None, {}, [])}
    return [_without_empty(inner) for inner in value] if isinstance(value, list) else value
