"""The trainer's contact with TRL: its private attributes and hooks under names of ours.

`ballast.data.trl` holds the part that the data needs. Everything read here was checked against TRL 1.16.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import ModelOutput
from trl import SFTConfig, SFTTrainer

from ballast.errors import BallastError
from ballast.files import expanded
from ballast.head import (
    at_head,
    backbone,
    backbone_hidden,
    check_adapted_head,
    lm_head,
    open_head,
    trained_positions,
    unwrapped,
)
from ballast.loop import CheckedLoop
from ballast.quantised import keep_differentiable, refuse_without_adapter
from ballast.reference.adapters import is_peft, refuse_unfit_layers
from ballast.reference.providers import evaluating
from ballast.sharding import loaded_whole
from ballast.training.inputs import changed_inputs
from ballast.training.refusals import refuse_partitioned

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ballast.head import Formed, LMHead
    from ballast.protocols import Model
    from ballast.stats import TokenStats
    from ballast.training.inputs import Prepare
    from ballast.training.reference import States

    Statistics = Callable[..., Formed]

__all__ = [
    "AdaptedTrainer",
    "SFTConfig",
    "StatisticsOutput",
    "add_statistics",
    "check_head",
    "check_model",
    "load_model",
    "with_adapter",
]


BALANCE = "load_balancing_loss_func"


class Held:
    """What a sharded model's forward returns as it is: FSDP casts every tensor that it finds to its output dtype."""

    def __init__(self, found: Formed) -> None:
        self.loss, self.stats, self.computed = found.loss.detach(), found.stats, found.computed


@dataclass
class StatisticsOutput(ModelOutput):
    """What a model's forward returns when it is asked for statistics instead of logits.

    Attributes:
        loss: differentiable.
        held: the loss without gradient and the statistics, whatever hooks do to what a forward returns.
        aux_loss: the router's, of a mixture of experts.
    """

    loss: Tensor
    held: Held | None = None
    aux_loss: Tensor | int | None = None

    @property
    def stats(self) -> TokenStats | None:
        """Statistics of the tokens that were computed, without gradient."""
        return None if self.held is None else self.held.stats

    @property
    def computed(self) -> Tensor | None:
        """Which tokens these are, ``[N]`` of bool; None where all were."""
        return None if self.held is None else self.held.computed

    @property
    def exact_loss(self) -> Tensor:
        """The loss with its gradient, in the dtype that it was summed in."""
        if self.held is None or self.loss.dtype == self.held.loss.dtype:
            return self.loss
        wide = self.loss.to(self.held.loss.dtype)
        return wide + (self.held.loss - wide).detach()


