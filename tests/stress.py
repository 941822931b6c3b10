"""Tools of the tests under stress: a small disk, and commands on the lab with tiny settings."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

VERIFIER = "ballast.lab.arithmetic:verify"
LAB = ("model=lab", "data.train=lab:train", "data.limit=8", "seed=7")
STEPS = (
    "training={max_steps: 2, per_device_train_batch_size: 4, logging_steps: 1, gradient_checkpointing: false, "
    "report_to: none, save_strategy: steps, save_steps: 1}"
)
RL = f"rl={{verifier: '{VERIFIER}', steps: 2, prompts: 2, group: 2, max_new_tokens: 4, save_steps: 1}}"


@contextmanager
def small_disk(place: Path, size: str = "40m") -> Iterator[Path]:
    """Mount a file system of its own; skips where that is not permitted."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue


def before(patch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], object], *, call: int = 1) -> None:
    """Do something right before the nth call of a function."""
    wrapped, calls = getattr(owner, name), []

    def called(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            act()
        return wrapped(*arguments, **options)

    patch.setattr(owner, name, called)


def run(*words: str) -> Any:
    """Run a command of ballast in this process."""
    from typer.testing import CliRunner

    from ballast.cli import app

    return CliRunner().invoke(app, list(words))


def refusal(result: Any) -> str:
    """Return the line in which a command refused its input."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.split("\n") if line.strip()]
    assert "Traceback" not in result.output
    return lines[-1]
