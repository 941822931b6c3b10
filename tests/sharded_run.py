"""One rank of runs under a setting of `sharded`; started by test_training_ranks, not by pytest.

Usage: sharded_run.py FOLDER CASE...; a case is OBJECTIVE:ADAPTER:LAYOUT, its trained model is saved into FOLDER/CASE.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from sharded import shard_on_cpus
from tiny import tiny_model
from training_tools import dataset, run

ROWS = 33
LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"padding_free": True},
    "accumulated": {"gradient_accumulation_steps": 2},
}
LORA = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def lora(seed: int = 0):
    from peft import LoraConfig

    return LoraConfig(**LORA)


def train(folder: Path, case: str, ranks: int, wide: bool = True, **changes: Any):
    """Train a case for an epoch, with eight rows a step over all ranks, in float64 if `wide`; return the trainer."""
    name, adapter, layout = case.split(":")
    settings = {"max_steps": -1, "num_train_epochs": 1, "max_length": None, **LAYOUTS[layout]}
    settings |= {"ddp_backend": "gloo"} if ranks > 1 else {}
    size = 8 // ranks // settings.get("gradient_accumulation_steps", 1)
    # Accelerate leaves DeepSpeed out where the CPU is asked for.
    settings |= {"per_device_train_batch_size": size, "use_cpu": "ACCELERATE_USE_DEEPSPEED" not in os.environ}
    model = tiny_model(dtype=torch.float64 if wide else torch.float32)
    peft_config = lora() if adapter == "lora" else None
    return run(folder, name, model=model, data=dataset(ROWS), peft_config=peft_config, **{**settings, **changes})


def check_sharded(trainer: Any) -> None:
    """Stop the run if its weights are whole where they should be in parts."""
    from torch.distributed.tensor import DTensor

    weights = [*trainer.model.parameters()]
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        assert all(isinstance(weight, DTensor) for weight in weights)
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        assert all(hasattr(weight, "ds_id") for weight in weights)
    live = trainer.reference.live
    if live is not None and live.model is not trainer.model:
        kinds = {type(weight).__name__ for weight in live.model.parameters()}
        partitioned = {hasattr(weight, "ds_id") for weight in live.model.parameters()}
        assert (kinds == {"DTensor"}) == isinstance(weights[0], DTensor), kinds
        assert partitioned == {hasattr(weights[0], "ds_id") and not isinstance(weights[0], DTensor)}, partitioned


def main(folder: str, cases: list[str]) -> None:
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpus()
    for case in cases:
        place = Path(folder) / case.replace(":", "-")
        trainer = train(place, case, int(os.environ["WORLD_SIZE"]), wide="ACCELERATE_USE_DEEPSPEED" not in os.environ)
        assert trainer.accelerator.num_processes == int(os.environ["WORLD_SIZE"]), trainer.accelerator.num_processes
        check_sharded(trainer)
        trainer.save_model(str(place))
        if trainer.is_world_process_zero():
            print("DONE", case, type(trainer.model_wrapped).__name__, trainer.state.global_step, flush=True)
        torch.distributed.barrier()
    # Gloo's threads can abort an interpreter that ends in the ordinary way, long after all is saved.
    os._exit(0)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except BaseException:
        # What waits for the other ranks at the end would wait for ever.
        traceback.print_exc()
        os._exit(1)
