"""The objectives of `oracles.shaped` with one thing wrong each; every one must fail its check."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ballast import TokenStats, objective
from ballast.objectives import Objective
from ballast.objectives._propagation import lengths
from ballast.objectives._sequences import after_blocks
from oracles.mutants import (
    FOR_ALL,
    FOR_WEIGHTED,
    Mutant,
    Wrong,
    _change,
    _detach_dropped,
    _other,
    _over_kept,
    _shifted,
    _weigh,
)
from oracles.published_mutants import ANSWERS

EAFT: dict[str, Wrong] = {
    "the entropy of all": _weigh(lambda built, stats: stats.entropy / built.scale),
    "without the scale": _change(scale=1),
    "over ln k": _change(scale=math.log(20) / 1.01),
    "another exponent": _change(alpha=2),
    "turned round": _weigh(lambda built, stats: 1 - built.weight(stats)),
    "over kept": _weigh(_over_kept),
    "one token late": _weigh(_shifted),
    "a gate": _weigh(lambda built, stats: (built.weight(stats) > 0.5) * 1.0),
    "times p": _weigh(lambda built, stats: built.weight(stats) * stats.logprob.exp()),
}


def _pulled(term: Wrong) -> Wrong:
    """Return the negative log-likelihood with another term where the distribution is open."""
    return lambda built, stats: -stats.logprob + built.strength * built._open(stats) * term(built, stats)


SED: dict[str, Wrong] = {
    "everywhere": lambda built, stats: -stats.logprob + built.strength * (stats.logprob.exp() - 0.5).square(),
    "where it is sure": lambda built, stats: (
        -stats.logprob + built.strength * (1 - built._open(stats)) * (stats.logprob.exp() - 0.5).square()
    ),
    "pull without gradient": lambda built, stats: -stats.logprob + built.extra(stats).detach(),
    "pushed away": lambda built, stats: -stats.logprob - built.extra(stats),
    "towards 0": _pulled(lambda _, stats: stats.logprob.exp().square()),
    "towards 1": _pulled(lambda _, stats: (stats.logprob.exp() - 1).square()),
    "distance for its square": _pulled(lambda _, stats: (stats.logprob.exp() - 0.5).abs()),
    "in place of the likelihood": lambda built, stats: built.extra(stats) + 0 * stats.logprob,
    "another threshold": _change(threshold=1.0),
    "another strength": _change(strength=0.2),
    "no pull": _other("sft"),
    "the entropy's term": _pulled(lambda _, stats: stats.logprob.exp() * stats.logprob),
}

GEM: dict[str, Wrong] = {
    "the likelihood alone": _other("sft"),
    "contrast without gradient": lambda built, stats: -stats.logprob + built.extra(stats).detach(),
    "contrast the other way": lambda built, stats: -stats.logprob - built.extra(stats),
    "contrast alone": lambda built, stats: built.extra(stats) + 0 * stats.logprob,
    "half the contrast": lambda built, stats: -stats.logprob + 0.5 * built.extra(stats),
    "the entropy": lambda built, stats: -stats.logprob - stats.entropy,
    "another temperature": lambda built, stats: -stats.logprob - stats.require("tempered_ce@2"),
    "h of the other": lambda built, stats: stats.require("tempered_gap@0.7") + 0 * stats.logprob,
    "weighed by p": lambda built, stats: -stats.logprob * stats.logprob.exp().detach() + built.extra(stats),
}

GAP: dict[str, Wrong] = {
    "h of the other": lambda built, stats: -stats.logprob - stats.require("tempered_ce@0.7"),
    "with the likelihood": lambda built, stats: -stats.logprob + built.extra(stats),
    "without gradient": lambda built, stats: built.extra(stats).detach() + 0 * stats.logprob,
}


def _powered(exponent: Wrong) -> Wrong:
    return _weigh(lambda built, stats: (exponent(built, stats) * stats.logprob).exp())


IDFT: dict[str, Wrong] = {
    "weight attached": _change(gradient="attached"),
    "detach dropped": _detach_dropped,
    "exponent 1": _other("dft"),
    "without the entropy": _powered(lambda built, stats: (-stats.logprob).exp().clamp(built.low, built.high)),
    "without the log-probability": _powered(lambda built, stats: (-stats.entropy).exp().clamp(built.low, built.high)),
    "turned round": _powered(lambda built, stats: (stats.logprob + stats.entropy).exp().clamp(built.low, built.high)),
    "another beta": _change(beta=2),
    "no bounds": _change(low=0, high=1e9),
    "a bound of 1": _change(high=1.0),
    "the exponent for the weight": _weigh(lambda built, stats: built._exponents(stats)),
    "in a warm-up": _change(warmup=1.0),
}

WARMING: dict[str, Wrong] = {
    "no warm-up": _change(warmup=0.0, transition=0.0),
    "sets in at once": _change(transition=0.0),
    "sets in from the start": _change(warmup=0.0),
    "the weight sets in": _weigh(lambda built, stats: 1 + 0.25 * (objective("idft").weight(stats) - 1)),
}


def _of(total: Wrong) -> Wrong:
    """Return the loss weighed by the exponential of a sum of log-ratios, clipped as it should be."""
    return _weigh(lambda built, stats: total(built, stats).clamp(-10, 5).exp())


def _delta(built: Objective, stats: TokenStats) -> Tensor:
    return (stats.logprob - stats.require(built.needs[1])).clamp(built.low, built.high)


def _turned(built: Objective, stats: TokenStats) -> TokenStats:
    place = torch.arange(len(stats.logprob)) if stats.position is None else stats.position
    return stats.changed({"position": -place})


PEAR: dict[str, Wrong] = {
    "no bounds on a token": _change(low=-1e9, high=1e9),
    "no discount": _change(gamma=1.0),
    "by the sequence": _of(
        lambda built, stats: after_blocks(_delta(built, stats), stats, 1) + _delta(built, stats).sum()
    ),
    "what came before": _weigh(lambda built, stats: built.weight(_turned(built, stats))),
    "with itself": _of(
        lambda built, stats: after_blocks(_delta(built, stats) + math.log(built.gamma), stats, 1) + _delta(built, stats)
    ),
    "ratio turned round": _of(
        lambda built, stats: after_blocks(-_delta(built, stats) + math.log(built.gamma), stats, 1)
    ),
    "not exponentiated": _weigh(
        lambda built, stats: after_blocks(_delta(built, stats) + math.log(built.gamma), stats, 1)
    ),
    "its own ratio alone": _of(_delta),
    "plain": _other("sft"),
    "mean over kept": _weigh(_over_kept),
    "one token late": _weigh(_shifted),
    "blocks": lambda built, stats: objective(
        "pear", by="block", block=2, low=built.low, high=built.high
    ).per_token_loss(stats),
}

CLIPPED: dict[str, Wrong] = {
    "no clip of the sum": _weigh(lambda built, stats: after_blocks(_delta(built, stats), stats, 1).exp()),
    "through all sequences": _weigh(
        lambda built, stats: built.weight(
            stats.changed({"sequence": 0 * stats.sequence, "position": torch.arange(len(stats.logprob))})
        )
    ),
}

BY_SEQUENCE: dict[str, Wrong] = {
    "by token": _change(by="token"),
    "the mean": _of(lambda built, stats: _delta(built, stats).mean() + 0 * stats.logprob),
    "discounted": _of(
        lambda built, stats: _delta(built, stats).sum() + len(stats.logprob) * math.log(0.9) + 0 * stats.logprob
    ),
}

BY_BLOCK: dict[str, Wrong] = {
    "by token": _change(by="token", block=4),
    "another block": _change(block=3),
    "one block": _change(block=99),
}

BY_COLUMN: dict[str, Wrong] = {
    # The golden row's log-ratios to the reference are all clipped, and have no gradient.
    "detach dropped": _detach_dropped,
    "the reference": _change(behaviour="reference"),
    "the column one token off": lambda built, stats: built.per_token_loss(
        stats.changed({"behaviour_logprob": stats.require("behaviour_logprob").roll(1)})
    ),
    "probabilities": lambda built, stats: built.per_token_loss(
        stats.changed({"behaviour_logprob": stats.require("behaviour_logprob").exp()})
    ),
}


def _tail(fallen: Callable[[TokenStats], Tensor]) -> Wrong:
    """Return the loss with other numbers in place of how far each token's loss has fallen."""
    return _weigh(
        lambda built, stats: built.weight(replace(stats, logprob=fallen(stats), ref_logprob=0 * stats.logprob))
    )


