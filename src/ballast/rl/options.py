"""How reinforcement learning goes; imports no torch, so that recipes are checked without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ballast.half import Half
from ballast.options import Columns, Options, OptionsError, Path, Sources, Text, Where
from ballast.verifiers import options as judging
from ballast.verifiers.program import TOLERANCE

LossType = Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"]
LOSS_TYPES: tuple[str, ...] = get_args(LossType)
LOSS_TYPE: LossType = "dapo"


class RLOptions(Options):
    """What GRPO or RLOO samples, how it is rewarded, and how far it goes."""

    owner: ClassVar[str] = "rl."

    algorithm: Literal["grpo", "rloo"] = "grpo"
    """`grpo`: an answer counts by how much better than its group's mean it is. `rloo`: than the mean of the group's
    other answers, and the KL is taken off the reward."""
    verifier: Text | None = None
    """What judges an answer: `exact`, `math`, `expression`, `last-number`, `program` or `package.module:function`,
    called with (answer, row). Needed unless `reward` is `model`, where it only says in the log how many are right."""
    data: Sources | None = None
    """Source of the prompts, or a list of them; none given takes the recipe's `data.train`."""
    split: Text | None = None
    """Split of `data`, where it has several."""
    columns: Columns = None
    """How the columns of `data` are called, as in `data.columns`."""
    limit: int | None = Field(None, ge=1)
    """Use the first rows of `data`."""
    reward: Literal["verifier", "reft", "model"] = "verifier"
    """The verifier's score; `reft`: 1 right, 0.1 wrong with an answer that could be read off, 0 without one; `model`:
    the score of `reward_model` at the answer's last token, ended or cut off."""
    reward_model: Path | None = None
    """Folder of `ballast reward`, for `reward: model`."""
    seconds: float = Field(10.0, gt=0)
    """Wall clock of one verdict of a function of your own, of math-verify or of a program, in seconds."""
    tolerance: float = Field(TOLERANCE, ge=0)
    """How far a number that a program returns may be from the row's `answer`; verifier `program` alone reads it."""
    allow_code_execution: bool = False
    """Run what the model wrote on this machine; verifier `program` needs it."""
    steps: int = Field(100, ge=1)
    """Optimiser steps."""
    prompts: int = Field(16, ge=1)
    """Prompts of a step."""
    group: int = Field(8, ge=2, json_schema_extra={"reason": "one answer has nothing to be compared with"})
    """Answers sampled for each prompt."""
    micro_batch: int | None = Field(None, ge=1)
    """Answers of one forward and backward pass on one device; none given takes all of a step. The step is the same."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens after which an answer is cut off; one that has not ended by then scores 0."""
    temperature: float = Field(1.0, gt=0, json_schema_extra={"reason": "greedy answers are all the same"})
    """Of the samples; the probabilities that are trained are at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Samples come from the most likely tokens up to this mass; the probabilities that are trained are not cut."""
    learning_rate: float = Field(1e-6, ge=0)
    """Constant; `trainer.lr_scheduler_type` and `trainer.warmup_steps` change that."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL to the model before RL. 0 keeps no reference model; above 0 a second copy of it, or with LoRA
    the adapter switched off (a new one) or a frozen copy of it (one that goes on)."""
    loss_type: LossType = LOSS_TYPE
    """How `trl.GRPOTrainer` sums tokens up; see TRL's documentation. `rloo` takes whole answers."""
    iterations: int = Field(1, ge=1)
    """Optimiser steps on one round of answers; 1 is on-policy."""
    half: Half | None = None
    """Train a random half of the weights, as `training.half`: a fraction or its options."""
    use_vllm: bool = False
    """Sample with vLLM, where it is installed."""
    save_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints that `--resume` goes on from; none given writes none."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Further fields of `trl.GRPOConfig` or `trl.RLOOConfig`: optimiser, clipping (`epsilon`, `epsilon_high`, `delta`),
    `scale_rewards`, `mask_truncated_completions`, `entropy_coef`, `top_k`, `min_p`, precision, gradient checkpointing,
    logging, `vllm_…`. One that `algorithm` does not read is refused."""

    @field_validator("data")
    @classmethod
    def _names_a_source(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value == ():
            raise ValueError("names no source; list at least one")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> RLOptions:
        if problems := list(self._conflicts()):
            raise OptionsError(problems)
        return self

    def _conflicts(self) -> Iterator[tuple[Where, str]]:
        yield from judging.conflicts(self)
        if self.reward == "model" and self.reward_model is None:
            yield ("reward_model",), "is required and missing: name the folder of `ballast reward` that scores answers"
        if self.reward != "model" and self.reward_model is not None:
            yield ("reward_model",), f"would be ignored: reward is {self.reward}; set rl.reward=model, or leave it out"
        for key in ("split", "columns", "limit"):
            if self.data is None and getattr(self, key) is not None:
                yield (key,), f"would be ignored without rl.data; set data.{key}, or name rl.data"
        if self.algorithm != "grpo" and self.loss_type != LOSS_TYPE:
            message = f"{self.loss_type} would be ignored: {self.algorithm} does not read it; leave it out"
            yield ("loss_type",), message
        answers = self.prompts * self.group
        if self.micro_batch is not None and answers % self.micro_batch:
            message = (
                f"{self.micro_batch} does not divide the {answers} answers of a step ({self.prompts} prompts × "
                f"{self.group}), so a step could not be made of whole batches"
            )
            yield ("micro_batch",), message
        if self.save_steps is not None and self.save_steps % self.iterations:
            message = (
                f"{self.save_steps} is no multiple of rl.iterations {self.iterations}: a checkpoint between two steps "
                "on the same answers would lose them"
            )
            yield ("save_steps",), message


OPTIMISER = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "optim",
    "optim_args", "warmup_steps", "weight_decay",
)  # fmt: skip
LOSS = (
    "delta", "disable_dropout", "entropy_coef", "entropy_coef_delta", "entropy_coef_max", "entropy_coef_min",
    "entropy_target", "epsilon", "epsilon_high", "importance_sampling_level", "mask_truncated_completions",
    "normalize_advantages", "off_policy_mask_threshold", "router_aux_loss_coef", "sapo_temperature_neg",
    "sapo_temperature_pos", "scale_rewards", "top_entropy_quantile", "use_adaptive_entropy", "use_bias_correction_kl",
    "vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos",
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
    "num_completions_to_print", "project", "report_to", "run_name", "save_total_limit", "tf32", "use_cpu",
)  # fmt: skip
TRAINER = (*OPTIMISER, *LOSS, *SAMPLING, *MACHINE)
"""Fields of `trl.GRPOConfig` or `trl.RLOOConfig` that a recipe may set under ``trainer``."""

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
