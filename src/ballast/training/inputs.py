"""Objectives that change what the model reads: its greedy tokens, the changed inputs, models that cannot take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ballast.errors import BallastError
from ballast.head import at_head, backbone, backbone_hidden, greedy, lm_head, trained_positions, unwrapped
from ballast.reference.providers import evaluating

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.objectives import Objective
    from ballast.objectives.base import ChangesInputs
    from ballast.protocols import Model

    Prepare = Callable[[Tensor, Tensor, Tensor], Tensor]


def input_change(objective: Objective, seed: int, step: int, steps: int) -> Prepare | None:
    """Return ``prepare(embeddings, arg_max, labels)`` for one optimiser step; None where inputs stay as they are.

    The step's noise follows from seed and step alone, so it is the same in all micro-batches, on all ranks and in a
    resumed run.
    """
    prepare = getattr(objective, "prepare_inputs", None)
    if prepare is None:
        return None
    noise = float(np.random.default_rng([seed, step]).standard_normal())
    return partial(prepare, progress=min(step / max(steps, 1), 1.0), noise=noise)


def changed_inputs(causal: Model, inputs: dict[str, Any], labels_BT: Tensor, prepare: Prepare) -> dict[str, Any]:
    """Return the backbone's arguments with the embeddings that `prepare` makes in place of the token ids.

    Args:
        causal: the causal language model.
        inputs: arguments of its backbone, ``input_ids`` ``[B, T]`` among them.
        labels_BT: -100 where nothing is trained.
        prepare: ``(embeddings, arg_max, labels) -> [B, T, H]``, see `ballast.objectives.base.ChangesInputs`.
    """
    ids_BT = inputs["input_ids"]
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "inputs_embeds")}
    arg_max_BT = _greedy_tokens(causal, ids_BT, labels_BT, others)
    embed = causal.get_input_embeddings()
    inputs_BTH = prepare(embed(ids_BT), embed(arg_max_BT), labels_BT)
    if torch.is_grad_enabled() and any(getattr(part, "gradient_checkpointing", False) for part in causal.modules()):
        # Reentrant checkpointing gives no gradient to the weights of a block none of whose inputs asks for one.
        inputs_BTH.requires_grad_()
    return {**others, "inputs_embeds": inputs_BTH}


def _greedy_tokens(causal: Model, ids_BT: Tensor, labels_BT: Tensor, others: dict[str, Any]) -> Tensor:
    """Return the token ids with every trained one replaced by the model's greedy prediction of it, ``[B, T]``."""
    mask, _ = trained_positions(labels_BT)
    quiet = {name: value for name, value in others.items() if name != "output_router_logits"}
    # In eval mode: the prediction is what the model would say, so without dropout, and nothing is kept for a backward,
    # so there is nothing to checkpoint.
    with torch.no_grad(), evaluating(causal), _without_cast_cache():
        hidden_NH = backbone(causal)(input_ids=ids_BT, **quiet).last_hidden_state[:, :-1][mask]
        arg_max_BT = ids_BT.clone()
        arg_max_BT[:, 1:][mask] = at_head(causal, hidden_NH, greedy)
    return arg_max_BT


@contextmanager
def _without_cast_cache() -> Iterator[None]:
    """Keep autocast from remembering casts of this pass.

    Torch before pytorch#165068 uses a weight cast without gradient again where one is wanted, which then gets none.
    """
    remembers = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(remembers)


def settle_inputs(model: Model, objective: Objective) -> None:
    """Make a model fit for an objective that changes its inputs; do nothing for other objectives.

    Where the objective's inputs carry no gradient, an input embedding that is not the head's too is frozen: it would
    get none, and several ranks would wait for it.

    Raises:
        BallastError: if embeddings in place of token ids give other hidden states, or an adapter on the input
            embedding would never be trained.
    """
    if not hasattr(objective, "prepare_inputs"):
        return
    causal = unwrapped(model)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise BallastError(
            f"objective {objective.name} changes the input embeddings, and virtual tokens are put among them: its "
            "greedy tokens would be misplaced; use LoRA or full fine-tuning"
        )
    _check_embeddings(causal, objective)
    if _carries_gradient(objective):
        return
    head = {id(weight) for weight in causal.get_output_embeddings().parameters()}
    alone = [w for w in causal.get_input_embeddings().parameters() if w.requires_grad and id(w) not in head]
    if alone and hasattr(model, "peft_config"):
        raise BallastError(
            f"objective {objective.name} gives the input embedding no gradient, so the adapter on it would never be "
            "trained: set the objective's option embeddings='attached', or take the adapter off the embedding"
        )
    for weight in alone:
        weight.requires_grad_(False)


def _check_embeddings(causal: Model, objective: Objective) -> None:
    weight = lm_head(causal).weight
    if weight.is_meta:
        return
    ids = torch.arange(4, device=weight.device)[None] % len(weight)
    with torch.no_grad(), evaluating(causal):
        wanted, embeddings = backbone_hidden(causal, input_ids=ids), causal.get_input_embeddings()(ids)
        try:
            got = backbone_hidden(causal, inputs_embeds=embeddings)
            # Models that look up token ids from embeddings (for tables of their layers) fail between two tokens.
            backbone_hidden(causal, inputs_embeds=(embeddings + embeddings.flip(1)) / 2)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
            got = torch.full_like(wanted, torch.nan)
    tolerance = 8 * torch.finfo(wanted.dtype).eps ** 0.75 * float(wanted.abs().max().clamp(min=1))
    if not (got - wanted).abs().max() <= tolerance:
        raise BallastError(
            f"{type(causal).__name__} does not read its input embeddings alone, and objective {objective.name} changes "
            "these: it would train on other hidden states than the model's; use another objective or model"
        )


def _carries_gradient(objective: ChangesInputs) -> bool:
    probe, labels = torch.zeros(1, 2, 1, requires_grad=True), torch.tensor([[-100, 0]])
    return bool(objective.prepare_inputs(probe, probe, labels).requires_grad)
