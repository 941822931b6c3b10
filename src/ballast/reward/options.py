"""How a reward is learnt from groups of answers; imports no torch, so that recipes are checked without it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ballast.options import Options, OptionsError


class RewardOptions(Options):
    """What the classifier's loss is, and how long it trains; its pairs are those of `groups.file`."""

    owner: ClassVar[str] = "reward."

    loss: Literal["last-token", "per-token"] = "last-token"
    """`last-token`: −log σ(r⁺ − r⁻) of the scores at the answers' last tokens. `per-token`: its mean over the places
    from the first token that differs to the longer answer's end, as RFT's released code has it."""
    center: float = Field(0.0, ge=0)
    """Weight of (r⁺ + r⁻)², which keeps scores near 0: pairs leave the level of a reward open."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts whose pairs are not trained on; the accuracy on them goes into the record."""
    pairs: int = Field(16, ge=1)
    """Pairs of an optimiser step."""
    micro_batch: int | None = Field(None, ge=1)
    """Pairs of one forward and backward pass; none given takes all of a step."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the pairs."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps, in place of `epochs`."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak; linear decay after a tenth of warm-up, unless `trainer` says otherwise."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Further fields of `trl.RewardConfig`: optimiser, schedule, precision, gradient checkpointing, logging."""

    @model_validator(mode="after")
    def _divides(self) -> RewardOptions:
        if self.micro_batch is not None and self.pairs % self.micro_batch:
            message = (
                f"{self.micro_batch} does not divide the {self.pairs} pairs of a step, so a step could not be made of "
                "whole batches"
            )
            raise OptionsError([(("micro_batch",), message)])
        return self


TRAINER = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "disable_dropout", "disable_tqdm", "fp16",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "logging_steps", "lr_scheduler_kwargs",
    "lr_scheduler_type", "max_grad_norm", "optim", "optim_args", "project", "report_to", "run_name", "tf32", "use_cpu",
    "warmup_steps", "weight_decay",
)  # fmt: skip
"""Fields of `trl.RewardConfig` that a recipe may set under ``trainer``."""

ELSEWHERE = {
    "learning_rate": "set `reward.learning_rate`",
    "max_steps": "set `reward.steps`",
    "num_train_epochs": "set `reward.epochs`",
    "per_device_train_batch_size": "set `reward.pairs` and `reward.micro_batch`",
    "gradient_accumulation_steps": "set `reward.pairs` and `reward.micro_batch`",
    "center_rewards_coefficient": "set `reward.center`",
    "output_dir": "set `output` at the top level",
    "seed": "set `seed` at the top level",
    "max_length": "set `training.max_length`, beyond which answers are refused",
    "eos_token": "set `training.eos_token`",
    "model_init_kwargs": "set them under `model`",
}
"""Fields of `trl.RewardConfig` that have another place in a recipe."""
