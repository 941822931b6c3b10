"""`ballast.Trainer`: TRL's SFT trainer with an objective in place of its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ballast.data import Collator, PrepareOptions, pack, prepare, renamed
from ballast.errors import BallastError
from ballast.evaluation.generation import end_ids
from ballast.half import freeze, half_options
from ballast.limits import check_tokenizer
from ballast.loop import numbers
from ballast.objectives import objective as build_objective
from ballast.quantised import trained_weights_kept
from ballast.records.model_card import append_objective
from ballast.training import refusals
from ballast.training.ahead import OLD, STEP_WEIGHT, Ahead, Weighed
from ballast.training.config import TrainingConfig, autocast_dtype
from ballast.training.forward import Forward
from ballast.training.given import own_config, tokenizer_of
from ballast.training.groups import OF_ANSWERS, RowCollator, StoredGroups, run_groups
from ballast.training.handed import Handed, refuse_streaming, row_count, rows_of
from ballast.training.inputs import input_change, settle_inputs
from ballast.training.metrics import MetricSums
from ballast.training.ranks import ROW_ENDS, rows_left, tokens_seen, without_repeats
from ballast.training.reduction import count
from ballast.training.reference import check_needs, run_reference, score_missing
from ballast.training.rows import rows_in
from ballast.training.shares import fill_shares
from ballast.training.trl import AdaptedTrainer, add_statistics, check_model, load_model, with_adapter

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from transformers.trainer_utils import EvalLoopOutput

    from ballast.data import Prepared, PrepareReport, Streamed
    from ballast.groups import GroupOptions
    from ballast.objectives import Objective
    from ballast.reference import ReferenceCache
    from ballast.stats import TokenStats
    from ballast.training.reference import RunSpec
    from ballast.training.trl import SFTConfig, StatisticsOutput


class Trainer(AdaptedTrainer):
    """Fine-tune a causal language model on demonstrations with a chosen objective.

    A `trl.SFTTrainer` in everything but the loss: arguments, data formats, PEFT, callbacks, checkpoints and resuming
    are TRL's. The loss is the sum of the objective's per-token losses over the trained tokens of the whole optimiser
    step (all micro-batches, all ranks), divided by what the objective counts; logits are never held whole.

    Logged per step: ``loss``, ``nll``, ``weight_mean``, ``weight_zero_share``, ``effective_tokens`` ((Σ|w|)²/Σw²),
    ``entropy``, ``kl`` with a live reference, ``log_ratio`` (mean of log p − log q on the demonstrations) with any
    reference. Where tokens are known beforehand to have no loss (`prift-mass` from a cache, groups without advantage),
    steps that are not logged leave them out of the head: means are then of the logged steps, and ``measured_share``
    says of how many of the tokens. ``eval_loss`` is the negative log-likelihood per token over the whole evaluation
    set, whatever the objective, so that runs compare. All in nats per trained token.

    Args:
        model: a causal language model, its path or its hub id.
        args: a `TrainingConfig`; None takes the defaults.
        train_dataset: raw rows in any of TRL's text formats, or tokenised rows (``input_ids``, ``labels``); what
            `ballast.data.prepare` made of such, or `prepare_stream` of rows to be read as they are trained on.
        eval_dataset: the same, or a mapping of names to such.
        processing_class: the tokenizer; None loads the model's own.
        objective: overrides ``args.objective``.
        groups: overrides ``args.groups``: how answers are sampled and judged, for objectives that train on groups. The
            rows of `train_dataset` are then prompts (``prompt``, ``completion``, ``teachers``, what the verifier
            reads), a batch counts prompts, and `train_dataset` is left out where ``groups.file`` names the answers.
        reference: overrides ``args.reference``; also a model, a `LiveReference`, a `ReferenceCache`,
            ``{"cache": folder}``, ``{"model": path}``, or both: a cache of that model.
        peft_config, quantization_config, formatting_func, callbacks, optimizers, optimizer_cls_and_kwargs: as in TRL.

    Raises:
        BallastError: for what would train on something else than it says, before the first step.
    """

    args: TrainingConfig
    _tag_names = ["ballast", "trl", "sft"]  # noqa: RUF012

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: TrainingConfig | None = None,
        data_collator: None = None,
        train_dataset: Dataset | Prepared | Streamed | None = None,
        eval_dataset: Dataset | Prepared | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_loss_func: None = None,
        compute_metrics: None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: None = None,
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
        *,
        objective: str | dict[str, Any] | Objective | None = None,
        reference: RunSpec = None,
        groups: GroupOptions | StoredGroups | dict[str, Any] | None = None,
    ) -> None:
        args = own_config(model, args)
        self.objective: Objective = build_objective(objective) if objective is not None else args.build_objective()
        args.objective = self.objective.to_dict()
        spec = reference if reference is not None else args.reference
        refusals.refuse_surroundings(args, quantization_config)
        refusals.refuse_parts(
            data_collator=data_collator,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        refusals.refuse_together(model, args, peft_config, quantization_config)
        check_needs(self.objective, spec)
        self.groups = run_groups(self.objective, args.groups if groups is None else groups, args, spec)
        args.groups = None if self.groups is None else self.groups.options.to_dict()
        refuse_streaming(train_dataset, args, groups=self.groups is not None)
        model = load_model(model, args, quantization_config) if isinstance(model, str) else model
        tokenizer = processing_class if processing_class is not None else tokenizer_of(model, args)
        check_tokenizer(type(model).__name__, model.config, tokenizer)
        self._handed = Handed.of(train_dataset, eval_dataset)
        train_dataset, eval_dataset = rows_of(train_dataset), rows_of(eval_dataset)
        if self.groups is None and formatting_func is None:
            train_dataset = self._handed.checked(train_dataset, tokenizer, args, self.objective)
        if peft_config is not None:
            model = with_adapter(model, peft_config, args.seed)
        check_model(model)
        settle_inputs(model, self.objective)
        self.half = freeze(model, None if args.half is None else half_options(args.half), args.seed)
        # Before TRL patches the forward: a copy made later would follow the weights in training.
        self.reference = run_reference(self.objective, spec, model, tokenizer, autocast_dtype(args))
        self.prepare_reports: dict[str, PrepareReport] = {}
        self._scorer, self._device = model, args.device
        self._train: Prepared | Streamed | None = None
        self._sums, self._steps_summed = {"train": MetricSums(), "eval": MetricSums()}, 0
        with trained_weights_kept(model):
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset if self.groups is None else self.groups.source(train_dataset),
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                callbacks=callbacks,
                optimizers=optimizers,
                optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
                formatting_func=formatting_func,
            )
        refusals.refuse_unsharded(args, fsdp=self.is_fsdp_enabled, deepspeed=self.is_deepspeed_enabled)
        refusals.refuse_no_steps(args, row_count(self.train_dataset))
        own = tuple(self.objective.columns)
        self.data_collator = Collator(columns=self.reference.columns, own=own, **self.collation)
        add_statistics(self.model)
        self.forward = Forward(
            objective=Weighed(self.objective) if self.objective.scope == "step" else self.objective,
            reference=self.reference,
            ends=sorted(end_ids(self.model, tokenizer)),
            autocast=self.accelerator.autocast,
            options={"output_router_logits": True} if self.router_coefficient() else {},
            tells_progress="progress" in self.objective.needs,
        )
        self.ahead = Ahead(self.objective, self._score_batch, self.reference.needed, self.accelerator)
        if self.groups is not None:
            self.data_collator = RowCollator(self.data_collator)
            self.groups.attach(self.model, self.collation, partial(rows_left, self.accelerator))
        self.reference.place(self.accelerator)

    def prepared(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: SFTConfig, packing: bool, name: str
    ) -> Dataset:
        """Tokenise as TRL does, with the objective's own columns, join the cached ones by row digest, pack."""
        options = PrepareOptions.from_training_args(args, packing=packing, context=self.reference.context(self._scorer))
        if self.groups is not None and not self.groups.prepared:
            # The training rows come first; a held-out set may be called "train" as well.
            return self.groups.prepare(dataset, tokenizer, options)
        # Held-out rows are measured by their likelihood, whatever weights the training rows have.
        read = dict(self.objective.columns)
        if self._train is not None:
            read = {name: column for name, column in read.items() if column in dataset.column_names}
        own = tuple(dict.fromkeys(read.values()))
        ready = self._handed.find(dataset, options, own)
        ready = ready or prepare(dataset, tokenizer, options, name=name, columns=own)
        self.prepare_reports[name] = ready.report
        self._train = self._train or ready
        return pack(self.reference.attach(renamed(ready.dataset, read), self._score), options, own=tuple(read))

    def _score(self, dataset: Dataset) -> ReferenceCache:
        started = getattr(self, "state", None) is not None and self.state.global_step > 0
        if self.reference.teacher:
            raise BallastError(
                "rows that the teacher's cache does not have cannot be scored here, where the teacher is not: score "
                "them beforehand (`ballast score` with reference.model)"
            )
        if started or self.reference.cache is None:
            raise BallastError(
                "rows that the reference cache does not have cannot be scored once training has moved the model: score "
                "them beforehand (`ballast score`), or pass them as eval_dataset when making the trainer"
            )
        return score_missing(self.reference.cache, self._scorer, dataset, self._device)

    def batch_columns(self) -> tuple[str, ...]:
        """Return the columns that batches carry: cached statistics, and the data's own."""
        return (*self.reference.columns, *self.objective.columns)

    def step_batches(self, batches: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        """Return the micro-batches of one optimiser step, with what is known of them before they are trained on.

        With groups, prompts become answers here.
        """
        if self.groups is not None:
            with self.accelerator.autocast():
                taken = self.groups.take(batches, count, self.state.global_step)
        else:
            taken = self.ahead.take(batches, count)
        fill_shares(taken, self.objective, self._summed, self.args.device)
        return self.ahead.weighed(taken)

    def checkpoint_state(self) -> dict[str, Any]:
        """Return answers that have been sampled, or scores of rows, that are not yet trained on."""
        return self.ahead.state() if self.groups is None else self.groups.state()

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Go on with answers that were sampled, or rows that were scored, before the checkpoint."""
        (self.ahead if self.groups is None else self.groups).restore(state)

    def follows_start(self) -> bool:
        """Return whether a live reference is made of the model as it starts."""
        return self.reference.live is not None

    def rows_named(self, batches: Sequence[Any]) -> str:
        """Return the numbers of the demonstrations, or of the step's prompts."""
        if self.groups is not None:
            return numbers(sorted(set(self.groups.step_rows)), "the prompts")
        return super().rows_named(batches) if self._train is None else rows_in(batches, self._train)

    def step_count(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor:
        """Count what the objective's reduction names over the micro-batches of all ranks."""
        self._steps_summed += 1
        local = count(self.objective.reduction, batches).to(device)
        return self.accelerator.reduce(local, "sum")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's part of the loss: its sum over the whole step's count, for backward.

        While evaluating it is the mean negative log-likelihood of the batch's trained tokens.
        """
        training = self.model.training
        inputs = inputs if training else without_repeats(inputs, self.accelerator)
        denominator = self._denominator(inputs, num_items_in_batch) if training else None
        seen, found = tokens_seen(inputs), self._forward(model, inputs, denominator)
        self._measure(found, seen, training)
        loss = found.exact_loss
        self.check_before_step(loss, inputs)
        if training and found.aux_loss is not None:
            # A mean per micro-batch, so it is averaged over the micro-batches of the step.
            loss = loss + self.router_coefficient() * found.aux_loss / self.current_gradient_accumulation_steps
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False)

    def _measure(self, found: StatisticsOutput, seen: Tensor | int, training: bool) -> None:
        """Add a micro-batch to the sums that the log is made of."""
        assert found.stats is not None
        stats = found.stats
        weight, report = self._described(stats, training and found.computed is None)
        whole = found.computed is None
        left_out = 0 if found.computed is None else len(found.computed) - len(weight)
        self._sums["train" if training else "eval"].add(
            stats, weight, report, seen=seen, left_out=left_out, measured=whole
        )

    def _described(self, stats: TokenStats, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weights of a micro-batch and what the objective reports of it, for the log."""
        objective = self.forward.objective
        if any(stats.get(name) is None for name in objective.needs):
            # Demonstrations held out for evaluation belong to no group or step, and need no columns.
            return torch.ones_like(stats.require("logprob")), {}
        report = objective.report(stats)
        if training and self.groups is not None:
            self.groups.sums.add_tokens(stats, report)
        return objective.weight(stats).detach(), report

    def _denominator(self, inputs: dict[str, Any], step_count: Tensor | int | None) -> Tensor:
        if step_count is None:
            # Called outside of the training loop: the batch is the step.
            fill_shares([inputs], self.objective, self._summed, self.args.device)
            return count(self.objective.reduction, [inputs]).clamp(min=1)
        # The count is of all ranks, and DDP and FSDP average the gradients over them.
        return torch.as_tensor(step_count).clamp(min=1) / self.accelerator.num_processes

    def _forward(self, model: torch.nn.Module, inputs: dict[str, Any], denominator: Tensor | None) -> StatisticsOutput:
        """Return loss and statistics of the batch's trained tokens; without denominator, as evaluation wants them."""
        columns = self._popped(inputs)
        if denominator is None:
            return self.forward.measure(model, inputs, columns, progress=self._progress)
        return self.forward.train(
            model,
            inputs,
            columns,
            denominator=denominator,
            whole=self._is_logged(),
            progress=self._progress,
            # Evaluation and the reference read the demonstrated tokens themselves.
            prepare=input_change(self.objective, self.args.seed, self.state.global_step, self.state.max_steps),
        )

    def _score_batch(self, batch: dict[str, Any], fields: tuple[str, ...]) -> TokenStats:
        """Return statistics of a micro-batch under the model as it is, before it is trained on."""
        inputs = dict(self._prepare_inputs(batch))
        columns = self._popped(inputs)
        found = self.forward.score(self.model_wrapped, inputs, columns, progress=self._progress, fields=fields)
        assert found.stats is not None
        return found.stats

    def _popped(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Take the columns of statistics out of a batch; what is left is the model's."""
        inputs.pop(ROW_ENDS, None)
        names = dict.fromkeys((*self.batch_columns(), *OF_ANSWERS, OLD, STEP_WEIGHT))
        return {name: inputs.pop(name) for name in names if name in inputs}

    @property
    def _progress(self) -> float:
        """The share of the training that is done."""
        return min(self.state.global_step / max(self.state.max_steps, 1), 1.0)

    def _is_logged(self) -> bool:
        """Return whether the step being computed is one that is logged, whose metrics are to be of all tokens."""
        if self.args.logging_strategy != "steps":
            return True
        step = self.state.global_step + 1
        return step % self.state.logging_steps == 0 or (self.args.logging_first_step and step == 1)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate with metrics per trained token of the whole set, where TRL averages over batches."""
        self._sums["eval"] = MetricSums()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        metrics = self._read("eval", steps=1)
        if metrics and output.metrics is not None:
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
            output.metrics[f"{metric_key_prefix}_loss"] = metrics["nll"]
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the statistics since the last log to a step's log."""
        if "loss" in logs:
            logs = {**logs, **self._read("train", self._steps_summed), **self._read_groups()}
            self._steps_summed = 0
        elif self.groups is not None and "train_runtime" in logs:
            logs.update(self.groups.sums.read_rest(self._summed, self.args.device))
        self.drop_own_metrics()
        super().log(logs, start_time)

    def _read_groups(self) -> dict[str, float]:
        if self.groups is None:
            return {}
        return self.groups.sums.read(self._summed, self.args.device, self.accelerator.num_processes)

    def _summed(self, sums: Tensor) -> Tensor:
        """Return sums over all ranks."""
        total: Tensor = self.accelerator.reduce(sums, "sum")
        return total

    def _read(self, mode: str, steps: int) -> dict[str, float]:
        metrics = self._sums[mode].read(self._summed, steps)
        seen, _ = int(metrics.pop("seen", 0)), metrics.pop("tokens", None)
        if mode == "train" and metrics:
            # A resumed run goes on counting where its log ends.
            before = next((int(log["num_tokens"]) for log in self.state.log_history[::-1] if "num_tokens" in log), 0)
            self._total_train_tokens = max(self._total_train_tokens, before) + seen
            metrics["num_tokens"] = self._total_train_tokens
        return metrics

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write TRL's model card, and below it the objective and its options."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            objective, folder = self.objective, str(self.args.output_dir)
            append_objective(folder, objective.to_dict(), objective.source, self.reference.describe())
