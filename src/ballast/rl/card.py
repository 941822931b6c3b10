"""The model card's section on reinforcement learning."""

from __future__ import annotations

from pathlib import Path

import ballast
from ballast.rl.options import RLOptions

HEADING = "## Reinforcement learning"


def append_settings(folder: str | Path, options: RLOptions, start: str) -> None:
    """Append start, reward and settings to the model card in a folder; do nothing if they are there."""
    path = Path(folder) / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if HEADING in text:
        return
    # TRL's template names the base by its hub id, and a local model has none.
    text = text.replace("[None](https://huggingface.co/None)", "a local model")
    text = text.replace('model="None"', f'model="{folder}"')
    shown = {name: value for name, value in options.to_dict().items() if value not in (None, {})}
    rows = [f"| `{name}` | `{value}` |" for name, value in shown.items()]
    section = (
        f"\n{HEADING}\n\n"
        f"Trained by [ballast](https://pypi.org/project/ballast-ft/) {ballast.__version__} with `trl.GRPOTrainer` from "
        f"`{start}`.\n\n" + "\n".join(["| option | value |", "|---|---|", *rows]) + "\n"
    )
    path.write_text(text + section, encoding="utf-8")
