"""One rank of runs under a setting of `sharded`; started by test_training_ranks, not by pytest.

Usage: sharded_run.py FOLDER DTYPE CASE...; a case is OBJECTIVE:ADAPTER:LAYOUT, its trained model is saved into
FOLDER/CASE.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sharded import deepspeed_in_float64, shard_on_cpus
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


class ExactNorm(LlamaRMSNorm):
    """A norm in the model's own dtype: Llama's is in float32, where what differs by less than 6e-8 is the same."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * (hidden.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


def model_of(dtype: torch.dtype):
    model = tiny_model(dtype=dtype)
    if dtype == torch.float64:
        for module in model.modules():
            if isinstance(module, LlamaRMSNorm):
                module.__class__ = ExactNorm
    return model


def train(folder: Path, case: str, ranks: int, dtype: torch.dtype = torch.float64, parts: int = 1):
    """Train a case for an epoch, eight rows a step over all ranks, in `parts` micro-batches; return the trainer."""
    name, adapter, layout = case.split(":")
    # At a rate of .1 iw-sft multiplies an error by millions within the epoch, at .01 by 300.
    settings = {"max_steps": -1, "num_train_epochs": 1, "max_length": None, "learning_rate": 0.01, **LAYOUTS[layout]}
    settings |= {"ddp_backend": "gloo"} if ranks > 1 else {}
    parts *= settings.get("gradient_accumulation_steps", 1)
    settings |= {"per_device_train_batch_size": 8 // ranks // parts, "gradient_accumulation_steps": parts}
    # Accelerate leaves DeepSpeed out where the CPU is asked for.
    settings |= {"use_cpu": "ACCELERATE_USE_DEEPSPEED" not in os.environ}
    peft_config = lora() if adapter == "lora" else None
    return run(folder, name, model=model_of(dtype), data=dataset(ROWS), peft_config=peft_config, **settings)


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


def main(folder: str, dtype: str, cases: list[str]) -> None:
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpus()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and dtype == "float64":
        deepspeed_in_float64()
    for case in cases:
        place = Path(folder) / case.replace(":", "-")
        trainer = train(place, case, int(os.environ["WORLD_SIZE"]), getattr(torch, dtype))
        assert trainer.accelerator.num_processes == int(os.environ["WORLD_SIZE"]), trainer.accelerator.num_processes
        check_sharded(trainer)
        assert {str(weight.dtype) for weight in trainer.model.parameters()} == {f"torch.{dtype}"}
        trainer.save_model(str(place))
        if trainer.is_world_process_zero():
            print("DONE", case, type(trainer.model_wrapped).__name__, trainer.state.global_step, flush=True)
        torch.distributed.barrier()
    # Gloo's threads can abort an interpreter that ends in the ordinary way, long after all is saved.
    os._exit(0)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
    except BaseException:
        # What waits for the other ranks at the end would wait for ever.
        traceback.print_exc()
        os._exit(1)
