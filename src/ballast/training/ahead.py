"""What is computed of micro-batches before they are trained on: the old model's log-probs, the step's weights."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ballast.errors import BallastError
from ballast.head import trained_positions
from ballast.objectives import Objective
from ballast.objectives.base import has_extra
from ballast.stats import TokenStats
from ballast.training.ranks import without_repeats

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.objectives.base import Reduction

Batch = dict[str, Any]
Score = Callable[[Batch], TokenStats]
"""Returns statistics of a micro-batch under the model as it is."""

OLD = "old_logprob"
NUMBERED = {"sequence", "group"}
"""What a micro-batch numbers from 0."""
STEP_WEIGHT = "step_weight"
"""Column of the weights that an objective of scope ``step`` has given a micro-batch's tokens."""


class OldModel:
    """The log-probabilities of the model as it was, scored a round of steps ahead, so that no second model is kept."""

    def __init__(self, refresh: int, score: Score) -> None:
        """Begin without any.

        Args:
            refresh: optimiser steps that one round serves.
            score: statistics of a micro-batch, ``logprob`` among them.
        """
        self._refresh, self._score = refresh, score
        self._waiting: deque[Batch] = deque()
        self._resumed: list[Mapping[str, Any]] = []
        self._epoch: object = None

    def take(self, batches: Iterator[Batch], count: int, epoch: object) -> list[Batch]:
        """Return the next `count` micro-batches (fewer at the end of an epoch), with ``old_logprob``.

        Rounds do not cross epochs, each of which is an object of its own: the first step of one scores again.
        """
        if epoch is not self._epoch:
            # What an epoch left that was stopped early, or an earlier call of `train`, is an older model's.
            self._waiting.clear()
            self._epoch = epoch
        if not self._waiting:
            size = len(self._resumed) or count * self._refresh
            # The range first: a batch drawn beyond the round would be lost.
            drawn = [batch for _, batch in zip(range(size), batches, strict=False)]
            self._waiting.extend(self._with_kept(drawn) if self._resumed else map(self._with_scores, drawn))
            self._resumed = []
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def state(self) -> dict[str, Any]:
        """Return what is left of the round, JSON-able; empty where a new one begins with the next step."""
        left = [{"batch": _digest(batch), **_written(batch)} for batch in self._waiting]
        return {"old": left} if left else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the round that `state` was taken of: the model that scored it is gone."""
        self._resumed = list(state.get("old", ()))

    def _with_scores(self, batch: Batch) -> Batch:
        return {**batch, OLD: laid_out(self._score(batch).require("logprob"), batch)}

    def _with_kept(self, drawn: Sequence[Batch]) -> list[Batch]:
        if [_digest(batch) for batch in drawn] != [kept["batch"] for kept in self._resumed]:
            raise BallastError(
                "the rows that follow the checkpoint are not those that were scored before it: data, batch size, seed "
                "or ignore_data_skip have changed; resume with what the run began with"
            )
        found = [torch.tensor(kept["values"], dtype=getattr(torch, kept["dtype"])) for kept in self._resumed]
        return [{**batch, OLD: laid_out(values, batch)} for batch, values in zip(drawn, found, strict=True)]


def laid_out(values_N: Tensor, batch: Batch) -> Tensor:
    """Return the values of a micro-batch's trained tokens as a column ``[B, T]``, NaN elsewhere."""
    labels_BT = batch["labels"]
    column_BT = torch.full(labels_BT.shape, float("nan"), dtype=values_N.dtype, device=labels_BT.device)
    column_BT[:, 1:][trained_positions(labels_BT)[0]] = values_N.detach().to(labels_BT.device)
    return column_BT


def _written(batch: Batch) -> dict[str, Any]:
    values_N = batch[OLD][:, 1:][trained_positions(batch["labels"])[0]]
    return {"dtype": str(values_N.dtype).removeprefix("torch."), "values": values_N.tolist()}


def _digest(batch: Batch) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in ("input_ids", "labels"):
        digest.update(batch[name].cpu().numpy().tobytes())
    return digest.hexdigest()