def _gain(stats: TokenStats) -> Tensor:
    return stats.logprob - stats.ref_logprob


def _is_kept(built: Objective, stats: TokenStats) -> Tensor:
    return (built.weight(stats) > 0).double()


TAIL: dict[str, Wrong] = {
    "those fallen least": _tail(lambda stats: -_gain(stats)),
    "the likeliest": _tail(lambda stats: stats.logprob),
    "the least likely": _tail(lambda stats: -stats.logprob),
    "the likeliest to the reference": _tail(lambda stats: stats.ref_logprob),
    "sums of sequences": _tail(lambda stats: _gain(stats) * lengths(stats)),
    "the share that it fell by": _tail(lambda stats: _gain(stats) / -stats.ref_logprob),
    "tokens": _weigh(lambda built, stats: built.weight(replace(stats, sequence=torch.arange(len(stats.logprob))))),
    "over all": _weigh(_is_kept),
    "over all sequences": _weigh(lambda built, stats: 2 * _is_kept(built, stats)),
    "the rest": _weigh(lambda built, stats: 1 - _is_kept(built, stats)),
    "one token late": _weigh(_shifted),
    "another share": _change(fraction=0.25),
    "all but one": _change(fraction=1),
    "ramped": _change(schedule="ramp"),
    "times p": _weigh(lambda built, stats: built.weight(stats) * stats.logprob.exp()),
    "plain": _other("sft"),
}

RAMPED: dict[str, Wrong] = {"static": _change(schedule="static"), "another share": _change(fraction=0.2)}

TABLE: list[tuple[str, dict[str, Any], dict[str, Wrong]]] = [
    ("eaft", {"k": 2}, FOR_ALL | EAFT | {"more tokens": _change(k=3), "plain": _other("sft")}),
    ("sed-sft", {}, FOR_ALL | SED),
    ("gem", {}, FOR_ALL | GEM),
    ("gem", {"h": "logsigmoid"}, GAP),
    ("idft", {}, FOR_ALL | FOR_WEIGHTED | IDFT),
    ("idft", {"warmup": 0.2, "transition": 0.4}, WARMING),
    ("pear", {}, FOR_ALL | PEAR),
    ("pear", {"low": -2, "high": 2, "gamma": 1}, CLIPPED),
    ("pear", {"by": "sequence"}, BY_SEQUENCE),
    ("pear", {"by": "block", "block": 2}, BY_BLOCK),
    ("pear", {"behaviour": "column"}, BY_COLUMN),
    ("tail-sft", {"fraction": 0.5}, TAIL),
    ("tail-sft", {"fraction": 0.9, "schedule": "ramp"}, RAMPED),
]

ROWS = {"tail-sft": ANSWERS}
SHAPED = [
    Mutant(label, name, wrong, options=options, rows=ROWS.get(name))
    for name, options, own in TABLE
    for label, wrong in own.items()
]
