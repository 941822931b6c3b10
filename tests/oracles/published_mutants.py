"""Published objectives with one thing wrong each; every one must fail its check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ballast import TokenStats, objective
from ballast.objectives import Objective
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
from oracles.rows import random_rows


def _swapped(built: Objective, stats: TokenStats) -> Tensor:
    """The live model for the reference and the other way round."""
    changes = {"logprob": stats.ref_logprob, "ref_logprob": stats.logprob}
    return built.weight(replace(stats, **changes))


def _ratio(_: Objective, stats: TokenStats) -> Tensor:
    return (stats.logprob - stats.ref_logprob).exp()


def _sum(values: Tensor, stats: TokenStats) -> Tensor:
    """The sum over each token's sequence."""
    index = torch.zeros(len(values), dtype=torch.long) if stats.sequence is None else stats.sequence
    return values.new_zeros(len(values)).index_add(0, index, values)[index]


def _plus(weight: Wrong, extra: Wrong) -> Wrong:
    """Return ``sg(weight)·nll + extra``."""
    return lambda built, stats: -stats.logprob * weight(built, stats).detach() + extra(built, stats)


def _own_weight(built: Objective, stats: TokenStats) -> Tensor:
    return built.weight(stats)


def _own_extra(built: Objective, stats: TokenStats) -> Tensor:
    return built.extra(stats)


def _in_one_sequence(built: Objective, stats: TokenStats) -> Tensor:
    return built.weight(replace(stats, sequence=torch.zeros_like(stats.sequence)))


def _target_only(_: Objective, stats: TokenStats) -> Tensor:
    """The third estimator of KL(p‖q), from the target alone."""
    moved = stats.ref_logprob - stats.logprob
    return 0.7 * (moved.exp() - 1 - moved)


ANCHORED: dict[str, Wrong] = {
    "the KL the other way": _change(direction="reverse"),
    "the KL without gradient": lambda built, stats: built.per_token_loss(
        replace(stats, kl_forward=stats.kl_forward.detach())
    ),
    "no KL": _change(lambda_kl=0),
    "another lambda": _change(lambda_kl=0.1),
    "the KL subtracted": lambda built, stats: -stats.logprob * built.weight(stats).detach() - built.extra(stats),
    "an estimate at the target for the KL": _plus(_own_weight, _target_only),
    "the KL weighed by p": _plus(_own_weight, lambda built, stats: built.extra(stats) * stats.logprob.exp().detach()),
    "a mixture in place of a sum": lambda built, stats: (
        -(1 - built.lambda_kl) * stats.logprob * built.weight(stats).detach() + built.extra(stats)
    ),
    "per-token mean of the micro-batch for the KL": lambda built, stats: (
        -stats.logprob * built.weight(stats).detach() + built.extra(stats).mean()
    ),
}

GIFT: dict[str, Wrong] = {
    "distilled twice": lambda built, stats: built.per_token_loss(stats) + built.extra(stats),
    "live for reference": lambda built, stats: built.per_token_loss(replace(stats, ref_logprob=stats.logprob)),
    "the mass taken up left in": _plus(lambda built, stats: (stats.ref_logprob + built.beta).sigmoid(), _own_extra),
    "no distillation": lambda built, stats: -stats.logprob * built.weight(stats).detach(),
    "KL without the entropy": _plus(
        _own_weight, lambda built, stats: built.extra(replace(stats, ref_entropy=0 * stats.ref_entropy))
    ),
    "the other KL": _plus(_own_weight, lambda built, stats: built.extra(replace(stats, kl_forward=stats.kl))),
    "the live entropy": _plus(_own_weight, lambda built, stats: built.extra(replace(stats, ref_entropy=stats.entropy))),
    "another beta": _change(beta=1.6),
    "beta as a factor": _plus(lambda built, stats: built.beta * stats.ref_logprob.exp(), _own_extra),
    "label smoothing": lambda built, stats: -stats.logprob + (-built._raised(stats)).sigmoid() * built.extra(stats),
}

