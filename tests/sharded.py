"""Sharding on CPUs, where accelerate leaves FSDP out without a word; and what a launcher would say of each setting."""

from __future__ import annotations

import inspect
import textwrap
from importlib import import_module
from types import ModuleType

import torch

ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}
SETTINGS: dict[str, dict[str, str]] = {
    "ddp": {"ACCELERATE_USE_CPU": "true"},
    "fsdp2": {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    **{f"zero{stage}": {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)} for stage in (1, 2, 3)},
}
"""What `accelerate launch` puts into the environment of its processes."""
WRAPPED = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
SETTINGS["fsdp2"] |= {**WRAPPED, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}


def shard_on_cpus() -> None:
    """Let accelerate shard over processes on CPUs as it does on GPUs."""
    from accelerate import state

    source = textwrap.dedent(inspect.getsource(state.AcceleratorState.__init__))
    last = "DistributedType.MULTI_NEURON,\n"
    assert source.count(last) == 1
    names: dict[str, object] = {}
    exec(source.replace(last, f"{last}DistributedType.MULTI_CPU,\n"), vars(state), names)
    state.AcceleratorState.__init__ = names["__init__"]  # type: ignore[assignment]


# Where DeepSpeed says float32: of the model, of gradients in transit, of the optimiser's copy.
SINGLE = {
    "engine": ("float", "float32"),
    "base_optimizer": ("float32",),
    "zero.partition_parameters": ("float", "float32"),
    "zero.stage_1_and_2": ("float32",),
    "zero.stage3": ("float32",),
}


class _Wide(ModuleType):
    """torch, in which some names of float32 are float64."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__("torch")
        vars(self).update(dict.fromkeys(names, torch.float64))

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def deepspeed_in_float64() -> None:
    """Let DeepSpeed train a model in float64, which it refuses: its code is the same, its rounding finer."""
    for module, names in SINGLE.items():
        import_module(f"deepspeed.runtime.{module}").torch = _Wide(names)
