"""The forward of one micro-batch: the loss with its gradient for training, statistics alone for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ballast.head import trained_positions
from ballast.reference.providers import evaluating
from ballast.training.loss import formed, measured
from ballast.training.reduction import token_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from ballast.head import Backend
    from ballast.objectives import Objective
    from ballast.training.inputs import Prepare
    from ballast.training.reference import RunReference, States
    from ballast.training.trl import StatisticsOutput


@dataclass(frozen=True)
class Forward:
    """What the forwards of one run have in common.

    Attributes:
        objective: what is trained.
        reference: the run's.
        ends: ids at which generation stops.
        autocast: a context in which the reference computes.
        options: further arguments of the model's forward.
        tells_progress: whether the objective reads the share of the training that is done.
    """

    objective: Objective
    reference: RunReference
    ends: Sequence[int]
    autocast: Callable[[], Any]
    options: Mapping[str, Any]
    tells_progress: bool

    def train(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        columns: Mapping[str, Tensor],
        *,
        denominator: Tensor,
        whole: bool,
        progress: float,
        prepare: Prepare | None,
    ) -> StatisticsOutput:
        """Return the objective's loss on a batch with its gradient; ``whole`` measures every token for the log."""
        fields = self.reference.fields if whole else self.reference.needed
        given = self._given(inputs, columns, fields, progress)
        compute = partial(formed, **given, objective=self.objective, denominator=denominator, whole=whole)
        return self._run(model, inputs, compute, prepare)

    def measure(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        columns: Mapping[str, Tensor],
        *,
        progress: float,
        fields: tuple[str, ...] | None = None,
    ) -> StatisticsOutput:
        """Return the statistics of all trained tokens, those for the log unless others are named."""
        asked = self.reference.fields if fields is None else fields
        # What is scored is not differentiated: chunks cost no second product and leave the logits in the cache.
        backend: Backend = "auto" if fields is None else "chunked"
        compute = partial(measured, **self._given(inputs, columns, asked, progress), backend=backend)
        return self._run(model, inputs, compute, None)

    def score(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        columns: Mapping[str, Tensor],
        *,
        progress: float,
        fields: tuple[str, ...],
    ) -> StatisticsOutput:
        """Return statistics of a batch that is to be trained on: without gradient, dropout off."""
        with torch.no_grad(), evaluating(model):  # type: ignore[arg-type]  # asks for no more than a module
            return self.measure(model, inputs, columns, progress=progress, fields=fields)

    def _given(
        self, inputs: Mapping[str, Any], columns: Mapping[str, Tensor], fields: tuple[str, ...], progress: float
    ) -> dict[str, Any]:
        mask, targets = trained_positions(inputs["labels"])
        sequence, position = token_layout(inputs)
        given = {name: column[:, 1:][mask] for name, column in columns.items()}
        if self.tells_progress:
            given["progress"] = torch.full(targets.shape, progress, device=targets.device)
        ends = torch.tensor(self.ends, device=targets.device, dtype=targets.dtype)
        given |= {"sequence": sequence, "position": position, "end": torch.isin(targets, ends)}
        return {"given": given, "run": self.reference, "fields": fields}

    def _run(
        self, model: torch.nn.Module, inputs: Mapping[str, Any], compute: Any, prepare: Prepare | None
    ) -> StatisticsOutput:
        def states() -> States | None:
            mask, _ = trained_positions(inputs["labels"])
            own = {name: value for name, value in inputs.items() if name != "labels"}
            with self.autocast():
                return self.reference.states(mask, own, compute.keywords["fields"])

        found: StatisticsOutput = model(**inputs, **self.options, statistics=compute, prepare=prepare, reference=states)
        return found
