"""The model card's section on the objective."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import ballast

if TYPE_CHECKING:
    from ballast.objectives import Objective

HEADING = "## Fine-tuning objective"


def append_objective(folder: str, objective: Objective, reference: str) -> None:
    """Append objective, options, source and reference to the model card in a folder; do nothing if they are there."""
    path = Path(folder) / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if HEADING in text:
        return
    # TRL's template names the base by its hub id, and a local model has none.
    text = text.replace("[None](https://huggingface.co/None)", "a local model").replace(
        'model="None"', f'model="{folder}"'
    )
    options = {name: value for name, value in objective.to_dict().items() if name != "name"}
    rows = [f"| `{name}` | `{value}` |" for name, value in options.items()]
    table = "\n".join(["| option | value |", "|---|---|", *rows]) if rows else "The objective has no options."
    section = (
        f"\n{HEADING}\n\n"
        f"Trained by [ballast](https://pypi.org/project/ballast-ft/) {ballast.__version__} "
        f"with the objective `{objective.name}` ({objective.source}).\n"
        f"Reference: {reference}.\n\n{table}\n"
    )
    path.write_text(text + section, encoding="utf-8")
