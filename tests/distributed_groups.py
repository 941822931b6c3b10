"""One rank of a GFT run on two processes; started by test_training_groups_distributed, not by pytest."""

import os
import sys
import tempfile
from pathlib import Path

import torch

from group_rows import GROUPS, run
from training_tools import weights

OBJECTIVES = {
    "token": {"name": "gft", "tau": 0.3, "aggregation": "token"},
    "sequence": {"name": "gft", "tau": 0.3, "aggregation": "sequence"},
    "self-train": {"name": "self-train"},
}


def main(output: str) -> None:
    torch.set_num_threads(1)
    ends = {}
    for name, objective in OBJECTIVES.items():
        with tempfile.TemporaryDirectory() as folder:
            made = run(
                Path(folder),
                objective=objective,
                groups={**GROUPS, "refresh": 2},
                per_device_train_batch_size=2,
                max_steps=3,
            )
        ends[name] = (weights(made), [log for log in made.state.log_history if "loss" in log])
    if made.accelerator.num_processes != 2:
        raise SystemExit("expected two processes")
    if made.is_world_process_zero():
        torch.save(ends, output)
    torch.distributed.barrier()
    # Gloo's threads can abort an interpreter that ends in the ordinary way, long after all is saved.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
