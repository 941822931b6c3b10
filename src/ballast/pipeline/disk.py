"""What runs write to disk, in bytes: checkpoints, the state of the optimiser, the final model; and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballast import models
from ballast.config.recipe import ModelSection
from ballast.errors import BallastError
from ballast.files import free_bytes

MOMENTS: Mapping[str, int] = {"sgd": 0, "adafactor": 0, "lomo": 0, "lion": 1, "rmsprop": 1, "adagrad": 1}
"""Numbers that an optimiser keeps for each weight, by a part of its name; the others keep two, as AdamW does."""
BITS: Mapping[str, int] = {"4bit": 4, "8bit": 8, "bnb_8bit": 8}
"""Of such a number, by a part of the optimiser's name; others keep it as the weight."""


LESS = "keep less, by training.save_total_limit, training.save_only_model or training.save_strategy"


@dataclass(frozen=True)
class Sizes:
    """Bytes of what is saved: the model, or its adapter, and the state of its optimiser."""

    weights: int
    state: int = 0


@dataclass(frozen=True)
class Written:
    """What one run leaves.

    Attributes:
        sizes: of a model and its optimiser's state.
        checkpoints: how many lie there at once.
    """

    sizes: Sizes
    checkpoints: int = 0

    @property
    def total(self) -> int:
        """Bytes of all, where the final model lies beside the last checkpoint for a moment."""
        return self.checkpoints * (self.sizes.weights + self.sizes.state) + self.sizes.weights

    def line(self) -> str:
        """Return what that is, in words."""
        final = f"the final model, {shown_bytes(self.sizes.weights)}"
        if not self.checkpoints:
            return final
        weights, state = shown_bytes(self.sizes.weights), shown_bytes(self.sizes.state)
        parts = f" (weights {weights}, optimiser's state {state})" if self.sizes.state else ""
        each = shown_bytes(self.sizes.weights + self.sizes.state)
        count = f"{self.checkpoints} checkpoint{'s' if self.checkpoints > 1 else ''} of {each}{parts}"
        return f"{count} and {final}: {shown_bytes(self.total)} in all"


def written(section: ModelSection, args: Any, steps: int, *, epochs: int = 1, seed: int = 0) -> Written:
    """Return what a run leaves; no weight is read.

    Args:
        args: `transformers.TrainingArguments`, and ``half`` where a part of the weights trains.
        steps, epochs: optimiser steps, and passes over the rows that were begun.
        seed: what a half is drawn by.
    """
    keeps = 0 if args.save_only_model else 1
    saved, trained, width = _saved(section, getattr(args, "half", None), seed)
    state = keeps * math.ceil(trained * state_bytes(getattr(args.optim, "value", str(args.optim)), width))
    return Written(Sizes(saved, state), checkpoints_kept(args, steps, epochs))


def checkpoints_kept(args: Any, steps: int, epochs: int = 1) -> int:
    """Return how many checkpoints lie there at once, one more than the limit while the oldest goes.

    How often a model is the best so far is not known: it is once at least.
    """
    strategy = getattr(args.save_strategy, "value", str(args.save_strategy))
    every = args.save_steps if args.save_steps >= 1 else max(1, math.ceil(steps * args.save_steps))
    made = {
        "no": 0,
        "steps": math.ceil(steps / every),
        "epoch": epochs,
        "best": 1,
    }[strategy]
    limit = args.save_total_limit
    return made if limit is None or made <= limit else limit + 1


def state_bytes(optimiser: str, width: int) -> float:
    """Return the bytes that an optimiser keeps for each weight that trains, one of so many bytes."""
    moments = next((count for name, count in MOMENTS.items() if name in optimiser), 2)
    bits = next((bits for name, bits in BITS.items() if name in optimiser), 8 * width)
    return moments * bits / 8


def _saved(section: ModelSection, half: Any, seed: int) -> tuple[int, int, int]:
    """Return bytes of what is saved, how many numbers train, and the bytes of one."""
    import torch

    from ballast.half import Split, half_options

    if section.adapter is not None:
        files = [file.stat().st_size for file in Path(section.adapter).glob("*.safetensors")]
        return sum(files), sum(files) // 4, 4
    config = models.load_config(section)
    empty = models.empty_model(section, config)
    if section.lora is not None:
        trained = models.adapter_size(section, empty)
        return 4 * trained, trained, 4
    count = sum(weights.numel() for weights in empty.parameters())
    dtype = (config.dtype or torch.float32) if section.dtype == "auto" else getattr(torch, section.dtype)
    split = None if half is None else Split.of(empty, half_options(half), seed)
    return count * dtype.itemsize, count if split is None else split.count(trained=True), dtype.itemsize


def refuse_full(output: Path, needed: int, what: str, *, option: str = "output", less: str = LESS) -> str:
    """Return a line on what is written and how much is free; what lies in the output already counts as written.

    Args:
        option: what names the output.
        less: how to keep less.

    Raises:
        BallastError: less is free than that.
    """
    free = free_bytes(output)
    there = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) if output.is_dir() else 0
    line = f"disk: {what}; {shown_bytes(free)} are free"
    if needed - there > free:
        raise BallastError(
            f"{option}: {output}: {line}: the disk would be full before the end; make room, choose another output, or "
            f"{less}"
        )
    return line


def shown_bytes(count: int) -> str:
    """Return bytes as a person reads them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count:,} bytes"
