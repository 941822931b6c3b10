"""The model card of a run, a function of its record and of what was measured; and a section for cards of TRL's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ballast
from ballast.records.schema import Estimate, EvalRecord, RunRecord
from ballast.text import inert

CARD = "README.md"
OBJECTIVE = "## Fine-tuning objective"
SITE = "https://pypi.org/project/ballast-ft/"


@dataclass(frozen=True)
class About:
    """What a record does not say.

    Attributes:
        name: of the model.
        source: where the objective is published.
        hub: name of the base on the hub; None where it is a folder.
        licence: of the base, as its own card names it; None where that is not known.
        adapter: whether the folder holds an adapter.
    """

    name: str
    source: str | None = None
    hub: str | None = None
    licence: str | None = None
    adapter: bool = False


def card(record: RunRecord, measured: Sequence[EvalRecord], about: About) -> str:
    """Return a model card as Markdown."""
    parts = (_front(record, about), _lead(record, about), _loading(record, about), _training(record))
    return "\n\n".join("\n".join(part) for part in (*parts, _evaluation(measured), _licence(about)) if part) + "\n"


def kind(record: RunRecord) -> str:
    """Return what a run did: ``train``, ``rl`` or ``reward``."""
    return "rl" if record.rl is not None else "reward" if record.recipe.get("reward") is not None else "train"


def _front(record: RunRecord, about: About) -> list[str]:
    tags = ["ballast", {"train": "sft", "rl": "reinforcement-learning", "reward": "reward-model"}[kind(record)]]
    return [
        "---",
        *([f"base_model: {about.hub}"] if about.hub else []),
        f"library_name: {'peft' if about.adapter else 'transformers'}",
        *([f"license: {about.licence}"] if about.licence else []),
        f"tags: [{', '.join(tags)}]",
        "---",
    ]


def _lead(record: RunRecord, about: About) -> list[str]:
    made = f"[ballast]({SITE}) {record.versions.get('ballast', ballast.__version__)}"
    other = record.start if record.model is None or record.start != record.model.path else None
    start = f"`{_cell(other or _base(record))}`"
    if record.rl is not None:
        judge = record.rl.get("verifier") or record.rl.get("reward_model")
        how = f"after reinforcement learning ({str(record.rl['algorithm']).upper()}), rewarded by `{_cell(judge)}`"
    elif kind(record) == "reward":
        how = "with a head that scores answers, learnt on pairs of given and own answers"
    else:
        name = (record.objective or {}).get("name")
        how = f"fine-tuned with the objective `{name}`" + (f" ({about.source})" if about.source else "")
    return [f"# {_cell(about.name)}", "", f"{start} {how}, by {made}."]


def _loading(record: RunRecord, about: About) -> list[str]:
    if kind(record) == "reward":
        return ["## Use", "", "`ballast rl` with `rl.reward: model` and `rl.reward_model` set to this folder."]
    loader = ("peft", "AutoPeftModelForCausalLM") if about.adapter else ("transformers", "AutoModelForCausalLM")
    imports = [f"from {loader[0]} import {loader[1]}", "from transformers import AutoTokenizer"]
    if not about.adapter:
        imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    return [
        "## Load",
        "",
        "```python",
        *imports,
        "",
        f"model = {loader[1]}.from_pretrained({about.name!r})  # this folder",
        f"tokenizer = AutoTokenizer.from_pretrained({about.name!r})",
        "```",
    ]


def _training(record: RunRecord) -> list[str]:
    return ["## Training", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(record))]


def _facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    model, training = record.model, _section(record, "training")
    if model is not None:
        digest = record.inputs.get("model")
        known = f", digest `{digest.digest}`" if digest else ""
        yield "base", f"`{_cell(_base(record))}`: {model.type}, {model.parameters:,} parameters, {model.dtype}{known}"
    for name, rows in record.data.items():
        source = record.inputs.get("rl.data" if name == "prompts" else f"data.{name}")
        where = f"`{_cell(source.source)}`, digest `{source.digest}`: " if source else ""
        if isinstance(rows, int):
            yield name, f"{where}{rows:,}"
        else:
            yield f"rows ({name})", f"{where}{rows.rows_out:,} rows, {rows.trained_tokens:,} trained tokens"
    if record.objective is not None:
        options = {key: value for key, value in record.objective.items() if key != "name"}
        yield "objective", f"`{record.objective['name']}`{_listed(options)}"
    for name in ("rl", "reward"):
        own = record.rl if name == "rl" else _section(record, "reward")
        if own:
            yield name, _listed({key: value for key, value in own.items() if value not in (None, {}, [])}).lstrip(": ")
    if training:
        yield "settings", _listed(training).lstrip(": ")
    if isinstance(lora := _section(record, "model").get("lora"), Mapping):
        yield "adapter", f"LoRA{_listed(lora)}"
    if record.half is not None:
        yield "half", f"{record.half.parameters_trained:,} parameters trained"
    yield "seed", f"{record.recipe.get('seed')}"
    yield "made with", ", ".join(f"{name} {number}" for name, number in record.versions.items())


def _evaluation(measured: Sequence[EvalRecord]) -> list[str]:
    latest = {one.model: one for one in measured}
    if not latest:
        return []
    rows = dict.fromkeys((task.name, name) for one in latest.values() for task in one.tasks for name in task.metrics)
    found = {
        (one.model, task.name, name): value
        for one in latest.values()
        for task in one.tasks
        for name, value in task.metrics.items()
    }
    lines = [["task", "metric", *map(_cell, latest)], ["---", "---", *("---:" for _ in latest)]]
    lines += [[_cell(task), _cell(name), *(_shown(found.get((m, task, name))) for m in latest)] for task, name in rows]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    return ["## Evaluation", "", "95 % intervals over items, for this run alone.", "", *table]


def _licence(about: About) -> list[str]:
    if about.licence:
        return [f"The licence is that of the base model: {about.licence}."]
    return [f"The licence of the base model holds; {'see its page' if about.hub else 'its folder names none'}."]


def _shown(value: Estimate | None) -> str:
    if value is None or value.value is None:
        return "–"
    bounds = "" if value.low is None or value.high is None else f" ({value.low:.3g} to {value.high:.3g})"
    return f"{value.value:.3g}{bounds}"


def _listed(options: Mapping[str, Any]) -> str:
    found = ", ".join(f"{_cell(key)} `{_cell(value)}`" for key, value in options.items())
    return f": {found}" if found else ""


def _base(record: RunRecord) -> str:
    return str(_section(record, "model").get("path") or (record.model.path if record.model else "?"))


def _section(record: RunRecord, name: str) -> Mapping[str, Any]:
    found = record.recipe.get(name)
    return found if isinstance(found, Mapping) else {}


def _cell(value: object) -> str:
    """Return a value as it can stand in a table."""
    return inert(value).replace("|", "\\|").replace("`", "'")


def append_objective(folder: str | Path, objective: Mapping[str, Any], source: str, reference: str) -> None:
    """Append an objective with its options, source and reference to TRL's card in a folder, unless it is there."""
    path = Path(folder) / CARD
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if OBJECTIVE in text:
        return
    # TRL's template names the base by its hub id, and a local model has none.
    text = text.replace("[None](https://huggingface.co/None)", "a local model")
    text = text.replace('model="None"', f'model="{folder}"')
    rows = [f"| `{name}` | `{value}` |" for name, value in objective.items() if name != "name"]
    table = "\n".join(["| option | value |", "|---|---|", *rows]) if rows else "The objective has no options."
    lead = f"Trained by [ballast]({SITE}) {ballast.__version__} with the objective `{objective['name']}` ({source})."
    path.write_text(f"{text}\n{OBJECTIVE}\n\n{lead}\nReference: {reference}.\n\n{table}\n", encoding="utf-8")
