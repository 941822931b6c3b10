"""The embedded lab: a tiny pretrained base and a procedural task with an exact verifier. Imports no torch."""

from pathlib import Path

from ballast.errors import BallastError
from ballast.lab.arithmetic import SPLITS, demonstrations, held_out, problems, split, verify

__all__ = ["SPLITS", "base_path", "demonstrations", "held_out", "problems", "split", "verify"]


def base_path() -> Path:
    """Return the folder of the packaged base: config, bfloat16 weights and tokenizer, ready for ``from_pretrained``.

    Raises:
        BallastError: the installation lacks the files.
    """
    folder = Path(__file__).parent / "base"
    if not (folder / "model.safetensors").is_file():
        raise BallastError(
            f"{folder}: the lab's base model is missing from this installation; reinstall ballast-ft, or build it with "
            "scripts/pretrain_lab_base.py"
        )
    return folder
