"""What each objective would keep of the demonstrations, computed by the objectives themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ballast.advise.ends import end_warning, end_weight
from ballast.advise.suspects import contradicted
from ballast.advise.tokens import FIELDS, ScoredTokens
from ballast.objectives import Objective
from ballast.stats import GROUP_FIELDS, LIVE_FIELDS, PAIR_FIELDS, TokenStats

if TYPE_CHECKING:
    from torch import Tensor

ALWAYS, START, GOLD, UNKNOWN = "always", "first step", "first step, gold inputs", "unknown"


@dataclass(frozen=True)
class Kept:
    """The weights of one objective on the scored tokens.

    Attributes:
        known: for how long they hold: ``always`` (the weights read the reference alone), ``first step`` (they read the
            model in training, which starts at the reference), ``first step, gold inputs``, or ``unknown``.
        weight_mean: mean weight.
        zero_share: share of tokens with weight 0.
        effective_tokens: (Σ|w|)² / Σw², the number of equal weights that would be as even.
        end_weight: mean weight of the tokens that end a turn.
        warning: what is wrong with that weight.
        contradicted_share: share of the loss Σ w·nll that lies on contradicted tokens, see `contradicted`.
        note: what the scores do not say.
    """

    name: str
    known: str
    weight_mean: float | None = None
    zero_share: float | None = None
    effective_tokens: float | None = None
    contradicted_share: float | None = None
    end_weight: float | None = None
    warning: str = ""
    note: str = ""


def kept(tokens: ScoredTokens, objectives: Sequence[Objective]) -> list[Kept]:
    """Return what each objective would keep at the first step of training, and for how long that holds."""
    stats = statistics(tokens)
    against = contradicted(tokens)
    return [_kept(one, stats, against) for one in objectives]


def statistics(tokens: ScoredTokens) -> TokenStats:
    """Return the statistics of the first step: the model in training is the reference, so every divergence is 0."""
    import torch

    columns = {name: torch.from_numpy(np.asarray(getattr(tokens, name), dtype=np.float64)) for name in FIELDS}
    zero = torch.zeros_like(columns["logprob"])
    layout = {"sequence": tokens.row.astype(np.int64), "position": tokens.place.astype(np.int64), "end": tokens.end}
    return TokenStats.of(
        {
            **columns,
            **{FIELDS[name]: column for name, column in columns.items()},
            **dict.fromkeys(PAIR_FIELDS, zero),
            **{name: torch.from_numpy(values) for name, values in layout.items() if values is not None},
            # The model in training is the old model too, and nothing of the training is done.
            "old_logprob": columns["logprob"],
            "progress": zero,
        }
    )


def _kept(objective: Objective, stats: TokenStats, against: np.ndarray) -> Kept:
    if note := _what_is_missing(objective, stats):
        return Kept(objective.name, UNKNOWN, note=note)
    weight = objective.weight(stats)
    known, note = _validity(objective, stats, weight)
    w, nll = weight.double().numpy(), -stats.require("logprob").numpy()
    loss = w * nll
    squares, end = float((w**2).sum()), end_weight(weight, stats)
    return Kept(
        objective.name,
        known,
        weight_mean=float(w.mean()),
        zero_share=float((w == 0).mean()),
        effective_tokens=float(np.abs(w).sum() ** 2 / squares) if squares else 0.0,
        contradicted_share=float(loss[against].sum() / loss.sum()) if loss.sum() else None,
        end_weight=end,
        warning=end_warning(objective, end, float(w.mean())),
        note=note,
    )


def _what_is_missing(objective: Objective, stats: TokenStats) -> str:
    """Return why nothing can be said of an objective's weights from scores, empty where something can."""
    if set(objective.needs) & set(GROUP_FIELDS):
        return (
            "its weights come from the rewards of groups of answers, which no score of demonstrations holds: "
            "`ballast sample` and `ballast evaluate --readiness` do"
        )
    if objective.scope in ("batch", "step"):
        within = "micro-batches" if objective.scope == "batch" else "optimiser steps"
        return f"it looks at whole {within}, which do not exist yet"
    lacking = [name for name in objective.needs if name != "vocabulary" and stats.get(name) is None]
    return f"it reads {', '.join(lacking)}, which no score holds" if lacking else ""


def _validity(objective: Objective, stats: TokenStats, weight: Tensor) -> tuple[str, str]:
    """Return for how long weights hold, and what cannot be known: asked of the objective by changing what moves."""
    if hasattr(objective, "prepare_inputs"):
        return GOLD, "in training it reads inputs mixed with the model's own greedy tokens, whose losses are not scored"
    if any(name in PAIR_FIELDS for name in objective.needs):
        return START, "at the first step no token has moved; what it selects by KL afterwards depends on the run"
    if all(bool((objective.weight(moved) == weight).all()) for moved in _moved(stats)):
        return ALWAYS, ""
    return START, "the weights move with the model in training"


def _moved(stats: TokenStats) -> list[TokenStats]:
    """Return the statistics as if the model in training had moved, in two ways; the reference stays.

    Two, so that no value stays where it is in both.
    """
    changes = {
        "logprob": (lambda value: 0.5 * value - 0.7, lambda value: 0.1 * value - 0.05),
        "entropy": (lambda value: 0.5 * value + 0.3, lambda value: 2 * value + 1),
        "collision": (lambda value: 0.5 * value, lambda value: 0.1 + 0.5 * value),
        "mass": (lambda value: 0.9 - 0.8 * value, lambda value: 0.1 + 0.3 * value),
        "tied": (lambda value: 0.05 + 0.5 * value, lambda value: 0.01 + 0.1 * value),
    }
    live = {name: value for name in LIVE_FIELDS if (value := getattr(stats, name)) is not None}
    return [replace(stats, **{name: changes[name][way](value) for name, value in live.items()}) for way in (0, 1)]