SEQUENCE_WEIGHTS: dict[str, Wrong] = {
    "detach dropped": _detach_dropped,
    "over the micro-batch": _weigh(_in_one_sequence),
    "one sequence late": _weigh(lambda built, stats: built.weight(stats).roll(9)),
}

IW_SFT: dict[str, Wrong] = {
    **SEQUENCE_WEIGHTS,
    "the ratio turned round": _weigh(_swapped),
    "summed, not averaged": _weigh(
        lambda built, stats: _sum(stats.logprob - stats.ref_logprob, stats).exp().clamp(max=built.cap)
    ),
    "no cap": _change(cap=1e9),
    "temperature as in the signature": _change(temperature=2),
    "per token": _weigh(_ratio),
    "mean of ratios": _weigh(
        lambda built, stats: (
            (_sum(_ratio(built, stats), stats) / _sum(0 * stats.logprob + 1, stats))
            .pow(built.temperature)
            .clamp(max=built.cap)
        )
    ),
    "clipped on both sides": _weigh(lambda built, stats: built.weight(stats).clamp(min=1 / built.cap)),
}

TOKEN_RATIO: dict[str, Wrong] = {
    "detach dropped": _detach_dropped,
    "the ratio turned round": _weigh(_swapped),
    "unclipped": _weigh(_ratio),
    "clipped above only": _weigh(lambda built, stats: _ratio(built, stats).clamp(max=1 + built.clip)),
    "clipped below only": _weigh(lambda built, stats: _ratio(built, stats).clamp(min=1 - built.clip)),
    "another clip": _change(clip=0.8),
    "one token late": _weigh(_shifted),
}

SRFT: dict[str, Wrong] = {
    **SEQUENCE_WEIGHTS,
    "without the half": _weigh(lambda built, stats: 2 * built.weight(stats)),
    "more where uncertain": _weigh(lambda built, stats: 0.25 / built.weight(stats)),
    "entropy of each token": _weigh(lambda _, stats: 0.5 * (-stats.entropy).exp()),
    "entropy of the reference": _weigh(lambda built, stats: built.weight(replace(stats, entropy=stats.ref_entropy))),
    "nll for entropy": _weigh(lambda built, stats: built.weight(replace(stats, entropy=-stats.logprob))),
    "summed, not averaged": _weigh(lambda _, stats: 0.5 * (-_sum(stats.entropy, stats)).exp()),
}

CHORD_PHI: dict[str, Wrong] = {
    "detach dropped": _detach_dropped,
    "p alone": _other("dft"),
    "1 − p alone": _weigh(lambda _, stats: 1 - stats.logprob.exp()),
    "reference for live": _weigh(lambda built, stats: built.weight(replace(stats, logprob=stats.ref_logprob))),
    "scaled to 1": _weigh(lambda built, stats: 4 * built.weight(stats)),
    "entropy of a coin for p·(1 − p)": _weigh(
        lambda _, stats: (
            -stats.logprob.exp() * stats.logprob - (1 - stats.logprob.exp()) * (1 - stats.logprob.exp()).log()
        )
    ),
}

LUFFY: dict[str, Wrong] = {
    "detach dropped": _detach_dropped,
    "own answers shaped too": _weigh(lambda built, stats: built.weight(replace(stats, origin=0 * stats.origin))),
    "experts not shaped": _weigh(lambda _, stats: stats.advantage),
    "the teacher not shaped": _weigh(
        lambda built, stats: built.weight(stats).where(stats.origin != 1, stats.advantage)
    ),
    "origins exchanged": _weigh(lambda built, stats: built.weight(replace(stats, origin=2 - stats.origin))),
    "the value for its slope": _weigh(
        lambda built, stats: (
            stats.advantage * (stats.logprob.exp() / (stats.logprob.exp() + built.gamma)).where(stats.origin != 2, 1.0)
        )
    ),
    "the slope by p, not by log p": _weigh(
        lambda built, stats: (built.weight(stats) / stats.logprob.exp()).where(stats.origin != 2, stats.advantage)
    ),
    "another gamma": _change(gamma=0.3),
    "absolute advantage": _weigh(lambda built, stats: built.weight(stats).abs()),
    "without advantage": _weigh(lambda built, stats: built.weight(replace(stats, advantage=0 * stats.advantage + 1))),
    "importance ratio to the reference": _weigh(
        lambda built, stats: stats.advantage * (stats.logprob - stats.ref_logprob).exp()
    ),
}


