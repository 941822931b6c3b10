"""Half fine-tuning against training all weights: time of a step, memory of gradients and optimiser, share that trains.

    python scripts/smollm2.py models/smollm2
    python benchmarks/half.py models/smollm2 --out half.json

One row of random tokens, `sft`, AdamW in float32; the cases take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness import Times, interleaved, ratios, record, spread, table

CASES: dict[str, dict[str, Any] | None] = {
    "all": None,
    "half": {"fraction": 0.5},
    "half, embeddings kept": {"fraction": 0.5, "embeddings": False},
}
SEEDS = 20
MIB = 2**20


@dataclass(frozen=True)
class Made:
    """A trainer's model and its step in two parts."""

    trainer: Any
    gradient: Callable[[], None]
    update: Callable[[], None]

    def bytes_of(self) -> dict[str, int]:
        """Return what gradients and the optimiser's state take."""
        weights = [*self.trainer.model.parameters()]
        state = [one for held in self.trainer.optimizer.state.values() for one in held.values()]
        return {
            "gradients": sum(weight.grad.nbytes for weight in weights if weight.grad is not None),
            "optimiser": sum(one.nbytes for one in state if torch.is_tensor(one)),
        }


def make(model: str, half: dict[str, Any] | None, tokens: int, folder: Path) -> Made:
    """Return a case that has taken its first step."""
    from datasets import Dataset

    import ballast

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 10_000, (tokens,), generator=draw).tolist()
    trainer = ballast.Trainer(
        model,
        ballast.TrainingConfig(
            output_dir=str(folder), max_steps=1, max_length=None, bf16=False, gradient_checkpointing=False, half=half,
            per_device_train_batch_size=1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            
        ),
        train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids}]),
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    count = trainer.step_count([batch], torch.device("cpu"))

    def gradient() -> None:
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()

    gradient()
    update()
    return Made(trainer, gradient, update)


def shares(model: str) -> list[float]:
    """Return the share of the layers' weights that trains, for each seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from ballast.half import HalfOptions, Split

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return [Split.of(empty, HalfOptions(), seed).layer_share for seed in range(SEEDS)]


def against(times: dict[str, Times], memory: dict[str, dict[str, int]]) -> list[list[Any]]:
    """Return a line of the table for each case."""
    lines = []
    for name in CASES:
        step = Times(*([sum(pair) for pair in zip(*both, strict=True)] for both in _parts(times, name)))
        whole = Times(*([sum(pair) for pair in zip(*both, strict=True)] for both in _parts(times, "all")))
        lines.append(
            [
                name,
                f"{statistics.median(step.processor):.2f}",
                spread(ratios(step, whole)["processor"]),
                *(spread(ratios(times[f"{name}: {part}"], times[f"all: {part}"])["processor"]) for part in PARTS),
                *(f"{memory[name][kind] / MIB:,.0f}" for kind in ("gradients", "optimiser")),
                f"{memory[name]['optimiser'] / memory['all']['optimiser']:.2f}×",
            ]
        )
    return lines


PARTS = ("gradient", "update")


def _parts(times: dict[str, Times], name: str) -> list[list[list[float]]]:
    return [[getattr(times[f"{name}: {part}"], clock) for part in PARTS] for clock in ("wall", "processor")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model in transformers' format")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = {name: make(arguments.model, half, arguments.tokens, Path(scratch)) for name, half in CASES.items()}
        steps = {f"{name}: {part}": getattr(one, part) for name, one in made.items() for part in PARTS}
        times = interleaved(steps, arguments.rounds)
        memory = {name: one.bytes_of() for name, one in made.items()}
    header = [
        "trains",
        "s/step",
        "step",
        "forward and backward",
        "clip and AdamW",
        "gradients MiB",
        "AdamW MiB",
        "AdamW",
    ]
    print(table(header, against(times, memory)))
    found = shares(arguments.model)
    print(f"share of the layers' weights over {SEEDS} seeds: {min(found):.3f} to {max(found):.3f}, "
          f"median {statistics.median(found):.3f}")  # fmt: skip
    settings = {"model": arguments.model, "tokens": arguments.tokens, "rounds": arguments.rounds}
    splits = {name: one.trainer.half.record() for name, one in made.items() if one.trainer.half is not None}
    record("half", settings, {"times": times, "memory": memory, "splits": splits, "shares": found}, arguments.out)


if __name__ == "__main__":
    main()
