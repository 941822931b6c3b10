"""The embedded lab: tiny pretrained bases and procedural tasks with exact verifiers. Imports no torch."""

from pathlib import Path

from ballast.errors import BallastError, suggest
from ballast.lab import arithmetic, code_tasks
from ballast.lab.arithmetic import demonstrations, held_out, problems, verify

__all__ = ["BASES", "SPLITS", "base_path", "demonstrations", "held_out", "problems", "split", "verify"]

SPLITS = (*arithmetic.SPLITS, *code_tasks.SPLITS)
BASES = {"lab": ("base", "pretrain_lab_base.py"), "lab-code": ("code_base", "pretrain_lab_code_base.py")}
"""By the name of a model in a recipe: its folder here, and the script that makes it."""


def base_path(name: str = "lab") -> Path:
    """Return the folder of a packaged base: config, bfloat16 weights and tokenizer, ready for ``from_pretrained``.

    Raises:
        BallastError: there is none of that name, or the installation lacks the files.
    """
    if name not in BASES:
        raise BallastError(f"the lab has no base {name!r}{suggest(name, tuple(BASES))}")
    folder, script = Path(__file__).parent / BASES[name][0], BASES[name][1]
    if not (folder / "model.safetensors").is_file():
        raise BallastError(
            f"{folder}: the lab's base model is missing from this installation; reinstall ballast-ft, or build it with "
            f"scripts/{script}"
        )
    return folder


def split(name: str) -> list[arithmetic.Row]:
    """Return one of the fixed splits, `SPLITS`: those of `code_tasks` begin with ``code-``, the others are arithmetic.

    Raises:
        BallastError: the name is unknown.
    """
    if name not in SPLITS:
        raise BallastError(f"lab split {name!r} is unknown{suggest(name, SPLITS)}")
    return code_tasks.split(name) if name in code_tasks.SPLITS else arithmetic.split(name)
