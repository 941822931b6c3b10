"""Write answers to many prompts at once: every prompt is read once, and rows leave the batch as their answers end.

Shapes: ``P`` prompts, ``R`` rows (a prompt has one for each of its answers), ``T`` positions, ``V`` vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from ballast.evaluation.row_cache import keep_rows, spread_rows
from ballast.head import unwrapped
from ballast.protocols import Model

if TYPE_CHECKING:
    from torch import Tensor

Prompts = Sequence[tuple[int, ...]]

CACHE_NAMES = ("past_key_values", "cache_params")
"""What models call their cache: the second those that are Mamba's kin."""


class Reader:
    """A model that reads prompts, then one more token of every row at a time, with a cache of its own."""

    def __init__(self, model: Model, pad: int) -> None:
        causal: Any = unwrapped(model)
        self.model = causal
        self.pad = pad
        accepted = inspect.signature(causal.forward).parameters
        self._last_logits = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._positioned = "position_ids" in accepted
        self._cache: dict[str, Any] = {}

    def read(self, prompts: Prompts) -> Tensor:
        """Return the logits behind every prompt, ``[P, V]``; prompts are padded at the left."""
        width = max(len(ids) for ids in prompts)
        self._size = width
        device = self.model.device
        self._ids_RT = torch.tensor([[self.pad] * (width - len(ids)) + list(ids) for ids in prompts], device=device)
        self._mask_RT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        self._padded = bool((self._mask_RT == 0).any())
        self._positions_RT = (self._mask_RT.cumsum(-1) - 1).clamp(min=0)
        return self._forward(is_first_iteration=True)

    def spread(self, rows_R: Tensor, room: int) -> None:
        """Let every prompt stand as often as `rows_R` names it; `room` tokens will follow."""
        spread_rows(self._held(), rows_R, room)
        ahead = torch.arange(room, device=rows_R.device)
        self._ids_RT = torch.nn.functional.pad(self._ids_RT[rows_R], (0, room), value=self.pad)
        self._mask_RT = torch.nn.functional.pad(self._mask_RT[rows_R], (0, room), value=1)
        positions_RT = self._positions_RT[rows_R]
        self._positions_RT = torch.cat([positions_RT, positions_RT[:, -1:] + 1 + ahead], dim=-1)

    def keep(self, rows_R: Tensor) -> None:
        """Keep these rows, in this order."""
        keep_rows(self._held(), rows_R)
        self._ids_RT, self._mask_RT = self._ids_RT[rows_R], self._mask_RT[rows_R]
        self._positions_RT = self._positions_RT[rows_R]

    def step(self, tokens_R: Tensor) -> Tensor:
        """Return the logits behind one more token of every row, ``[R, V]``."""
        self._ids_RT[:, self._size] = tokens_R
        self._size += 1
        return self._forward(next_sequence_length=1)

    def writing(self) -> AbstractContextManager[None]:
        """Return the context for single tokens: transformers computes experts another way there."""
        optimised = getattr(self.model, "_optimize_model_for_decode", nullcontext)
        context: AbstractContextManager[None] = optimised()
        return context

    def _held(self) -> Any:
        return next(iter(self._cache.values()))

    def _forward(self, **how: Any) -> Tensor:
        size = self._size
        positions = {"position_ids": self._positions_RT[:, :size]} if self._positioned else {}
        inputs = self.model.prepare_inputs_for_generation(
            self._ids_RT[:, :size],
            # Without padding there is no mask to make.
            attention_mask=self._mask_RT[:, :size] if self._padded else None,
            use_cache=True,
            **positions,
            **self._last_logits,
            **self._cache,
            **how,
        )
        outputs = self.model(**inputs, return_dict=True)
        self._cache = {name: outputs[name] for name in CACHE_NAMES if name in outputs}
        logits_RV: Tensor = outputs.logits[:, -1]
        return logits_RV