def add_statistics(model: Model) -> None:
    """Let ``model(..., labels=labels, statistics=f)`` return ``f(hidden_NH, head, targets_N)`` instead of logits.

    Backbone, reference and head run inside the model's own forward, and the head inside its layer's, so that the hooks
    of DDP, FSDP and DeepSpeed see them. Without `statistics` the forward is what it was, so that generation and
    evaluation by others are unchanged. With ``prepare=f`` besides, the backbone reads ``f(embeddings, arg_max,
    labels)`` in place of its own embeddings; with ``reference=g``, `statistics` takes ``states=g()`` too.
    """
    causal: Any = unwrapped(model)
    original = causal.forward
    open_head(causal)

    # Keep the original signature: `generate` checks its arguments against it.
    @functools.wraps(type(causal).forward)
    def forward(
        self: Any,
        *args: Any,
        statistics: Statistics | None = None,
        prepare: Prepare | None = None,
        reference: Callable[[], States | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        if statistics is None:
            return original(*args, **kwargs)
        labels_BT = kwargs.pop("labels")
        kwargs["use_cache"] = False
        given = {} if reference is None else {"states": _states(reference)}
        if prepare is not None:
            kwargs = _changed_inputs(self, kwargs, labels_BT, prepare)
        outputs = backbone(self)(*args, **kwargs)
        router_logits = outputs.router_logits if kwargs.get("output_router_logits") else None
        aux_loss = _router_loss(self, router_logits, kwargs.get("attention_mask"))
        return _read(self, outputs.last_hidden_state, labels_BT, functools.partial(statistics, **given), aux_loss)

    causal.forward = types.MethodType(forward, causal)


# How many tokens are trained differs from batch to batch: torch.compile is to end before, at the hidden states.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch says no type
def _read(
    causal: Model, hidden_BTH: Tensor, labels_BT: Tensor, statistics: Statistics, aux_loss: Any
) -> StatisticsOutput:
    mask, targets_N = trained_positions(labels_BT)

    def compute(hidden_NH: Tensor, head: LMHead) -> tuple[Tensor, Held]:
        found = statistics(hidden_NH, head, targets_N)
        return found.loss, Held(found)

    loss, held = at_head(causal, hidden_BTH[:, :-1][mask], compute)
    return StatisticsOutput(loss=loss, held=held, aux_loss=aux_loss)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch says no type
def _states(reference: Callable[[], States | None]) -> States | None:
    return reference()


_changed_inputs = torch.compiler.disable(changed_inputs)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch says no type
def _router_loss(model: Model, router_logits: Any, attention_mask: Tensor | None) -> Tensor | int | None:
    if not router_logits:
        # A family that can be a mixture, none of whose layers is one here, has an empty tuple of them.
        return None
    config = model.config.get_text_config()
    experts = getattr(config, "num_experts", None) or config.num_local_experts
    balance = _family_balance(model)
    keys = {"num_keys": math.isqrt(experts)} if "num_keys" in inspect.signature(balance).parameters else {}
    given = {"num_experts": experts, "top_k": config.num_experts_per_tok, "attention_mask": attention_mask}
    return balance(router_logits, **given, **keys)


def _family_balance(model: Model) -> Callable[..., Tensor | int]:
    """Return the load-balancing loss of the model's own file; most are Mixtral's, Doge's counts products of keys."""
    from transformers.models.mixtral import modeling_mixtral

    # Wrapping (FSDP) puts classes of its own in front.
    files = [sys.modules[cls.__module__] for cls in type(model).__mro__]
    return next(file for file in (*files, modeling_mixtral) if hasattr(file, BALANCE)).load_balancing_loss_func


class AdaptedTrainer(CheckedLoop, SFTTrainer):
    """`trl.SFTTrainer` with the few things that ballast changes as hooks that subclasses override."""

    args: SFTConfig
    model: PreTrainedModel
    _signature_columns: Any

    # The loss is divided by the count of the whole optimiser step already, for every class of model.
    loss_is_scaled_for_ga: Any = True

    def prepared(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: SFTConfig, packing: bool, name: str
    ) -> Dataset:
        """Return raw rows as rows for the collator; called before `args` and `model` are attributes."""
        raise NotImplementedError

    def batch_columns(self) -> tuple[str, ...]:
        """Return the columns that batches carry beside token ids and labels."""
        raise NotImplementedError

    def step_batches(self, batches: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        """Return the micro-batches of one optimiser step, at most `count` of them."""
        return [batch for _, batch in zip(range(count), batches, strict=False)]

    def step_count(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor:
        """Return what the loss of one optimiser step is divided by, over all micro-batches and ranks."""
        raise NotImplementedError

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Dataset:
        if formatting_func is not None and "input_ids" not in dataset.column_names:
            field = args.dataset_text_field
            dataset = dataset.map(lambda row: {field: formatting_func(row)}, remove_columns=dataset.column_names)
        return self.prepared(dataset, processing_class, args, packing, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels", "row", "seq_lengths", *self.batch_columns()]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches = self.step_batches(epoch_iterator, num_batches)
        self.batches = batches
        return batches, self.step_count(batches, device) if batches else None

    def _prepare_input(self, data: Any) -> Any:
        # Under DeepSpeed transformers would round floats, as inputs of a model, to the dtype of its weights: bfloat16
        # keeps three digits of a column, and no number of a group beyond 256.
        return data.to(self.args.device) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    @property
    def collation(self) -> dict[str, Any]:
        """Arguments of the collator that TRL decided on."""
        return {
            "pad_token_id": self._tokenizer.pad_token_id,
            "padding_free": self.padding_free,
            "pad_to_multiple_of": self.args.pad_to_multiple_of,
        }

    def router_coefficient(self) -> float:
        """Return the weight of the mixture-of-experts load-balancing loss, 0 where there is none."""
        return float(self.router_aux_loss_coef) if self.aux_loss_enabled else 0.0

    def drop_own_metrics(self) -> None:
        """Forget what TRL collected for its log: the statistics logged are ours."""
        self._metrics["train"].clear()
        self._metrics["eval"].clear()


def load_model(name: str, args: SFTConfig, quantization_config: Any = None) -> PreTrainedModel:
    """Load a causal language model as TRL's trainer does, but from safetensors alone."""
    from trl.trainer.utils import create_model_from_path

    given: Any = args.model_init_kwargs or {}
    options = {"trust_remote_code": args.trust_remote_code, **given, "use_safetensors": True}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None
    with loaded_whole():
        return create_model_from_path(expanded(name), **options)


def with_adapter(model: PreTrainedModel | PeftModel, peft_config: PeftConfig, seed: int) -> PeftModel:
    """Wrap a model in PEFT from the seed that TRL's trainer would draw the adapter from.

    Raises:
        BallastError: if the model has adapters already: two would be stacked, and the first lost on saving; if PEFT
            refuses the settings for this model.
    """
    from peft import get_peft_model
    from transformers import set_seed

    if hasattr(model, "peft_config"):
        raise BallastError("the model has adapters already: merge them first, or leave out `peft_config`")
    set_seed(seed)
    try:
        return get_peft_model(model, peft_config)
    except ValueError as error:
        raise BallastError(f"peft_config: {' '.join(str(error).split())}") from error


def check_model(model: Model) -> None:
    """Refuse a model that cannot be trained, or whose statistics would be of something else, and settle its weights.

    Raises:
        BallastError: see `ballast.quantised`, `check_head`.
    """
    forget_preparation(model)
    refuse_partitioned(model)
    refuse_without_adapter(model)
    keep_differentiable(model)
    check_head(model)
    # The check has computed in eval mode: were weights packed all the same, they would be now.
    keep_differentiable(model)


def forget_preparation(model: Model) -> None:
    """Take off the precision that an earlier trainer has put around a model's forward.

    accelerate passes over a model that it has prepared before: a second trainer would compute in the precision of the
    first, whatever its settings say. Shards of several processes stay as they are.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return
    state: dict[str, Any] = vars(model)
    state.pop("_is_accelerate_prepared", None)
    if (forward := state.pop("_original_forward", None)) is not None:
        state["forward"] = forward


def check_head(model: Model) -> None:
    """Compare the logits of two tokens as ballast projects them with those of the model's own forward.

    Raises:
        BallastError: if they differ: the model does something to its logits that the statistics would miss; if it
            computes nothing from token ids alone; or if an adapter fits none of what a layer computes, or would get
            no gradient.
    """
    check_adapted_head(model)
    if is_peft(model):
        refuse_unfit_layers(model)
    causal = unwrapped(model)
    head = lm_head(causal)
    if head.weight.is_meta:
        return
    name = type(causal).__name__
    ids = torch.tensor([[0, min(1, len(head.weight) - 1)]], device=head.weight.device)
    try:
        with torch.no_grad(), evaluating(causal):
            theirs = causal(input_ids=ids, use_cache=False).logits[0]
        with torch.set_grad_enabled(is_peft(model)), evaluating(causal):
            hidden = backbone_hidden(causal, input_ids=ids)[0]
    except Exception as error:  # each model class has errors of its own
        raise BallastError(
            f"{name}: cannot compute logits from token ids alone, which is all that is trained on: "
            f"{' '.join(str(error).split())}"
        ) from error
    trained = any(weights.requires_grad for weights in backbone(causal).parameters())
    if is_peft(model) and trained and not hidden.requires_grad:
        raise BallastError(
            f"{name}: passes no gradient on to an adapter between its layers, which would stay as it is; train all "
            "weights (without model.lora), or another model"
        )
    if not _same_logits(theirs, hidden.detach(), head):
        raise BallastError(
            f"{name} changes its logits in a way that ballast does not know (it knows bias, soft-cap and scale): every "
            "statistic would be of another distribution; please report the model class"
        )


def _same_logits(theirs: Tensor, hidden: Tensor, head: LMHead) -> bool:
    if hidden.shape[-1] != head.weight.shape[-1]:
        return False
    ours = head.logits(hidden)
    tolerance = 8 * torch.finfo(head.weight.dtype).eps ** 0.75 * float(theirs.abs().max().clamp(min=1))
    return ours.shape == theirs.shape and bool((ours - theirs.to(ours.dtype)).abs().max() <= tolerance)
