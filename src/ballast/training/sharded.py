"""A frozen model over several processes: each holds a part of it, as of the policy."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ballast.protocols import Model

KEPT = ("bf16", "fp16")
"""What a frozen model takes over of the policy's DeepSpeed configuration, beside how it is partitioned."""


def shard_frozen(model: Model, accelerator: Accelerator) -> None:
    """Shard a frozen model in place as accelerate is going to shard the policy, or put it on the run's device.

    ZeRO-1 and 2 partition gradients and the optimiser alone, so that a frozen model is whole under them.
    """
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if getattr(accelerator.state, "fsdp_plugin", None) is not None:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        # Accelerate leaves the head in one piece after a forward, for a backward that does not come here.
        fsdp2_prepare_model(accelerator, model).set_reshard_after_forward(True)
    elif plugin is not None and plugin.zero_stage == 3:
        import deepspeed

        engine = deepspeed.initialize(model=model, config=frozen_config(plugin.deepspeed_config))[0]
        # The engine is needed no more than its hooks, which hang on the model's modules and are held by them.
        engine.eval()
    else:
        model.to(accelerator.device)


def frozen_config(given: dict[str, Any]) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a model that is not trained beside one that is."""
    zero = given["zero_optimization"]
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        **{name: copy.deepcopy(given[name]) for name in KEPT if name in given},
    }
    if zero.get("offload_param"):
        config["zero_optimization"]["offload_param"] = copy.deepcopy(zero["offload_param"])
    return config
