"""How reinforcement learning goes; imports no torch, so that recipes are checked without it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ballast.errors import BallastError, suggest

REWARDS = ("verifier", "reft")
LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")

WHOLE = {"steps": 1, "prompts": 1, "group": 2, "micro_batch": 1, "max_new_tokens": 1, "iterations": 1}
WHOLE |= {"limit": 1, "save_steps": 1}
"""Smallest value of each option that is a whole number."""
NUMBERS = ("learning_rate", "temperature", "top_p", "beta", "seconds")
CHOICES = {"reward": REWARDS, "loss_type": LOSS_TYPES}
TEXTS = ("verifier", "split")
MAY_BE_NONE = ("verifier", "data", "split", "columns", "limit", "micro_batch", "save_steps")
OF_DATA = ("split", "columns", "limit")
"""Options that say how `data` is read, and mean nothing without it."""


@dataclass(frozen=True)
class RLOptions:
    """What GRPO samples, how it is rewarded, and how far it goes.

    Attributes:
        verifier: what judges an answer: ``exact``, ``expression``, ``last-number``, ``math`` or
            ``package.module:function``; called with (answer, row).
        data: source of the prompts, or several; None takes the recipe's ``data.train``.
        split, columns, limit: how `data` is read.
        reward: ``verifier`` for the verifier's score; ``reft`` for 1 right, 0.1 wrong with an answer that could be
            read off, 0 without one.
        seconds: wall clock of one verification by a function of one's own, or by math-verify.
        steps: optimiser steps.
        prompts, group: prompts of a step, and answers sampled for each.
        micro_batch: answers of one forward and backward pass on one device; None takes all of a step at once.
        max_new_tokens: tokens after which an answer is cut off; one that has not ended by then scores 0.
        temperature, top_p: of the samples.
        learning_rate: constant, unless ``trainer.lr_scheduler_type`` says otherwise.
        beta: weight of the KL to the start; 0 keeps no reference model.
        loss_type: how `trl.GRPOTrainer` sums tokens up.
        iterations: optimiser steps on one round of answers; 1 is on-policy.
        use_vllm: sample with vLLM, where it is installed.
        save_steps: steps between checkpoints to resume from; None writes none.
        trainer: further fields of `trl.GRPOConfig`, those in `TRAINER`.

    Raises:
        BallastError: for an unknown name, a value out of range, or values that do not go together.
    """

    verifier: str | None = None
    data: tuple[str, ...] | None = None
    split: str | None = None
    columns: Any = None
    limit: int | None = None
    reward: str = "verifier"
    seconds: float = 10.0
    steps: int = 100
    prompts: int = 16
    group: int = 8
    micro_batch: int | None = None
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    learning_rate: float = 1e-6
    beta: float = 0.0
    loss_type: str = "dapo"
    iterations: int = 1
    use_vllm: bool = False
    save_steps: int | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, message in problems({one.name: getattr(self, one.name) for one in fields(self)}):
            raise BallastError(f"rl.{key}: {message}")
        if isinstance(self.data, (str, list)):
            object.__setattr__(self, "data", (self.data,) if isinstance(self.data, str) else tuple(self.data))
        for key in OF_DATA:
            if self.data is None and getattr(self, key) is not None:
                raise BallastError(f"rl.{key}: would be ignored without rl.data; set data.{key}, or name rl.data")
        answers = self.prompts * self.group
        if self.micro_batch is not None and answers % self.micro_batch:
            raise BallastError(
                f"rl.micro_batch: {self.micro_batch} does not divide the {answers} answers of a step "
                f"({self.prompts} prompts × {self.group}), so a step could not be made of whole batches"
            )
        if self.save_steps is not None and self.save_steps % self.iterations:
            raise BallastError(
                f"rl.save_steps: {self.save_steps} is no multiple of rl.iterations {self.iterations}: a checkpoint "
                "between two steps on the same answers would lose them"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RLOptions:
        """Return the options that a recipe's mapping names.

        Raises:
            BallastError: for a misspelt key or a bad value.
        """
        for key, message in problems(values):
            raise BallastError(f"rl.{key}: {message}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain values."""
        return {**asdict(self), "data": None if self.data is None else list(self.data), "trainer": dict(self.trainer)}


def problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong with it) for each option by itself; how they go together is `RLOptions`' to say."""
    known = [one.name for one in fields(RLOptions)]
    for key, value in values.items():
        message = _problem(str(key), value) if key in known else f"unknown key{suggest(str(key), known)}"
        if message is not None:
            yield str(key), message


