"""Sharding on CPUs, where accelerate leaves FSDP out without a word; and what a launcher would say of each setting."""

from __future__ import annotations

import inspect
import textwrap

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
