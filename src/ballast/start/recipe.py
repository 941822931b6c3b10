"""The recipe of a plan, with comments that say why. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballast.start.plan import SAMPLES, Plan
from ballast.start.probe import Probe
from ballast.text import inert

RECIPE, TRAIN, VALIDATION, TEST = "recipe.yaml", "train.jsonl", "validation.jsonl", "test.jsonl"
PROMPTS = "prompts.jsonl"
"""For RL: what the training rows ask, with the right answer."""
RUNS = "runs"
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
TRAINING: Mapping[str, Any] = {
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "gradient_checkpointing": False,
    "logging_steps": 4,
}


@dataclass(frozen=True)
class Written:
    """What a recipe is made of.

    Attributes:
        command: that it is written by.
        folder: where its rows lie.
        rows: how many there are to train on, in words how they were read.
        judge: name of the verifier, None where there is none.
        lora: whether an adapter is trained.
        training: settings of every run.
        why: of each objective, why it is there.
    """

    command: str
    model: str
    folder: Path
    rows: str
    judge: str | None
    judged: str
    lora: bool
    training: Mapping[str, Any]
    why: Mapping[str, str]
    plan: Plan
    probe: Probe


def text(made: Written) -> str:
    """Return the recipe as YAML."""
    return "\n".join(_lines(made)) + "\n"


def _lines(made: Written) -> Iterator[str]:
    size = made.plan.size
    yield f"# Written by `{inert(made.command)}`. Compares objectives, each at a learning rate of its own:"
    yield f"#   {inert(compare_command(made.folder))}      # goes on where it was stopped"
    yield "model:"
    yield f"  path: {_yaml(made.model)}"
    if made.lora:
        yield f"  lora: {_yaml(LORA)}  # a large model: an adapter is trained, its base kept"
    yield "data:"
    yield f"  train: {_path(made, TRAIN)}  # {made.rows}"
    yield ""
    yield "compare:"
    yield "  objectives:"
    width = max(map(len, made.why))
    yield from (f"    - {name:<{width}}  # {why}" for name, why in made.why.items())
    yield f"  rates: {_yaml(list(made.plan.rates))}"
    if len(made.plan.rates) > 1:
        yield f"  choose_by: {_yaml({'task': 'validation', 'metric': _metric(made)})}  # on rows that are not reported"
    yield f"  seeds: {size.seeds}"
    yield f"  tuning_seeds: {size.tuning_seeds}"
    yield f"  budget: {{steps: {size.steps}}}"
    if made.judge is not None:
        yield "  # then: {rl: {steps: 40}}  # with `rl` below: GRPO from every run and from the base, docs/rl.md"
    yield ""
    yield "training:"
    yield from (f"  {key}: {_yaml(value)}{_reason(made, key)}" for key, value in made.training.items())
    yield ""
    yield "evaluation:"
    yield f"  tasks:  # {made.judged}"
    yield from _tasks(made)
    yield ""
    if made.judge is not None:
        yield "# rl:  # what the training rows ask, where the verifier can judge the answer"
        given = {"verifier": made.judge, "max_new_tokens": made.probe.max_new_tokens}
        yield f"#   data: {_path(made, PROMPTS)}"
        yield from (f"#   {key}: {_yaml(value)}" for key, value in given.items())
        yield ""
    yield f"output: {_path(made, RUNS)}"
    yield "seed: 42"


def _reason(made: Written, key: str) -> str:
    """Return the comment on a setting that is not always there."""
    ratio = made.probe.bf16
    reasons = {
        "eos_token": "ends an answer; the tokenizer names none",
        "bf16": f"a step is {ratio or 1:.1f} times as fast here; the weights stay float32",
    }
    return f"  # {reasons[key]}" if key in reasons else ""


def compare_command(folder: Path) -> str:
    """Return the command that runs what a folder is made for."""
    return shlex.join(["ballast", "compare", str(folder / RECIPE)])


def _tasks(made: Written) -> Iterator[str]:
    size, limit = made.plan.size, made.probe.max_new_tokens
    if len(made.plan.rates) > 1:
        yield from _task("validation", made, VALIDATION, {"limit": size.validation})
    yield from _task("held-out", made, TEST, {"limit": size.items, "base_kl": True})
    if made.judge is not None and size.sampled:
        given = {"limit": size.sampled, "verifier": made.judge, "max_new_tokens": limit, "group": SAMPLES}
        yield "    - name: ready  # for RL: mean and pass@k of samples at temperature 1"
        yield "      kind: readiness"
        yield f"      data: {_path(made, TEST)}"
        yield from _settings({**given, "k": [1, 2, 4, SAMPLES], "demonstrations": "data.train"})


def _task(name: str, made: Written, file: str, settings: Mapping[str, Any]) -> Iterator[str]:
    kind: Mapping[str, Any] = {"kind": "nll"}
    if made.judge is not None:
        kind = {"verifier": made.judge, "max_new_tokens": made.probe.max_new_tokens}
    yield f"    - name: {name}"
    yield f"      data: {_path(made, file)}"
    yield from _settings({**kind, **settings})


def _settings(values: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"      {key}: {_yaml(value)}" for key, value in values.items())


def _metric(made: Written) -> str:
    return "nll" if made.judge is None else "accuracy"


def _path(made: Written, name: str) -> str:
    return _yaml(str(made.folder / name))


def _yaml(value: Any) -> str:
    """Return a value in YAML's flow style; a text without signs of its own needs no quotes."""
    if isinstance(value, str):
        return value if value and all(one.isalnum() or one in "_-./" for one in value) else json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return f"{value:.0e}".replace("e-0", "e-") if isinstance(value, float) and value < 0.01 else json.dumps(value)
