"""Every contact of learning a reward with TRL, checked against TRL 1.16; the trainer itself is TRL's own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from trl import RewardConfig, RewardTrainer

from ballast.loop import CheckedLoop, refuse_data_parallel, refuse_strangers
from ballast.reward.scores import LOSSES, last, token_scores

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from ballast.reward.options import RewardOptions
    from ballast.reward.pairs import Pair

__all__ = ["RewardConfig", "config", "config_hints", "trainer"]


def config_hints() -> dict[str, Any]:
    """Return the type of every field of TRL's arguments."""
    return get_type_hints(RewardConfig)


def config(options: RewardOptions, *, output_dir: str, seed: int) -> RewardConfig:
    """Return TRL's arguments for these options.

    Raises:
        ValueError, TypeError: TRL or transformers refuse the settings together.
    """
    import torch

    micro = options.micro_batch or options.pairs
    accelerated = torch.accelerator.is_available() and not options.trainer.get("use_cpu")
    settings: dict[str, Any] = {
        "output_dir": output_dir,
        "seed": seed,
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.epochs,
        "max_steps": -1 if options.steps is None else options.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": options.pairs // micro,
        "center_rewards_coefficient": options.center or None,
        "max_length": None,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": "none",
        **({} if accelerated else {"bf16": False, "dataloader_pin_memory": False}),
        **options.trainer,
    }
    with warnings.catch_warnings():
        # Names that TRL itself still uses; nothing that a recipe could do about.
        warnings.simplefilter("ignore", FutureWarning)
        made = RewardConfig(**settings)
    refuse_strangers(made, use_cpu="reward.trainer.use_cpu")
    refuse_data_parallel(made)
    return made


class PairTrainer(CheckedLoop, RewardTrainer):
    """TRL's own in a checked loop, with the losses of `LOSSES` on scores read at the tokens that are there."""

    args: RewardConfig
    ballast_loss: str
    # The sum is divided by the pairs of the whole optimiser step here.
    loss_is_scaled_for_ga: Any = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this micro-batch's part of the mean loss over the step's pairs, and note the scores for the log."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        scores = token_scores(model, ids, mask)
        losses = LOSSES[self.ballast_loss](scores, ids, mask)
        chosen, rejected = last(scores, mask).chunk(2)
        if self.args.center_rewards_coefficient is not None:
            losses = losses + self.args.center_rewards_coefficient * (chosen + rejected) ** 2
        loss = losses.sum() / (sum(len(batch["input_ids"]) for batch in self.batches or [inputs]) / 2)
        self._note(chosen.detach(), rejected.detach())
        return (loss, {"logits": scores}) if return_outputs else loss

    def _note(self, chosen: Tensor, rejected: Tensor) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        # One value for each pair: the log's mean is then over pairs, however they lie in micro-batches.
        metrics["accuracy"] += (chosen > rejected).float().tolist()
        metrics["margin"] += (chosen - rejected).tolist()
        metrics["reward/chosen"] += chosen.tolist()
        metrics["reward/rejected"] += rejected.tolist()


def trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: RewardConfig,
    pairs: Sequence[Pair],
    loss: str,
    callbacks: Sequence[TrainerCallback] = (),
) -> PairTrainer:
    """Return TRL's trainer over pairs of token ids.

    Raises:
        ValueError: TRL refuses the settings together.
    """
    from datasets import Dataset

    rows = Dataset.from_list([{"chosen_ids": list(one.chosen), "rejected_ids": list(one.rejected)} for one in pairs])
    made = PairTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=list(callbacks))
    made.ballast_loss = loss
    return made
