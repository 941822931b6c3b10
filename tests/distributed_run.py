"""One rank of a run on several processes; started by test_training_distributed, not by pytest.

Usage: distributed_run.py OUTPUT [objective ...]; rank 0 writes the final weights of each run.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tiny import char_tokenizer, tiny_model
from training_tools import config, dataset, run, weights

UNEVEN = {"padded": 9, "accumulated": 13, "padding_free": 9}
"""Layouts of the last step, and how many rows there are: of 13, the last step has a full and a filled-up batch."""


def uneven(folder: str, name: str) -> dict[str, tuple[dict[str, torch.Tensor], list[float]]]:
    """Train two epochs on rows that do not fill the last batch of all ranks, padded, accumulated and padding-free."""
    found = {}
    for layout, rows in UNEVEN.items():
        size = 2 if layout == "accumulated" else 4
        changes: dict[str, Any] = {"padding_free": layout == "padding_free", "max_length": None}
        changes |= {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": size}
        changes |= {"gradient_accumulation_steps": 4 // size}
        model, place = tiny_model(dtype=torch.float64), Path(folder) / f"uneven-{layout}"
        trainer = run(place, name, model=model, data=dataset(rows), **changes)
        found[layout] = (weights(trainer), [log["num_tokens"] for log in trainer.state.log_history if "loss" in log])
    return found


def streamed(folder: Path, size: int) -> dict[str, torch.Tensor]:
    """Train three steps on a stream of 20 rows, `size` rows a step and process; the last batch is of two passes."""
    from ballast.data import PrepareOptions, prepare_stream, read_chunks

    options = PrepareOptions.from_training_args(config(folder), context=128)
    rows = prepare_stream(read_chunks(dataset(20)), char_tokenizer(), options, buffer=6)
    model = tiny_model(dtype=torch.float64)
    return weights(run(folder, "sft", model=model, data=rows, per_device_train_batch_size=size, max_steps=3))


def main(output: str, objectives: list[str]) -> None:
    torch.set_num_threads(1)
    ends: dict[str, Any] = {}
    for name in objectives:
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_model(dtype=torch.float64)
            trainer = run(Path(folder), name, model=model, per_device_train_batch_size=4, max_steps=2)
            # Five rows: three for one rank, two for the other, which accelerate fills up by repeating a row.
            held_out = trainer.evaluate(dataset(13).select(range(8, 13)))
            ends[name] = (weights(trainer), trainer.state.log_history[0], held_out, uneven(folder, name))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"per_device_train_batch_size": 4, "max_steps": 2, "half": 0.5}
        trainer = run(Path(folder), "sft", model=tiny_model(dtype=torch.float64), **settings)
        ends["half"] = weights(trainer)
    with tempfile.TemporaryDirectory() as folder:
        ends["streamed"] = streamed(Path(folder), 4)
    if trainer.accelerator.num_processes != 2:
        raise SystemExit("expected two processes")
    if trainer.is_world_process_zero():
        torch.save(ends, output)
    torch.distributed.barrier()
    # Gloo's threads can abort an interpreter that ends in the ordinary way, long after all is saved.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
