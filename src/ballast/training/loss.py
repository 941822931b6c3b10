"""What is computed at the trained positions of a micro-batch: the loss with its gradient, or statistics alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ballast.head import Formed, fused_pass, token_stats, two_phase
from ballast.sharding import gathered

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.head import Backend, LMHead
    from ballast.objectives import Objective
    from ballast.training.reference import RunReference, States


def measured(
    hidden_NH: Tensor,
    head: LMHead,
    targets_N: Tensor,
    given: Mapping[str, Any],
    run: RunReference,
    fields: tuple[str, ...],
    *,
    states: States | None = None,
    backend: Backend = "auto",
) -> Formed:
    """Return the mean negative log-likelihood and these statistics of all tokens, without an objective."""
    with gathered(parameters_of(states)):
        found = token_stats(
            hidden_NH,
            head,
            targets_N,
            fields=fields,
            reference=states,
            backend=backend,
            vocab_size=run.vocab_size,
        )
    loss = -found.require("logprob").sum() / max(len(targets_N), 1)
    return Formed(loss, found.changed(given), None)


def formed(
    hidden_NH: Tensor,
    head: LMHead,
    targets_N: Tensor,
    given: Mapping[str, Any],
    run: RunReference,
    fields: tuple[str, ...],
    *,
    states: States | None = None,
    objective: Objective,
    denominator: Tensor,
    whole: bool,
) -> Formed:
    """Return an objective's loss with its gradient, in one pass over the logits where its scope allows that.

    Args:
        hidden_NH, head, targets_N: where the logits come from.
        given: statistics that are there already: cached ones, advantages, the data's columns, the layout; ``[N]`` each.
        run, states: the run's reference, and its hidden states and head where it is live.
        fields: what is computed.
        objective: decides the way by its scope.
        denominator: what the sum of the losses is divided by.
        whole: compute the statistics of every token, also of those that have no loss.
    """
    shared: dict[str, Any] = {
        "columns": given,
        "reference": states,
        "denominator": denominator,
        "vocab_size": run.vocab_size,
        "fields": fields,
    }
    with gathered(parameters_of(states)):
        if objective.scope == "token" and not hasattr(objective, "prepare_inputs"):
            return fused_pass(hidden_NH, head, targets_N, objective, whole=whole, **shared)
        return two_phase(hidden_NH, head, targets_N, objective.per_token_loss, declared=objective.columns, **shared)


def parameters_of(states: States | None) -> list[Any]:
    """Return the weights of a reference's head."""
    return [] if states is None else [one for one in (states[1].weight, states[1].bias) if one is not None]
