"""Token statistics of given sequences under a model: rows batched by length, only the scored positions kept.

Shapes: ``B`` rows, ``T`` positions, ``N`` scored tokens of a batch, ``H`` hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from ballast.batching import batches
from ballast.errors import BallastError
from ballast.limits import check_length, context_length
from ballast.protocols import Model, Progress
from ballast.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ballast.head import LMHead

BATCH_TOKENS = 16384
"""Padded tokens of one batch, unless the caller says otherwise."""


@dataclass(frozen=True)
class ScoredSequence:
    """Token ids, of which those from `start` on are scored given all before them.

    Raises:
        BallastError: if `start` is 0: nothing predicts the first token.
    """

    ids: tuple[int, ...]
    start: int

    def __post_init__(self) -> None:
        if self.start < 1:
            raise BallastError("a scored sequence cannot start at token 0: no token before it predicts it")

    @property
    def targets(self) -> tuple[int, ...]:
        return self.ids[self.start :]


class Base(Protocol):
    """A frozen model to compare with, as `ballast.reference` provides it."""

    @property
    def head(self) -> LMHead:
        """The LM head that reads the hidden states."""

    def hidden(self, **inputs: Any) -> Tensor:
        """Return the last hidden states, ``[B, T, H]``."""


@contextmanager
def inference(model: Model) -> Iterator[None]:
    """Put the model in eval mode without gradient; afterwards every module has its own mode back."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def sequence_statistics(
    model: Model,
    sequences: Sequence[ScoredSequence],
    fields: tuple[str, ...] = ("logprob",),
    *,
    base: Model | Base | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> list[dict[str, np.ndarray]]:
    """Return, for every sequence, one float32 array per field over its scored tokens, in nats.

    Logits are formed in chunks of scored positions alone (`ballast.token_stats`), never for a whole batch.

    Args:
        model: a transformers causal language model, PEFT-wrapped or not.
        sequences: token ids and where scoring starts.
        fields: `TokenStats` fields; ``kl``, ``kl_forward`` and the ``ref_`` fields need `base`.
        base: a second model, or an object with ``hidden(**inputs)`` and ``head`` (a `ballast.reference` provider).
        batch_tokens: padded tokens of one batch.
        progress: called after every batch.
        ranks: who shares the batches; all have the same sequences, and all get the whole result.

    Raises:
        BallastError: if a sequence is longer than the model's context.
    """
    context = context_length(model)
    for index, sequence in enumerate(sequences):
        check_length(f"sequence {index}", len(sequence.ids), context)
    every = list(batches([len(sequence.ids) for sequence in sequences], batch_tokens))
    own, found, done = ranks.share(every), [], 0
    with inference(model), _base_provider(base) as provider:
        for batch in own:
            found.append(_batch_statistics(model, [sequences[i] for i in batch], fields, provider))
            done += len(batch)
            if progress is not None:
                progress(done, sum(map(len, own)))
    results: list[dict[str, np.ndarray]] = [{}] * len(sequences)
    for batch, values in zip(every, ranks.merge(found), strict=True):
        for index, value in zip(batch, values, strict=True):
            results[index] = value
    return results


def _batch_statistics(
    model: Model, sequences: Sequence[ScoredSequence], fields: tuple[str, ...], provider: Base | None
) -> list[dict[str, np.ndarray]]:
    import torch

    from ballast.head import backbone_hidden, lm_head, token_stats

    inputs, mask_BT = _padded(sequences, model.device)
    targets_N = torch.tensor([i for s in sequences for i in s.targets], dtype=torch.long, device=model.device)
    hidden_NH = backbone_hidden(model, **inputs)[mask_BT]
    reference = None if provider is None else (provider.hidden(**inputs)[mask_BT], provider.head)
    stats = token_stats(hidden_NH, lm_head(model), targets_N, fields=fields, reference=reference)
    counts = np.cumsum([len(sequence.targets) for sequence in sequences])[:-1]
    split = {name: np.split(stats.require(name).float().cpu().numpy(), counts) for name in fields}
    return [{name: split[name][row] for name in fields} for row in range(len(sequences))]


def _padded(sequences: Sequence[ScoredSequence], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Return right-padded inputs and the mask ``[B, T]`` of the positions that predict a scored token."""
    import torch

    shape = (len(sequences), max(len(sequence.ids) for sequence in sequences))
    ids_BT = torch.zeros(shape, dtype=torch.long)
    attention_BT = torch.zeros(shape, dtype=torch.long)
    mask_BT = torch.zeros(shape, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        length = len(sequence.ids)
        ids_BT[row, :length] = torch.tensor(sequence.ids)
        attention_BT[row, :length] = 1
        mask_BT[row, sequence.start - 1 : length - 1] = True
    inputs = {"input_ids": ids_BT.to(device), "attention_mask": attention_BT.to(device)}
    return inputs, mask_BT.to(device)


@contextmanager
def _base_provider(base: Model | Base | None) -> Iterator[Base | None]:
    if base is None or hasattr(base, "hidden"):
        yield cast("Base | None", base)
        return
    with inference(base):
        yield _SecondModel(base)


class _SecondModel:
    def __init__(self, model: Model) -> None:
        from ballast.head import lm_head

        self.model = model
        self.head = lm_head(model)

    def hidden(self, **inputs: Any) -> Tensor:
        from ballast.head import backbone_hidden

        return backbone_hidden(self.model, **{k: v.to(self.model.device) for k, v in inputs.items()})
