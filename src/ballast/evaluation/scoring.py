"""Token statistics of given sequences under a model: rows batched by length, only the scored positions kept.

Shapes: ``B`` rows, ``T`` positions, ``N`` scored tokens of a batch, ``H`` hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from ballast.batching import batches, bearable
from ballast.errors import BallastError
from ballast.evaluation import packing
from ballast.limits import check_length, context_length
from ballast.protocols import Model, Progress
from ballast.ranks import ALONE, Ranks

if TYPE_CHECKING:
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
    with inference(model), _base_provider(base) as provider:
        rows = _rows(model, sequences, provider, min(batch_tokens, context or batch_tokens))
        # Rows of several answers have a mask of their own kind.
        kinds = [[row for row in rows if (len(row.answers) > 1) == several] for several in (True, False)]
        every = [
            [some[place] for place in batch]
            for some in kinds
            for batch in batches([*map(len, some)], batch_tokens, padding=bearable(model.device.type))
        ]
        own, found, done = ranks.share(every), [], 0
        total = sum(len(row.owners) for batch in own for row in batch)
        for batch in own:
            found.append(_batch_statistics(model, batch, fields, provider))
            done += sum(len(row.owners) for row in batch)
            if progress is not None:
                progress(done, total)
    results: list[dict[str, np.ndarray]] = [{}] * len(sequences)
    for batch, values in zip(every, ranks.merge(found), strict=True):
        owners = [owner for row in batch for owner in row.owners]
        for index, value in zip(owners, values, strict=True):
            results[index] = value
    return results


def _rows(model: Model, sequences: Sequence[ScoredSequence], provider: Base | None, most: int) -> list[packing.Row]:
    """Return the sequences as rows, those with the same prompt together where both models can read them so."""
    from ballast.head import backbone_hidden

    reading: list[tuple[Any, Any]] = [(model, partial(backbone_hidden, model))]
    if provider is not None:
        reading.append((getattr(provider, "model", None), provider.hidden))
    bounds = [packing.longest_shared(one.config.get_text_config()) for one, _ in reading if one is not None]
    cut = [(one.ids, one.start) for one in sequences]
    rows = packing.together(cut, min(packing.MOST, most, *(bound for bound in bounds if bound is not None)))
    if len(rows) == len(cut) or all(one is not None and packing.can_share(one, hidden) for one, hidden in reading):
        return rows
    return packing.alone(cut)


def _batch_statistics(
    model: Model, rows: Sequence[packing.Row], fields: tuple[str, ...], provider: Base | None
) -> list[dict[str, np.ndarray]]:
    import torch

    from ballast.head import backbone_hidden, lm_head, token_stats

    answers = [answer for row in rows for answer in row.answers]
    targets_N = torch.tensor([one for answer in answers for one in answer], dtype=torch.long, device=model.device)
    hidden_NH = packing.predicting(rows, backbone_hidden(model, **packing.inputs(rows, model.device, model.dtype)))
    reference = None
    if provider is not None:
        # A mask has the dtype of the model that reads it.
        own = getattr(provider, "model", model)
        inputs = packing.inputs(rows, model.device, own.dtype)
        reference = packing.predicting(rows, provider.hidden(**inputs)), provider.head
    stats = token_stats(hidden_NH, lm_head(model), targets_N, fields=fields, reference=reference)
    counts = np.cumsum([len(answer) for answer in answers])[:-1]
    split = {name: np.split(stats.require(name).float().cpu().numpy(), counts) for name in fields}
    return [{name: split[name][row] for name in fields} for row in range(len(answers))]


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