def write(
    reader: Reader,
    prompts: Prompts,
    count: int,
    draw: Callable[[Tensor, Sequence[int], int], Tensor],
    ends: Callable[[int, int], bool],
) -> list[list[int]]:
    """Return the new tokens of every row, in the rows' order.

    Args:
        reader: of the model.
        prompts: of every row; those that are equal are read once.
        count: tokens after which an answer is cut off.
        draw: called with logits ``[R, V]``, the rows they belong to and the step; returns their tokens ``[R]``.
        ends: whether this token, the newest of this row, ends its answer; called once for each token.
    """
    places = {ids: place for place, ids in enumerate(dict.fromkeys(prompts))}
    rows_R = torch.tensor([places[ids] for ids in prompts], device=reader.model.device)
    logits_RV = reader.read([*places])[rows_R]
    reader.spread(rows_R, count)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = [*range(len(prompts))]
    unfinished = set(rows)
    with reader.writing():
        for step in range(count):
            tokens_R = draw(logits_RV, rows, step)
            for row, token in zip(rows, tokens_R.tolist(), strict=True):
                answers[row].append(token)
                if ends(row, token):
                    unfinished.remove(row)
            if not unfinished or step + 1 == count:
                break
            if len(unfinished) < len(rows):
                kept = closed_up([row in unfinished for row in rows])
                kept_R = torch.tensor(kept, device=tokens_R.device)
                reader.keep(kept_R)
                rows, tokens_R = [rows[place] for place in kept], tokens_R[kept_R]
            logits_RV = reader.step(tokens_R)
    return answers


def closed_up(kept: Sequence[bool]) -> list[int]:
    """Return the places that are kept, the last of them moved into the gaps, so that few rows change place."""
    size = sum(kept)
    last = (place for place in reversed(range(len(kept))) if kept[place])
    return [place if kept[place] else next(last) for place in range(size)]


_PROVED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def spreads(model: Model, prompt: tuple[int, ...], pad: int) -> bool:
    """Return whether this model's cache can be spread and selected from, tried once for each model on a few tokens.

    No list of names tells: state may lie outside of the cache, and what wraps a model may put tokens before the prompt.

    Args:
        model: to be asked.
        prompt: a prompt, whose first tokens are tried.
        pad: the padding's id.
    """
    if model not in _PROVED:
        _PROVED[model] = not _needs_generate(model) and _agrees(model, prompt, pad)
    return _PROVED[model]


def _needs_generate(model: Model) -> bool:
    """Return whether transformers' `generate` does more than its forwards show: ranks in step, adapters by token."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.integrations.fsdp import is_fsdp_managed_module

    causal: Any = unwrapped(model)
    adapters = getattr(model, "peft_config", {}).values()
    by_token = any(getattr(one, "alora_invocation_tokens", None) for one in adapters)
    return by_token or is_deepspeed_zero3_enabled() or is_fsdp_managed_module(causal)


def _agrees(model: Any, prompt: tuple[int, ...], pad: int) -> bool:
    """Return whether rows that were spread, moved and dropped have the logits of whole sequences without a cache."""
    one, two = [*dict.fromkeys((*prompt, pad, 0, 1))][:2]
    first, second = (one, two, two, one), (two,)
    try:
        reader = Reader(model, pad)
        reader.read([first, second])
        reader.spread(torch.tensor([0, 0, 1], device=model.device), 2)
        reader.step(torch.tensor([two, one, one], device=model.device))
        reader.keep(torch.tensor([2, 1], device=model.device))
        found_RV = reader.step(torch.tensor([two, two], device=model.device)).float()
        whole = [(*ids, one, two) for ids in (second, first)]
        expected = [model(torch.tensor([ids], device=model.device)).logits[0, -1].float() for ids in whole]
    except Exception:
        return False
    # The two rows end alike: what tells them apart is the state of each. Rounding is far below that.
    apart = (expected[0] - expected[1]).abs().max()
    error = (found_RV - torch.stack(expected)).abs().max()
    return bool(error <= 0.1 * apart + 1e-6 * expected[0].abs().max())
