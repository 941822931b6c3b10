"""Options of TRL that this trainer would ignore, each refused by name before anything is loaded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ballast import sharding
from ballast.errors import BallastError
from ballast.files import check_place
from ballast.half import check_arguments, half_options
from ballast.loop import NAMES, refuse_data_parallel, refuse_strangers
from ballast.packages import lacking, refuse_lacking
from ballast.quantised import NO_ADAPTER

if TYPE_CHECKING:
    from ballast.protocols import Model
    from ballast.training.config import TrainingConfig


def refuse_arguments(args: TrainingConfig) -> None:
    """Refuse training arguments that would silently do nothing, or something else than they say.

    Raises:
        BallastError: naming the argument, what would have happened, and the remedy.
    """
    liger = args.use_liger_kernel and (args.liger_kernel_config or {}).get("fused_linear_cross_entropy")
    # transformers has parsed what was given as text by now.
    preparation: Any = args.dataset_kwargs or {}
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
        "neftune_noise_alpha": (
            args.neftune_noise_alpha is not None and hasattr(args.build_objective(), "prepare_inputs"),
            "the objective changes the embeddings itself, and its two passes would read different noise; leave it out",
        ),
    }
    found = [(name, reason) for name, (is_set, reason) in refused.items() if is_set]
    for name, reason in (*found, *sharding.refusals(args)):
        raise BallastError(f"training.{name} is not supported: {reason}")
    if args.half is not None:
        check_arguments(half_options(args.half), args)
    # Last: what is not supported is not worth installing.
    refuse_lacking(args, "training")
    refuse_strangers(args)
    refuse_no_steps(args)


def refuse_together(model: Any, args: TrainingConfig, peft_config: Any, quantization_config: Any) -> None:
    """Refuse what does not go together before weights are loaded: half, adapters, weights in few bits.

    Half trains weights of the model's own, which an adapter or a quantisation keeps from training.

    Raises:
        BallastError: naming what does not go with what.
    """
    if quantization_config is not None and not isinstance(model, str):
        raise BallastError(
            "quantization_config would be ignored: the model is loaded already; load it with this configuration, or "
            "give its path"
        )
    if quantization_config is not None and peft_config is None:
        raise BallastError(f"quantization_config: {NO_ADAPTER}; give peft_config")
    for name, value in (("peft_config", peft_config), ("quantization_config", quantization_config)):
        if args.half is not None and value is not None:
            raise BallastError(
                f"half does not go with {name}: it draws from the model's own matrices, which would not train; leave "
                "one of the two out"
            )


def planned_steps(args: TrainingConfig, rows: int) -> int:
    """Return how many optimiser steps a run takes over so many (packed) rows, or prompts, as transformers counts."""
    size = args.train_batch_size * args.world_size
    batches = rows // size if args.dataloader_drop_last else -(-rows // size)
    if not batches:
        return 0
    if args.max_steps >= 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * -(-batches // args.gradient_accumulation_steps))


def refuse_no_steps(args: TrainingConfig, rows: int | None = None) -> None:
    """Refuse settings under which no step is taken, or the only one with a learning rate of 0.

    Args:
        args: settings of a run.
        rows: what there is to train on, None while that is not known.

    Raises:
        BallastError: the weights would stay as they are and the run would end as if it had trained.
    """
    if args.max_steps == 0 or (args.max_steps < 0 and not args.num_train_epochs > 0):
        name = "max_steps" if args.max_steps == 0 else "num_train_epochs"
        raise BallastError(
            f"training.{name}: {getattr(args, name)} asks for no step, so nothing would be trained; set it above 0"
        )
    if rows is None:
        return
    steps, size = planned_steps(args, rows), args.train_batch_size * args.world_size
    if not steps:
        raise BallastError(
            f"training.dataloader_drop_last: {rows:,} rows make no batch of {size:,} (of all ranks) and would be left "
            "out, so nothing would be trained; set it to false, or make per_device_train_batch_size smaller"
        )
    flat = args.lr_scheduler_type in ("constant", "reduce_lr_on_plateau", "greedy")
    if steps == 1 and not flat and args.get_warmup_steps(steps) >= 1:
        raise BallastError(
            "training.warmup_steps: the run is one step, which warming up begins with a learning rate of 0, so nothing "
            "would be trained; set it to 0, or train for more steps"
        )


def refuse_surroundings(args: TrainingConfig, quantization_config: Any) -> None:
    """Refuse arguments (`refuse_arguments`), an output that could not be saved to, a package that is not installed.

    Raises:
        BallastError: naming argument, folder or package.
    """
    refuse_arguments(args)
    refuse_data_parallel(args)
    if args.save_strategy != "no":
        check_place("output_dir", args.output_dir)
    method = getattr(quantization_config, "quant_method", None)
    if method is not None and (problem := lacking("quantization", getattr(method, "value", method))):
        raise BallastError(f"quantization_config: {problem}")


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


def refuse_partitioned(model: Model) -> None:
    """Refuse a model whose weights are partitioned before the trainer has looked at them.

    Raises:
        BallastError: checks, hashes and a reference would be of nothing.
    """
    if any(map(sharding.is_partitioned, model.parameters())):
        raise BallastError(
            "the model was loaded in parts (zero.Init), so that it could be neither checked nor copied for a "
            "reference; give its path, or load it before the TrainingConfig is made"
        )


def refuse_unsharded(args: TrainingConfig, *, fsdp: bool, deepspeed: bool) -> None:
    """Refuse a run that asked for sharding and has none.

    Args:
        fsdp, deepspeed: whether accelerate has set it up.

    Raises:
        BallastError: every process would hold the whole model and its optimiser.
    """
    kind = sharding.kind_of(args)
    if kind and not (fsdp or deepspeed):
        raise BallastError(
            f"{NAMES[kind]} was asked for, and accelerate leaves it out here, as it does on CPUs and for one process: "
            "each process would hold all weights; take it out, or start several processes on GPUs"
        )
