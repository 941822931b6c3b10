"""The model card's section on what trained the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ballast

OBJECTIVE, REWARD, RL = "## Fine-tuning objective", "## Reward", "## Reinforcement learning"
MADE_BY = "Trained by [ballast](https://pypi.org/project/ballast-ft/)"


def append_objective(folder: str | Path, objective: Mapping[str, Any], source: str, reference: str) -> None:
    """Append an objective with its options, source and reference to the card in a folder, unless it is there."""
    options = {name: value for name, value in objective.items() if name != "name"}
    lead = f"with the objective `{objective['name']}` ({source}).\nReference: {reference}."
    _append(folder, OBJECTIVE, lead, _table(options) if options else "The objective has no options.")


def append_reward(folder: str | Path, options: Mapping[str, Any], start: str) -> None:
    """Append how a reward was learnt and what it started from to the card in a folder, unless it is there."""
    given = {name: value for name, value in options.items() if value not in (None, {})}
    _append(
        folder, REWARD, f"with `trl.RewardTrainer` from `{start}`, on pairs of given and own answers.", _table(given)
    )


def append_rl(folder: str | Path, options: Mapping[str, Any], start: str) -> None:
    """Append the settings of RL and what it started from to the card in a folder, unless they are there."""
    given = {name: value for name, value in options.items() if value not in (None, {})}
    _append(folder, RL, f"with `trl.{str(options['algorithm']).upper()}Trainer` from `{start}`.", _table(given))


def _append(folder: str | Path, heading: str, lead: str, table: str) -> None:
    path = Path(folder) / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if heading in text:
        return
    # TRL's template names the base by its hub id, and a local model has none.
    text = text.replace("[None](https://huggingface.co/None)", "a local model")
    text = text.replace('model="None"', f'model="{folder}"')
    section = f"\n{heading}\n\n{MADE_BY} {ballast.__version__} {lead}\n\n{table}\n"
    path.write_text(text + section, encoding="utf-8")


def _table(options: Mapping[str, Any]) -> str:
    rows = [f"| `{name}` | `{value}` |" for name, value in options.items()]
    return "\n".join(["| option | value |", "|---|---|", *rows])