def _value(built: Objective, stats: TokenStats) -> Tensor:
    """``(1 − p^alpha)/alpha`` of every token."""
    return -(built.alpha * stats.logprob).expm1() / built.alpha


HPT: dict[str, Wrong] = {
    "advantage of the whole group": _weigh(
        lambda built, stats: built.weight(stats).where(
            (stats.origin != 2) | (built.weight(stats) == 0), stats.advantage
        )
    ),
    "never imitated": _change(gate=-1),
    "always imitated": _change(gate=9),
    "the gate one higher": _change(gate=1),
    "another weight of imitation": _change(imitation=1),
    "half right is right": _weigh(lambda built, stats: built.weight(replace(stats, reward=stats.reward.ceil()))),
    "teachers left out": _weigh(lambda built, stats: built.weight(stats).where(stats.origin != 1, 0.0)),
    "given answers imitated besides": _weigh(
        lambda built, stats: built.weight(stats).where(stats.origin == 2, built.imitation)
    ),
    "own answers everywhere": _weigh(
        lambda built, stats: built.weight(stats) + objective("hpt", gate=-1).weight(stats) * (built.weight(stats) == 0)
    ),
    "over the micro-batch": _weigh(lambda built, stats: built.weight(replace(stats, group=0 * stats.group))),
    "each token an answer": _weigh(
        lambda built, stats: built.weight(replace(stats, sequence=torch.arange(len(stats.logprob))))
    ),
    "biased deviation": _weigh(
        lambda built, stats: built.weight(stats) * torch.where(stats.origin == 2, 2**0.5, 1.0).double()
    ),
    "origins exchanged": _weigh(lambda built, stats: built.weight(replace(stats, origin=2 - stats.origin))),
}

RIFT: dict[str, Wrong] = {
    "detach dropped": _detach_dropped,
    "unlearnt by the likelihood": _weigh(lambda built, stats: built._value(stats.reward)),
    "the probability for right ones too": _weigh(lambda built, stats: built._value(stats.reward) * stats.logprob.exp()),
    "wrong ones left out": _weigh(lambda built, stats: built.weight(stats).clamp(min=0)),
    "values of the paper": _change(right=1, wrong=-0.2),
    "the reward alone": _weigh(lambda _, stats: stats.reward),
    "by advantage": _weigh(lambda built, stats: built.weight(replace(stats, reward=stats.advantage))),
    "the reference's probability": _weigh(lambda built, stats: built.weight(replace(stats, logprob=stats.ref_logprob))),
}

P_ALPHA: dict[str, Wrong] = {
    "detach dropped": _detach_dropped,
    "the value of weight times nll": lambda built, stats: -stats.logprob * built.weight(stats).detach(),
    "not divided by alpha": lambda built, stats: built.alpha * _value(built, stats) * built._kept(stats.logprob),
    "without the 1": lambda built, stats: (_value(built, stats) - 1 / built.alpha) * built._kept(stats.logprob),
    "alpha turned round": lambda built, stats: (
        -(stats.logprob / built.alpha).expm1() * built.alpha * built._kept(stats.logprob)
    ),
    "the other side": lambda built, stats: _value(built, stats) * ~built._kept(stats.logprob),
    "no threshold": _value,
    "plain": _other("sft"),
    "alpha 1": _other("p-alpha"),
    "over kept": lambda built, stats: built.per_token_loss(stats) * 40 / built._kept(stats.logprob).sum(),
    "kept by the reference": lambda built, stats: _value(built, stats) * built._kept(stats.ref_logprob),
}

