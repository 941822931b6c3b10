"""Every contact of reinforcement learning with TRL, checked against TRL 1.16; the trainer itself is TRL's own."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ballast.loop import CheckedLoop, numbers, refuse_data_parallel, refuse_strangers, rows_of_examples
from ballast.quantised import keep_differentiable, trained_weights_kept

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig, PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from ballast.protocols import Model
    from ballast.rl.options import RLOptions
    from ballast.rl.rewards import Rewards

__all__ = ["ALGORITHMS", "Config", "config", "config_hints", "metric_line", "trainer", "vllm_is_installed"]

Config = GRPOConfig | RLOOConfig

NAMES = {
    "steps": "max_steps",
    "group": "num_generations",
    "max_new_tokens": "max_completion_length",
    "iterations": "num_iterations",
    **{name: name for name in ("learning_rate", "temperature", "top_p", "beta", "loss_type", "use_vllm")},
}
"""Our options and TRL's names for them."""

METRICS = {
    "completions/mean_length": "length",
    "completions/min_length": "length/min",
    "completions/max_length": "length/max",
    "num_tokens": "tokens",
    "step_time": "seconds/step",
}
"""TRL's names of metrics and ours."""
TWICE = ("rewards/", "completions/", "total_flos", "epoch")
"""Beginnings of the names of what TRL logs under another name too, or without meaning here."""
REFERENCE_ADAPTER = "ref"
"""Name that TRL gives to its frozen copy of an adapter; it is saved beside the trained one."""
UNSCALED = {"scale_rewards": "none"}
"""For rewards with a third value. Divided by its group's deviation, as TRL does, an answer without a result among wrong
ones gets an advantage of -2.47 in a group of 8, as much as a right one among wrong ones gets for being right; by the
batch's deviation that still happens while no answer is right."""
WHY_UNSCALED = {
    "reft": "in a group of wrong answers, one without a result is pushed away as hard as a right one would be pulled",
    "model": "scores are divided by each prompt's own deviation, so the policy does not go to start·exp(score/beta)",
}
"""By reward, what its group's deviation would do to it."""


def config_hints(algorithm: str) -> dict[str, Any]:
    """Return the type of every field of an algorithm's arguments in TRL."""
    return get_type_hints(ALGORITHMS[algorithm].config)


def vllm_is_installed() -> bool:
    """Whether TRL finds a vLLM to sample with."""
    from trl.import_utils import is_vllm_available

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # versions beside those that TRL was tried with
        return bool(is_vllm_available())


def has_accelerator() -> bool:
    """Whether there is an accelerator to train on."""
    import torch

    return torch.accelerator.is_available()


def _processes(use_cpu: bool) -> int:
    """Return how many processes train together, as transformers sees it."""
    from transformers import TrainingArguments

    args = TrainingArguments(output_dir=".", use_cpu=use_cpu, report_to="none")
    refuse_strangers(args, use_cpu="rl.trainer.use_cpu")
    refuse_data_parallel(args)
    return args.world_size


def config(options: RLOptions, *, output_dir: str, seed: int, model_init: Mapping[str, Any] | None = None) -> Config:
    """Return TRL's arguments for these options.

    What TRL switches on by default and costs time or changes numbers without need is off: gradient checkpointing,
    and on a machine without accelerator bf16.

    Args:
        model_init: how TRL loads the base model once more as the reference, where `options.beta` needs one.

    Raises:
        ValueError, TypeError: TRL or transformers refuse the settings together.
    """
    processes = _processes(bool(options.trainer.get("use_cpu")))
    answers = options.prompts * options.group
    micro = options.micro_batch or max(1, answers // processes)
    if answers % (micro * processes):
        raise ValueError(f"the {answers} answers of a step do not divide into batches of {micro} on {processes} ranks")
    arguments = ALGORITHMS[options.algorithm].config
    read = {one.name for one in fields(arguments)}
    accelerated = has_accelerator() and not options.trainer.get("use_cpu")
    settings: dict[str, Any] = {
        "output_dir": output_dir,
        "seed": seed,
        **{theirs: getattr(options, ours) for ours, theirs in NAMES.items() if theirs in read},
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": answers // (micro * processes),
        # The order of the prompts is ours, so that it neither depends on TRL nor on where a run was resumed.
        "shuffle_dataset": False,
        "save_strategy": "no" if options.save_steps is None else "steps",
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": "none",
        **({} if accelerated else {"bf16": False, "dataloader_pin_memory": False}),
        **({} if options.save_steps is None else {"save_steps": options.save_steps}),
        **({} if options.beta == 0 or not model_init else {"model_init_kwargs": dict(model_init)}),
        **(UNSCALED if options.reward in WHY_UNSCALED and read.issuperset(UNSCALED) else {}),
        **options.trainer,
    }
    if options.reward in WHY_UNSCALED and settings.get("scale_rewards") in ("group", True):
        warnings.warn(
            f"rl.trainer.scale_rewards=group with rl.reward={options.reward}: {WHY_UNSCALED[options.reward]}; leave "
            "scale_rewards out (none), or take batch",
            stacklevel=2,
        )
    with warnings.catch_warnings():
        # Names that TRL itself still uses; nothing that a recipe could do about.
        warnings.simplefilter("ignore", FutureWarning)
        return arguments(**settings)


class Reinforced(CheckedLoop):
    """TRL's own in a checked loop; prompts are tokens already: the tools and template options of their rows are in."""

    beta: float
    ballast_prompt_ids: Mapping[str, Sequence[int]]
    ballast_rewards: Rewards

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.ballast_prompt_ids[prompt]) for prompt in prompts], None, {}

    def checkpoint_state(self) -> dict[str, Any]:
        """Return what was counted of the answers so far."""
        return dict(self.ballast_rewards.state())

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Count on."""
        self.ballast_rewards.restore(state)

    def follows_start(self) -> bool:
        """Return whether a KL to the starting model is taken."""
        return bool(self.beta)

    def rows_named(self, batches: Sequence[Any]) -> str:
        """Return the numbers of the prompts whose answers were drawn together."""
        return numbers(sorted(rows_of_examples(batches)), "the prompts")


class GroupRelative(Reinforced, GRPOTrainer):
    """GRPO: an answer's advantage is over its group's mean; clipped token by token, the KL is in the loss."""

    args: GRPOConfig


class LeaveOneOut(Reinforced, RLOOTrainer):
    """RLOO: over the mean of the group's other answers; clipped answer by answer, the KL is in the reward."""

    args: RLOOConfig