class Ahead:
    """What one run knows of its micro-batches before it trains on them."""

    def __init__(
        self,
        objective: Objective,
        score: Callable[[Batch, tuple[str, ...]], TokenStats],
        fields: tuple[str, ...],
        accelerator: Any,
    ) -> None:
        """Begin a run.

        Args:
            objective: what is trained.
            score: these statistics of a micro-batch, and its layout, under the model as it is.
            fields: what is computed of a micro-batch; those that the objective needs are scored.
            accelerator: of the run.
        """
        self._objective, self._accelerator = objective, accelerator
        needed = tuple(name for name in fields if name in objective.needs)
        self._score: Score = lambda batch: score(batch, needed)
        refresh: int = getattr(objective, "refresh", 1)
        old = OldModel(refresh, lambda batch: score(batch, ("logprob",)))
        self._old = old if OLD in objective.needs else None

    def take(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """Return the next `count` micro-batches of demonstrations, with the old model's log-probabilities if needed."""
        # One at a time: only while the last is the latest that was drawn, accelerate knows it for the last.
        fresh = (without_repeats(batch, self._accelerator) for batch in batches)
        if self._old is not None:
            return self._old.take(fresh, count, batches)
        return [batch for _, batch in zip(range(count), fresh, strict=False)]

    def weighed(self, batches: list[Batch]) -> list[Batch]:
        """Return the micro-batches of an optimiser step, with its weights if the objective's scope is ``step``."""
        if self._objective.scope != "step" or not batches:
            return batches
        gather = partial(gathered, accelerator=self._accelerator)
        return with_step_weights(batches, self._objective, self._score, gather, self._accelerator.process_index)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs, empty where it needs nothing."""
        return {} if self._old is None else self._old.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        if self._old is not None:
            self._old.restore(state)


@dataclass(frozen=True)
class Weighed(Objective):
    """An objective of scope ``step`` once its weights are known: a column of them, so that one pass is enough."""

    inner: Objective

    def __post_init__(self) -> None:
        """Leave the checks of options to the objective itself."""

    @property
    def name(self) -> str:  # type: ignore[override]  # a class variable of objectives that are written down
        return self.inner.name

    @property
    def needs(self) -> tuple[str, ...]:
        reports = type(self.inner).report is not Objective.report
        own = tuple(name for name in self.inner.needs if name != "logprob") if reports or has_extra(self.inner) else ()
        return ("logprob", STEP_WEIGHT, *own)

    @property
    def columns(self) -> Mapping[str, str]:
        return {**self.inner.columns, STEP_WEIGHT: STEP_WEIGHT}

    @property
    def reduction(self) -> Reduction:
        return self.inner.reduction

    def weight(self, stats: TokenStats) -> Tensor:
        return stats.require(STEP_WEIGHT)

    def extra(self, stats: TokenStats) -> Tensor:
        return self.inner.extra(stats)

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        return None if has_extra(self.inner) or STEP_WEIGHT not in columns else columns[STEP_WEIGHT] != 0

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        return self.inner.report(stats)


def with_step_weights(
    batches: Sequence[Batch], objective: Objective, score: Score, gather: Callable[[Tensor], list[Tensor]], rank: int
) -> list[Batch]:
    """Return a step's micro-batches with the weights that the objective gives the tokens of the whole step.

    Args:
        batches: this rank's micro-batches of an optimiser step.
        objective: of scope ``step``.
        score: statistics of a micro-batch, what the objective needs among them.
        gather: the vectors of all ranks, of any lengths, in the order of the ranks.
        rank: this rank's place among them.
    """
    parts = [score(batch) for batch in batches]
    ranks = [gather(value) for value in _joined([part.tensors() for part in parts]).values()]
    names = [*parts[0].tensors()]
    whole = _joined([dict(zip(names, values, strict=True)) for values in zip(*ranks, strict=True)])
    weights = objective.weight(TokenStats.of(whole, vocabulary=parts[0].vocabulary))
    sizes = [len(part.require("logprob")) for part in parts]
    own = weights[sum(map(len, ranks[0][:rank])) :][: sum(sizes)]
    pairs = zip(batches, own.split(sizes), strict=True)
    return [{**batch, STEP_WEIGHT: laid_out(weight, batch)} for batch, weight in pairs]


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return vectors one after the other, sequences and groups of each part numbered on from those before."""
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for name in NUMBERED & joined.keys():
        first, numbered = 0, []
        for part in parts:
            numbered.append(part[name] + first)
            first += int(part[name].max()) + 1 if len(part[name]) else 0
        joined[name] = torch.cat(numbered)
    return joined


def gathered(values_N: Tensor, accelerator: Any) -> list[Tensor]:
    """Return a vector of every rank, whatever its length, in the order of the ranks."""
    if accelerator.num_processes == 1:
        return [values_N]
    sizes = accelerator.gather(torch.tensor([len(values_N)], device=accelerator.device)).tolist()
    # Bool travels as a number: not every backend sums or gathers it.
    carried = values_N.to(torch.uint8) if values_N.dtype == torch.bool else values_N
    padded = carried.new_zeros(1, max(sizes))
    padded[0, : len(values_N)] = carried
    rows = accelerator.gather(padded)
    return [row[:size].to(values_N.dtype) for row, size in zip(rows, sizes, strict=True)]