PROFIT: dict[str, Wrong] = {
    "reference for live": _weigh(lambda built, stats: built.weight(replace(stats, logprob=stats.ref_logprob))),
    "over kept": _weigh(_over_kept),
    "cut on the log-probability": _weigh(
        lambda built, stats: built.weight(replace(stats, logprob=stats.logprob.exp()))
    ),
    "weighed by p": _weigh(lambda built, stats: built.weight(stats) * stats.logprob.exp()),
    "another threshold": _change(threshold=0.2),
    "one token late": _weigh(_shifted),
    "the rest": _weigh(lambda built, stats: 1 - built.weight(stats)),
}

PRODUCT: dict[str, Wrong] = {
    "detach dropped": _detach_dropped,
    "the sum of the weights": _weigh(lambda built, stats: sum(one.weight(stats) for one in built.of)),
    "the mean of the losses": lambda built, stats: sum(one.per_token_loss(stats) for one in built.of) / len(built.of),
    "the first factor alone": lambda built, stats: built.of[0].per_token_loss(stats),
    "without the first factor": lambda built, stats: objective("product", of=built.of[1:]).per_token_loss(stats),
    "further terms dropped": lambda built, stats: -stats.logprob * built.weight(stats).detach(),
    "further terms weighed": lambda built, stats: (-stats.logprob + built.extra(stats)) * built.weight(stats).detach(),
    "further terms of the first alone": _plus(_own_weight, lambda built, stats: built.of[0].extra(stats)),
    "further terms multiplied": _plus(
        _own_weight, lambda built, stats: built.of[0].extra(stats) * built.of[-1].extra(stats)
    ),
}

OF = {"of": [{"name": "asft", "lambda_kl": 0.4}, "chord-phi", {"name": "kl-sft", "direction": "reverse"}]}
ANSWERS = random_rows(lengths=(3, 2, 4, 3, 1, 2, 5, 2, 3, 4, 3, 2))
"""Four groups: with a right own answer, with none, and with one of two."""
TABLE: list[tuple[str, dict[str, Any], dict[str, Wrong]]] = [
    ("asft", {"lambda_kl": 0.7}, ANCHORED | {"detach dropped": _detach_dropped, "plain": _other("kl-sft")}),
    ("kl-sft", {"lambda_kl": 0.7}, ANCHORED | {"weighed by p": _other("asft", lambda_kl=0.7)}),
    ("chord-phi", {}, FOR_WEIGHTED | CHORD_PHI),
    ("gift", {"beta": 1.5}, GIFT),
    ("hpt", {"imitation": 0.7}, FOR_WEIGHTED | HPT),
    ("iw-sft", {"temperature": 2.5, "cap": 1.1}, FOR_WEIGHTED | IW_SFT),
    ("iw-sft", {"per": "token", "clip": 0.3}, FOR_WEIGHTED | TOKEN_RATIO),
    ("luffy", {}, FOR_WEIGHTED | LUFFY),
    ("p-alpha", {"alpha": 2.5, "keep": "top", "threshold": 0.2}, P_ALPHA),
    ("product", OF, PRODUCT),
    ("profit", {"keep": "middle", "threshold": 0.1, "upper": 0.5}, FOR_WEIGHTED | PROFIT),
    ("profit", {"keep": "lower", "threshold": 0.3}, FOR_WEIGHTED | PROFIT | {"higher": _change(keep="higher")}),
    ("rift", {"right": 0.8, "wrong": -0.5}, FOR_WEIGHTED | RIFT),
    ("srft", {}, FOR_WEIGHTED | SRFT),
]
ROWS = {"hpt": ANSWERS}
BETWEEN = {("srft", label) for label in ("shifted by one", "over the micro-batch", "one sequence late")}

PUBLISHED = [
    Mutant(label, name, wrong, options=options, between=(name, label) in BETWEEN, rows=ROWS.get(name))
    for name, options, own in TABLE
    for label, wrong in (FOR_ALL | own).items()
]
