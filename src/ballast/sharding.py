"""How the weights of a run lie over its processes: what shards them, and whole weights where they are needed whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LEAST_OFFLOAD = (0, 19, 0)
"""DeepSpeed before this keeps the last micro-batch's gradient alone where the optimiser is offloaded (#7967, #7981)."""


def is_set(variable: str) -> bool:
    """Return whether an environment variable of accelerate is a yes."""
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def fsdp_version(args: Any) -> int | None:
    """Return which FSDP a run asks for, by its arguments or by `accelerate launch`; None for none.

    Args:
        args: `transformers.TrainingArguments`.
    """
    given = getattr(args, "fsdp_plugin_args", None)
    if given is not None:
        return int(given.get("fsdp_version", 2))
    # `accelerate launch --use_fsdp` says so in the environment alone.
    return int(os.environ.get("FSDP_VERSION", "1")) if is_set("ACCELERATE_USE_FSDP") else None


def zero_config(args: Any) -> dict[str, Any] | None:
    """Return the DeepSpeed configuration that a run asks for, None for none."""
    plugin = getattr(args, "deepspeed_plugin", None)
    return None if plugin is None else dict(plugin.deepspeed_config)


def zero_stage(args: Any) -> int | None:
    """Return the stage of ZeRO that a run asks for; None without DeepSpeed."""
    config = zero_config(args)
    return None if config is None else int(config.get("zero_optimization", {}).get("stage", 0))


def kind_of(args: Any) -> str:
    """Return what shards a run: ``fsdp2``, ``zero3`` and so on, or nothing."""
    if (stage := zero_stage(args)) is not None:
        return f"zero{stage}"
    found = fsdp_version(args)
    return "" if found is None else f"fsdp{found}"


def shards_weights(args: Any) -> bool:
    """Return whether a process holds a part of each weight alone, so that it cannot run the model by itself."""
    return fsdp_version(args) is not None or zero_stage(args) == 3


def refusals(args: Any) -> Iterator[tuple[str, str]]:
    """Yield the training arguments that would shard in a way that is not supported, each with the reason."""
    if getattr(args, "parallelism_config", None) is not None or is_set("ACCELERATE_USE_PARALLELISM_CONFIG"):
        yield (
            "parallelism_config",
            "tensor, context and sequence parallelism split the head or the sequence, and the loss would be of parts; "
            "leave it out and use DDP, FSDP2 or DeepSpeed",
        )
    if fsdp_version(args) == 1:
        yield (
            "fsdp",
            "FSDP1 flattens weights, and the head and a reference could not be read by name; set fsdp_config.version=2 "
            "(`fsdp_version: 2` for accelerate)",
        )
    yield from _zero_refusals(zero_config(args))


def _zero_refusals(config: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if config is None:
        return
    zero = config.get("zero_optimization", {})
    if config.get("tensor_parallel", {}).get("autotp_size", 0) > 1:
        yield "deepspeed", "tensor parallelism (autotp_size) splits the head; take it out"
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        yield (
            "deepspeed",
            "ZeRO-3 without stage3_gather_16bit_weights_on_model_save would end without the model's weights; set it to "
            "true (`zero3_save_16bit_model: true` for accelerate)",
        )
    offload = (zero.get("offload_optimizer") or {}).get("device") or "none"
    found = _installed("deepspeed")
    if offload != "none" and zero.get("stage") in (1, 2) and found and found < LEAST_OFFLOAD:
        numbers, least = (".".join(map(str, one)) for one in (found, LEAST_OFFLOAD))
        yield (
            "deepspeed",
            f"DeepSpeed {numbers} with offload_optimizer drops the gradients of all micro-batches of a step but one "
            f"(DeepSpeed#7967); pip install 'deepspeed>={least}', or take offload_optimizer out",
        )


def _installed(package: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in version(package).split("+")[0].split(".")[:3])
    except (PackageNotFoundError, ValueError):
        return None


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Let each process load a whole model while the block runs; it is sharded when training begins.

    Transformers would partition it on loading under ZeRO-3, and load it on one process alone under FSDP's
    `cpu_ram_efficient_loading`: checks, hashes and the copy that a reference is would be of nothing.
    """
    from transformers.integrations import deepspeed as integration

    variable = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    efficient = os.environ.get(variable)
    held: Any = integration._hf_deepspeed_config_weak_ref
    config = None if held is None else held()
    integration.unset_hf_deepspeed_config()
    if efficient is not None:
        os.environ[variable] = "false"
    try:
        yield
    finally:
        if efficient is not None:
            os.environ[variable] = efficient
        if config is not None:
            integration.set_hf_deepspeed_config(config)


def is_partitioned(weight: Any) -> bool:
    """Return whether DeepSpeed holds a part of a weight here, and nothing under its name."""
    return hasattr(weight, "ds_id") and weight.ds_status.name != "AVAILABLE"


def part_here(weight: Any) -> Tensor:
    """Return what this process holds of a weight."""
    if hasattr(weight, "to_local"):
        weight = weight.to_local()
    found: Tensor = weight.ds_tensor if is_partitioned(weight) else weight
    return found


@contextmanager
def gathered(weights: Iterable[Any]) -> Iterator[None]:
    """Bring weights that DeepSpeed has partitioned together while the block runs, to be read; others are left alone."""
    parts = [weight for weight in weights if is_partitioned(weight)]
    if not parts:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts):
        yield