def _problem(name: str, value: Any) -> str | None:
    if value is None:
        return None if name in MAY_BE_NONE else "must have a value; leave it out for its default"
    if name in WHOLE:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= WHOLE[name]
        reason = ": one answer has nothing to be compared with" if name == "group" else ""
        return None if whole else f"must be a whole number of at least {WHOLE[name]}{reason}; got {value!r}"
    if name in NUMBERS:
        return _number_problem(name, value)
    if name in CHOICES:
        known = CHOICES[name]
        return None if value in known else f"{value!r} is not allowed{suggest(str(value), known)}"
    return _shape_problem(name, value)


def _number_problem(name: str, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return f"must be a finite number; got {value!r}"
    if name == "temperature" and value <= 0:
        return f"must be above 0: greedy answers are all the same, so none has an advantage; got {value}"
    if name == "top_p" and not 0 < value <= 1:
        return f"must lie in (0, 1]; got {value}"
    if name == "seconds" and value <= 0:
        return f"must be above 0; got {value}"
    return f"must be at least 0; got {value}" if value < 0 else None


def _shape_problem(name: str, value: Any) -> str | None:
    if name in TEXTS:
        return None if isinstance(value, str) and value else f"must be text; got {value!r}"
    if name == "data":
        listed = [value] if isinstance(value, str) else value
        fine = isinstance(listed, (list, tuple)) and listed and all(isinstance(one, str) and one for one in listed)
        return None if fine else f"must be a source, or a list of them; got {value!r}"
    if name == "use_vllm":
        return None if isinstance(value, bool) else f"must be true or false; got {value!r}"
    if name == "trainer" and not isinstance(value, Mapping):
        return f"must be a mapping of fields of trl.GRPOConfig; got {value!r}"
    return None


OPTIMISER = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "optim",
    "optim_args", "warmup_steps", "weight_decay",
)  # fmt: skip
LOSS = (
    "delta", "disable_dropout", "entropy_coef", "entropy_coef_delta", "entropy_coef_max", "entropy_coef_min",
    "entropy_target", "epsilon", "epsilon_high", "importance_sampling_level", "mask_truncated_completions",
    "off_policy_mask_threshold", "router_aux_loss_coef", "sapo_temperature_neg", "sapo_temperature_pos",
    "scale_rewards", "top_entropy_quantile", "use_adaptive_entropy", "use_bias_correction_kl", "vespo_k_neg",
    "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos",
)  # fmt: skip
SAMPLING = (
    "cache_implementation", "min_p", "repetition_penalty", "top_k", "vllm_enable_sleep_mode",
    "vllm_gpu_memory_utilization", "vllm_group_port", "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
    "vllm_max_model_length", "vllm_mode", "vllm_model_impl", "vllm_server_base_url", "vllm_server_host",
    "vllm_server_port", "vllm_server_timeout", "vllm_tensor_parallel_size",
)  # fmt: skip
MACHINE = (
    "bf16", "ddp_find_unused_parameters", "disable_tqdm", "fp16", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "log_completions", "log_unique_prompts", "logging_steps",
    "num_completions_to_print", "report_to", "run_name", "save_total_limit", "tf32", "use_cpu",
)  # fmt: skip
TRAINER = (*OPTIMISER, *LOSS, *SAMPLING, *MACHINE)
"""Fields of `trl.GRPOConfig` that a recipe may set under ``trainer``."""

ELSEWHERE = {
    **{name: f"set `rl.{name}`" for name in ("beta", "learning_rate", "loss_type", "save_steps", "temperature")},
    **{name: f"set `rl.{name}`" for name in ("top_p", "use_vllm")},
    "max_steps": "set `rl.steps`",
    "num_train_epochs": "set `rl.steps`",
    "num_generations": "set `rl.group`",
    "num_iterations": "set `rl.iterations`",
    "max_completion_length": "set `rl.max_new_tokens`",
    "per_device_train_batch_size": "set `rl.prompts` and `rl.micro_batch`",
    "gradient_accumulation_steps": "set `rl.prompts` and `rl.micro_batch`",
    "generation_batch_size": "set `rl.prompts`",
    "steps_per_generation": "set `rl.iterations`",
    "output_dir": "set `output` at the top level",
    "seed": "set `seed` at the top level",
    "save_strategy": "set `rl.save_steps`",
    "resume_from_checkpoint": "use `ballast rl --resume`",
    "model_init_kwargs": "set them under `model`",
    "trust_remote_code": "set `model.trust_remote_code`",
    "eval_strategy": "name `evaluation.tasks`, measured before and after",
    "generation_kwargs": "set `rl.temperature`, `rl.top_p` or the field itself",
    "use_liger_kernel": "leave it out; it is not supported",
}
"""Fields of `trl.GRPOConfig` that have another place in a recipe."""
