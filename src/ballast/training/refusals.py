"""Options of TRL that this trainer would ignore, each refused by name before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError

if TYPE_CHECKING:
    from ballast.training.config import TrainingConfig


def refuse_arguments(args: TrainingConfig) -> None:
    """Refuse training arguments that would silently do nothing, or something else than they say.

    Raises:
        BallastError: naming the argument, what would have happened, and the remedy.
    """
    liger = args.use_liger_kernel and (args.liger_kernel_config or {}).get("fused_linear_cross_entropy")
    # transformers has parsed what was given as text by now.
    preparation: Any = args.dataset_kwargs or {}
    parallel = args.parallelism_config
    refused = {
        "loss_type": (args.loss_type != "nll", "the objective decides the loss; use objective='dft' for this one"),
        "label_smoothing_factor": (args.label_smoothing_factor > 0, "it would be ignored; set it to 0"),
        "liger_kernel_config.fused_linear_cross_entropy": (liger, "it replaces the forward that the statistics need"),
        "average_tokens_across_devices": (
            not args.average_tokens_across_devices,
            "the loss is always divided by the count of all ranks; leave it on",
        ),
        "dataset_kwargs.skip_prepare_dataset": (
            preparation.get("skip_prepare_dataset"),
            "rows would get no digest and no cached columns; pass tokenised rows (input_ids, labels) without it",
        ),
        "parallelism_config": (
            parallel is not None and max(parallel.tp_size, parallel.cp_size, parallel.sp_size) > 1,
            "tensor, context and sequence parallelism split the head or the sequence; use DDP or FSDP",
        ),
        "deepspeed": (
            args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3,
            "ZeRO-3 partitions the head again before the backward reads it; use ZeRO-2 or FSDP2",
        ),
    }
    for name, (is_set, reason) in refused.items():
        if is_set:
            raise BallastError(f"training.{name} is not supported: {reason}")


def refuse_parts(**parts: Any) -> None:
    """Refuse parts of a trainer that cannot work with statistics instead of logits.

    Raises:
        BallastError: for the first part given that has a reason below.
    """
    reasons = {
        "data_collator": "cached columns must stay aligned with the tokens; pass raw or tokenised rows instead",
        "compute_loss_func": "it would never be called; write an objective instead (`ballast.Objective`)",
        "compute_metrics": "there are no logits to compute them from; use `ballast.evaluation`",
        "preprocess_logits_for_metrics": "there are no logits; use `ballast.evaluation`",
    }
    for name, reason in reasons.items():
        if parts.get(name) is not None:
            raise BallastError(f"{name} is not supported: {reason}")
