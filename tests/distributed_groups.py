"""One rank of a GFT run on two processes; started by test_training_groups_distributed, not by pytest."""

import os
import sys
import tempfile
from pathlib import Path

import torch

from group_rows import GROUPS, prompts, run
from training_tools import weights

OBJECTIVES = {
    "token": {"name": "gft", "tau": 0.3, "aggregation": "token"},
    "sequence": {"name": "gft", "tau": 0.3, "aggregation": "sequence"},
    "self-train": {"name": "self-train"},
}


PROMPTS = {"even": 8, "one left over": 5, "three left over": 7}
"""Prompts, of which steps take four: of five and seven, the last step of an epoch has less."""


def train(folder: Path, name: str, count: int, size: int):
    """Train two epochs on so many prompts, `size` a micro-batch."""
    settings = {"per_device_train_batch_size": size, "max_steps": 4, "groups": {**GROUPS, "refresh": 2}}
    return run(folder, objective=OBJECTIVES[name], rows=prompts(count), **settings)


def main(output: str) -> None:
    torch.set_num_threads(1)
    ends = {}
    for name in OBJECTIVES:
        for kind, count in PROMPTS.items():
            with tempfile.TemporaryDirectory() as folder:
                made = train(Path(folder), name, count, 2)
            ends[f"{name}, {kind}"] = (weights(made), [log for log in made.state.log_history if "loss" in log])
    if made.accelerator.num_processes != 2:
        raise SystemExit("expected two processes")
    if made.is_world_process_zero():
        torch.save(ends, output)
    torch.distributed.barrier()
    # Gloo's threads can abort an interpreter that ends in the ordinary way, long after all is saved.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