Reinforcer = GroupRelative | LeaveOneOut


@dataclass(frozen=True)
class Algorithm:
    """TRL's arguments and trainer of an algorithm."""

    config: type[Config]
    trainer: type[Reinforcer]


ALGORITHMS = {"grpo": Algorithm(GRPOConfig, GroupRelative), "rloo": Algorithm(RLOOConfig, LeaveOneOut)}


def trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    args: Config,
    dataset: Dataset,
    prompt_ids: Mapping[str, Sequence[int]],
    rewards: Rewards,
    *,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Reinforcer:
    """Return TRL's trainer over prompts with the places of their rows, rewarded by `rewards`.

    Args:
        prompt_ids: what each prompt's text is as tokens.

    Raises:
        ValueError: TRL refuses the settings together.
    """

    def reward(
        completion_ids: list[list[int]], row: list[int], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float | None]:
        # TRL's texts are decoded without their prompts; ids are what was sampled and what is trained.
        judged = rewards.judge(row, completion_ids)
        count = len(judged.rewards)
        if judged.correct is not None:
            log_metric("correct", judged.correct / count)
        for name in ("cut_off", "errors", "timeouts"):
            log_metric(name if name == "cut_off" else f"verifier_{name}", getattr(judged, name) / count)
        log_metric("seconds/scoring", judged.seconds)
        return [*judged.rewards]

    keep_differentiable(model)
    with _without_notices(), trained_weights_kept(model):
        kind: Any = next(one.trainer for one in ALGORITHMS.values() if isinstance(args, one.config))
        made: Reinforcer = kind(
            model,
            reward,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=list(callbacks),
        )
    made.ballast_prompt_ids, made.ballast_rewards = prompt_ids, rewards
    return made


def gathered(found: dict[str, int]) -> list[dict[str, int]]:
    """Return what each rank found."""
    from accelerate.utils import gather_object

    return gather_object([found])


def seed(number: int) -> None:
    """Seed what TRL samples with, as TRL itself does when its trainer is made: each rank by itself."""
    from accelerate.utils import set_seed

    set_seed(number, device_specific=True)


@contextmanager
def _without_notices() -> Iterator[None]:
    """Keep back TRL's notice that loading options go with the reference alone: that is what they are given for."""
    loggers = [logging.getLogger(f"trl.trainer.{name}_trainer") for name in ALGORITHMS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def take_generation_defaults(model: PreTrainedModel | PeftModel, ends: Iterable[int]) -> GenerationConfig:
    """Take away the model's own generation defaults, but for its end tokens, and return them.

    `generate` fills what TRL leaves open from them, so answers would be drawn from another distribution than the one
    whose probabilities are trained.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    plain = GenerationConfig(
        eos_token_id=sorted(ends) or None, bos_token_id=own.bos_token_id, pad_token_id=own.pad_token_id
    )
    give_generation_defaults(model, plain)
    return own


def give_generation_defaults(model: Model, configuration: GenerationConfig) -> None:
    """Set the generation defaults of a model, and of what it wraps: PEFT overwrites the inner ones with its own."""
    module: Any
    for module in model.modules():
        if "generation_config" in vars(module):
            module.generation_config = configuration


def without_reference_adapter(folder: Path) -> None:
    """Take away TRL's frozen copy of an adapter from a folder that a trainer has saved into."""
    copy = folder / REFERENCE_ADAPTER
    if (folder / "adapter_config.json").is_file() and copy.is_dir():
        shutil.rmtree(copy)


def metric_line(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of TRL's log under our names, without what is there twice.

    ``mixed`` is the share of prompts whose answers have different rewards: only these move the model.
    """
    line = {METRICS.get(name, name): value for name, value in entry.items() if _is_kept(name)}
    if "frac_reward_zero_std" in line:
        line["mixed"] = 1 - line.pop("frac_reward_zero_std")
    return line


def _is_kept(name: str) -> bool:
    return name in METRICS or not name.startswith(TWICE)
