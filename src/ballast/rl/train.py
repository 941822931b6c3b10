"""TRL's trainer, put together: prompts in our order, rewards by our verifier, the log under our names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.evaluation.generation import end_ids, read_completion
from ballast.half import freeze
from ballast.limits import check_tokenizer
from ballast.rl import trl
from ballast.rl.options import RLOptions
from ballast.rl.prompts import Prompts, order
from ballast.rl.rewards import Rewards
from ballast.verifiers.registry import Verifier

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback


class Run:
    """One run of GRPO or RLOO.

    Attributes:
        trainer: TRL's own.
        rewards: what judges, and counts what went wrong.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        verify: Verifier | None,
        options: RLOptions,
        args: trl.Config,
        *,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        score: Callable[[Sequence[Sequence[int]]], Sequence[float]] | None = None,
    ) -> None:
        """
        Args:
            model: a transformers causal language model, or a PEFT model whose adapter trains.
            tokenizer: its tokenizer; without a pad token it gets its end token for one.
            prompts: what is answered.
            verify: what answers are worth, of `reward_verifier`.
            options: how many, how long.
            args: of `ballast.rl.trl.config`.
            peft_config: a new adapter to train.
            callbacks: of transformers' trainer.
            score: says what prompts with their answers are worth, as token ids, in place of the verifier.

        Raises:
            ValueError: TRL refuses the settings together.
        """
        check_tokenizer(type(model).__name__, model.config, tokenizer)
        half = freeze(model, options.half, args.seed)
        ends = end_ids(model, tokenizer)
        self._defaults = trl.take_generation_defaults(model, ends)
        self.rewards = Rewards(
            verify,
            prompts.rows,
            lambda row, ids: read_completion(tokenizer, prompts.ids[row], ids, ends),
            None if score is None else lambda rows, ids: score(list(map(prompts.followed, rows, ids))),
        )
        rounds = -(-options.steps // options.iterations)
        places = order(len(prompts), rounds * options.prompts, args.seed)
        self.trainer = trl.trainer(
            model,
            tokenizer,
            args,
            prompts.dataset(places),
            dict(zip(prompts.texts, prompts.ids, strict=True)),
            self.rewards,
            peft_config=peft_config,
            callbacks=callbacks,
        )
        self.trainer.half = half

    def train(self, *, resume: bool | Path = False) -> dict[str, float]:
        """Train, or go on from a checkpoint (True: from the last whole one), and return TRL's totals."""
        # What happened since the trainer was made must not change the samples; a checkpoint brings its own state.
        trl.seed(self.trainer.args.seed)
        result = self.trainer.train(resume if isinstance(resume, bool) else str(resume))
        trained: Any = self.trainer.model
        self._defaults.pad_token_id = trained.generation_config.pad_token_id
        trl.give_generation_defaults(trained, self._defaults)
        return dict(result.metrics)

    def counts(self) -> dict[str, int]:
        """Return how many answers were judged since the start, and what went wrong, over all ranks."""
        own = self.rewards.state()
        return {name: sum(found[name] for found in trl.gathered(own)) for name in own}
