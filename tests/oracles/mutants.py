"""Objectives with one thing wrong each, as people have got them wrong; every one must fail its check."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ballast import TokenStats, objective
from ballast.objectives import Objective
from ballast.objectives._propagation import lengths, propagated
from ballast.objectives._sequences import sequence_means
from oracles.rows import Rows

Wrong = Callable[[Objective, TokenStats], Tensor]
Spoil = Callable[[TokenStats, Tensor], TokenStats]


@dataclass(frozen=True)
class Mutant:
    """``wrong`` replaces the per-token loss; ``spoil(stats, logits)`` falsifies the statistics that it is given.

    ``rows`` are those of the check, where it takes others than the usual.
    ``between``: it shows between sequences only, and a golden row has one.
    """

    label: str
    name: str
    wrong: Wrong | None = None
    spoil: Spoil | None = None
    options: dict[str, Any] = field(default_factory=dict)
    between: bool = False
    rows: Rows | None = None


def _weigh(weight: Callable[[Objective, TokenStats], Tensor]) -> Wrong:
    """Return the loss with another weight, detached as it should be."""
    return lambda built, stats: -stats.logprob * weight(built, stats).detach() + built.extra(stats)


def _other(name: str, **options: Any) -> Wrong:
    return lambda _, stats: objective(name, **options).per_token_loss(stats)


def _change(**changes: Any) -> Wrong:
    """Return the loss of the same objective with these options changed."""
    return lambda built, stats: objective({**built.to_dict(), **changes}).per_token_loss(stats)


def _detach_dropped(built: Objective, stats: TokenStats) -> Tensor:
    return -stats.logprob * built.weight(stats) + built.extra(stats)


def _over_kept(built: Objective, stats: TokenStats) -> Tensor:
    weight = built.weight(stats)
    return weight * len(weight) / weight.sum().clamp(min=1e-9)


def _shifted(built: Objective, stats: TokenStats) -> Tensor:
    return built.weight(stats).roll(1)


FOR_ALL: dict[str, Wrong] = {
    "no sign": lambda built, stats: -built.per_token_loss(stats),
    "averaged inside": lambda built, stats: built.per_token_loss(stats) / len(stats.logprob),
    "twice": lambda built, stats: 2 * built.per_token_loss(stats),
    "no gradient": lambda built, stats: built.per_token_loss(stats).detach() + 0 * stats.logprob,
    "in bits": lambda built, stats: built.per_token_loss(stats) / math.log(2),
    "probability for its logarithm": lambda built, stats: -stats.logprob.exp() * built.weight(stats).detach(),
}

FOR_WEIGHTED: dict[str, Wrong] = {
    "constant": _weigh(lambda _, stats: torch.full_like(stats.logprob, 0.5)),
    "one minus the weight": _weigh(lambda built, stats: 1 - built.weight(stats)),
    "mean over kept": _weigh(_over_kept),
    "shifted by one": _weigh(_shifted),
    "plain": _other("sft"),
}

OWN: dict[str, dict[str, Wrong]] = {
    "sft": {
        "weighed by p": _other("dft"),
        "length-weighted": _weigh(lambda _, stats: torch.arange(1.0, len(stats.logprob) + 1)),
    },
    "dft": {
        "detach dropped": _detach_dropped,
        "reference for live": _other("prift-prob"),
        "squared": _weigh(lambda _, stats: (2 * stats.logprob).exp()),
        "log-probability for p": _weigh(lambda _, stats: stats.logprob),
    },
    "prift-prob": {
        "live for reference": _other("dft"),
        "importance ratio": _weigh(lambda _, stats: (stats.logprob - stats.ref_logprob).exp()),
        "square root": _other("reweight", rule="power", alpha=0.5),
    },
    "prift-mass": {
        "live for reference": _other("reweight", rule="mass", signal="live"),
        "ties the other way": _change(ties="inclusive"),
        "threshold moved": _change(threshold=0.42),
        "soft": _weigh(lambda _, stats: stats.ref_mass),
        "without its own": _weigh(lambda _, stats: (stats.ref_mass - stats.ref_logprob.exp() >= 0.5) * 1.0),
        "tokens that are likelier": _weigh(lambda _, stats: (1 - stats.ref_mass >= 0.5) * 1.0),
        "cut on the probability": _other("reweight", rule="threshold", threshold=0.1),
    },
    "gft": {
        "detach dropped": _detach_dropped,
        "absolute advantage": _weigh(lambda built, stats: built.weight(stats).abs()),
        "advantage clipped at 0": _weigh(lambda built, stats: built.weight(stats).clamp(min=0)),
        "without advantage": _weigh(
            lambda built, stats: built.weight(replace(stats, advantage=stats.advantage * 0 + 1))
        ),
        "rectified above tau": _weigh(
            lambda built, stats: stats.advantage * stats.logprob.exp().where(stats.logprob.exp() >= built.tau, 1.0)
        ),
        "clipped for rectified": _weigh(
            lambda built, stats: stats.advantage * stats.logprob.exp().clamp(max=built.tau)
        ),
        "only where imitated": _weigh(
            lambda built, stats: built.weight(stats).where(stats.advantage > 0, stats.advantage)
        ),
        "the script's tau": _change(tau=0.1),
        "advantage one token off": _weigh(
            lambda built, stats: built.weight(replace(stats, advantage=stats.advantage.roll(1)))
        ),
        "never rectified": _change(tau=0),
        "always rectified": _change(tau=2),
        "over kept": _weigh(_over_kept),
    },
    "weighted-sft": {
        "squared": _weigh(lambda _, stats: stats.require("weight").square()),
        "one mean for all": _weigh(lambda _, stats: stats.require("weight").mean() + 0 * stats.logprob),
        "a weight of 0 ignored": _weigh(
            lambda _, stats: stats.require("weight").where(stats.require("weight") > 0, 1.0)
        ),
        "capped at 1": _weigh(lambda _, stats: stats.require("weight").clamp(max=1)),
        "times p": _weigh(lambda _, stats: stats.require("weight") * stats.logprob.exp()),
    },
    "psft": {
        "no bound": _change(clip=1e9),
        "bound on the log-ratio": _change(clip=math.expm1(0.28)),
        "the paper's lower bound as the upper": _change(clip=0.2),
        "lower bound acts": lambda _, stats: -(stats.logprob - stats.old_logprob).exp().clamp(0.8, 1.28),
        "slope beyond the bound": lambda built, stats: (
            built.per_token_loss(stats).detach() * (1 + stats.logprob - stats.logprob.detach())
        ),
        "ratio detached": _weigh(lambda _, stats: (stats.logprob - stats.old_logprob).exp()),
        "old over new": lambda _, stats: -(stats.old_logprob - stats.logprob).exp().clamp(max=1.28),
        "a fixed reference": lambda built, stats: built.per_token_loss(replace(stats, old_logprob=stats.ref_logprob)),
        "old model one token off": lambda built, stats: built.per_token_loss(
            replace(stats, old_logprob=stats.old_logprob.roll(1))
        ),
        "the log-ratio": lambda _, stats: -(stats.logprob - stats.old_logprob).clamp(max=math.log(1.28)),
        "cross-entropy weighed by the ratio": _weigh(lambda built, stats: built.weight(stats)),
    },
    "deft": {
        "exponent with gradient": _detach_dropped,
        "Rényi entropy for exp of minus it": _weigh(lambda _, stats: (-stats.collision.log() * stats.logprob).exp()),
        "turned round": _weigh(lambda _, stats: ((1 - stats.collision) * stats.logprob).exp()),
        "square root of Σ p²": _weigh(lambda _, stats: (stats.collision.sqrt() * stats.logprob).exp()),
        "the entropy": _weigh(lambda _, stats: (stats.entropy * stats.logprob).exp()),
        "always p": _other("dft"),
        "Cayley's": _change(exponent="cayley"),
        "one exponent for all": _weigh(lambda _, stats: (stats.collision.mean() * stats.logprob).exp()),
    },
    "talr": {
        "weights with gradient": _detach_dropped,
        "normalised": _change(normalise=True),
        "another floor": _change(floor=0.3),
        "always p": _other("dft"),
        "floor added": _weigh(lambda _, stats: 0.4 + (stats.logprob / -stats.logprob.mean()).exp()),
        "floor as a ceiling": _weigh(lambda _, stats: (stats.logprob / -stats.logprob.mean()).exp().clamp(max=0.4)),
        "scale turned round": _weigh(lambda _, stats: (stats.logprob * -stats.logprob.mean()).exp().clamp(min=0.4)),
    },
    "self-train": {
        "wrong ones too": _weigh(lambda _, stats: stats.share),
        "part scores count": _weigh(lambda _, stats: stats.share * ((stats.origin != 2) | (stats.reward > 0))),
        "part scores weigh": _weigh(lambda _, stats: stats.share * stats.reward.where(stats.origin == 2, 1.0)),
        "given ones must be right": _weigh(lambda _, stats: stats.share * (stats.reward >= 1)),
        "experts alone are given": _weigh(lambda _, stats: stats.share * ((stats.origin == 0) | (stats.reward >= 1))),
        "without share": _weigh(lambda _, stats: ((stats.origin != 2) | (stats.reward >= 1)) * 1.0),
        "own alone": _weigh(lambda built, stats: built.weight(stats) * (stats.origin == 2)),
        "the wrong are unlearnt": _weigh(lambda built, stats: built.weight(stats) - (built.weight(stats) == 0) * 1.0),
        "shifted by one": _weigh(_shifted),
    },
}

FOR_EKSFT: dict[str, Wrong] = {
    "mask shifted by one": _weigh(_shifted),
    "intersection for union": _change(select="intersection"),
    "smallest for largest": _change(extreme="smallest"),
    "k rounded up": _change(rho=0.41 + 1 / 3),
    "nothing spared": lambda built, stats: -stats.logprob + built.extra(stats),
    "mean over all tokens": _weigh(lambda built, stats: (built.weight(stats) > 0) * 1.0),
    "mean of kept, not of the sequence": _weigh(lambda built, stats: built.weight(stats) / len(stats.logprob)),
    "bonus without gradient": lambda built, stats: built.per_token_loss(replace(stats, entropy=stats.entropy.detach())),
    "penalty without gradient": lambda built, stats: built.per_token_loss(replace(stats, kl=stats.kl.detach())),
    "bonus for penalty": lambda built, stats: -stats.logprob * built.weight(stats) - built.extra(stats),
    "no bonus": _change(lambda_h=0),
    "no penalty": _change(lambda_kl=0),
    "coefficients exchanged": _change(lambda_h=0.7, lambda_kl=0.3),
    "coefficients that drift": _change(lambda_h=0.3 * 1.05, lambda_kl=0.7 * 0.95),
    "regularised everywhere": lambda built, stats: (
        -stats.logprob * built.weight(stats) - built.lambda_h * stats.entropy + built.lambda_kl * stats.kl
    ),
    "over the micro-batch": _change(scope="batch"),
    "smallest KL": _change(extreme_kl="smallest"),
    "entropy of the released code": _change(entropy="normalised"),
    "penalty of the released code": _change(penalty="released"),
}

RELEASED_EKSFT: dict[str, Wrong] = {
    "nats": _change(entropy="nats"),
    "the KL": _change(penalty="kl"),
    "another vocabulary": lambda built, stats: built.per_token_loss(replace(stats, vocabulary=stats.vocabulary + 1)),
    "the cross-entropy alone": lambda built, stats: built.per_token_loss(replace(stats, collision=0 * stats.collision)),
    "collision without gradient": lambda built, stats: built.per_token_loss(
        replace(stats, collision=stats.collision.detach())
    ),
    "penalty scaled as the bonus": lambda built, stats: built.per_token_loss(
        replace(stats, kl=stats.kl / math.log(stats.vocabulary))
    ),
}

EKSFT_OPTIONS = {"rho": 0.4, "lambda_h": 0.3, "lambda_kl": 0.7}


def _reference_logits(logits: Tensor) -> Tensor:
    from oracles.rows import random_rows

    return torch.tensor(random_rows().reference, dtype=logits.dtype)


def _product_penalty(stats: TokenStats, logits: Tensor) -> TokenStats:
    p = logits.softmax(-1)
    return replace(stats, kl=(p * (p - _reference_logits(logits).log_softmax(-1))).sum(-1))


def _forward_penalty(stats: TokenStats, logits: Tensor) -> TokenStats:
    logq = _reference_logits(logits).log_softmax(-1)
    return replace(stats, kl=(logq.exp() * (logq - logits.log_softmax(-1))).sum(-1))


def _target_penalty(stats: TokenStats, logits: Tensor) -> TokenStats:
    from oracles.rows import random_rows

    targets = torch.tensor(random_rows().targets)[:, None]
    logq = _reference_logits(logits).log_softmax(-1).gather(1, targets)[:, 0]
    return replace(stats, kl=stats.logprob - logq)


SPOILT: dict[str, Spoil] = {
    "entropy over log V": lambda stats, logits: replace(stats, entropy=stats.entropy / math.log(logits.shape[-1])),
    "entropy in bits": lambda stats, logits: replace(stats, entropy=stats.entropy / math.log(2)),
    "p·(p − log q) for the KL": _product_penalty,
    "the KL forwards": _forward_penalty,
    "log-ratio at the target for the KL": _target_penalty,
    "statistics one token off": lambda stats, _: replace(stats, entropy=stats.entropy.roll(1), kl=stats.kl.roll(1)),
}

REWEIGHT: list[tuple[str, dict[str, Any], Wrong]] = [
    ("detach dropped", {"rule": "probability", "signal": "live"}, _detach_dropped),
    ("detach dropped", {"rule": "power", "signal": "live", "alpha": 2}, _detach_dropped),
    ("inverse exponent", {"rule": "power", "signal": "live", "alpha": 2}, _change(alpha=0.5)),
    ("live for reference", {"rule": "power", "alpha": 0.5}, _change(signal="live")),
    ("reference for live", {"rule": "threshold", "signal": "live", "threshold": 0.3}, _change(signal="reference")),
    ("reference for live", {"rule": "entropy", "signal": "live", "max_entropy": 1.2}, _change(signal="reference")),
    ("live for reference", {"rule": "entropy", "max_entropy": 1.2}, _change(signal="live")),
    ("live for reference", {"rule": "mass"}, _change(signal="live")),
    (
        "gate turned round",
        {"rule": "entropy", "max_entropy": 1.2},
        _weigh(lambda _, stats: (stats.ref_entropy >= 1.2) * 1.0),
    ),
    (
        "cut on the log-probability",
        {"rule": "threshold", "signal": "live", "threshold": 0.3},
        _weigh(lambda _, stats: (stats.logprob >= 0.3) * 1.0),
    ),
]

KEPT_END = {"threshold": 0.7, "keep_end": True}

FOR_KEPT_ENDS: dict[str, Wrong] = {
    "ends dropped": _change(keep_end=False),
    "last token of a turn, not where it stops": _weigh(lambda built, stats: built.weight(replace(stats, end=None))),
    "everywhere where generation could stop": _weigh(
        lambda built, stats: built.weight(stats).masked_fill(stats.end, 1.0)
    ),
    "last token of the micro-batch": _weigh(
        lambda built, stats: built.weight(replace(stats, sequence=None, position=None))
    ),
    "first token of a turn": _weigh(lambda built, stats: built.weight(replace(stats, position=-stats.position))),
    "one token late": _weigh(lambda built, stats: built.weight(replace(stats, end=stats.end.roll(1)))),
}

IFT_OPTIONS = {"gamma": 0.5}


def _reordered(stats: TokenStats) -> TokenStats:
    return replace(stats, position=-stats.position)


def _in_one_sequence(stats: TokenStats) -> TokenStats:
    count = torch.arange(len(stats.logprob))
    return replace(stats, sequence=torch.zeros_like(count), position=count)


def _divided(weight: Callable[[Objective, TokenStats], Tensor]) -> Wrong:
    """Return the loss with another weight, which keeps its gradient, averaged per sequence."""

    def loss(built: Objective, stats: TokenStats) -> Tensor:
        return -stats.logprob * weight(built, stats) / lengths(stats)

    return loss


def _normaliser_detached(built: Objective, stats: TokenStats) -> Tensor:
    reach = propagated(stats, built.gamma)
    return reach * (built.weight(stats) / reach).detach()


IFT: list[tuple[str, dict[str, Any], Wrong]] = [
    ("weights detached", IFT_OPTIONS, _divided(lambda built, stats: built.weight(stats).detach())),
    ("normaliser detached", IFT_OPTIONS, _divided(_normaliser_detached)),
    (
        "losses detached",
        IFT_OPTIONS,
        lambda built, stats: -stats.logprob.detach() * built.weight(stats) / lengths(stats),
    ),
    ("backwards", IFT_OPTIONS, _divided(lambda built, stats: built.weight(_reordered(stats)))),
    ("unnormalised", IFT_OPTIONS, _change(variant="algorithm1")),
    ("by place", IFT_OPTIONS, _change(variant="equation21", gamma=0.95)),
    ("normalised to 1", IFT_OPTIONS, _divided(lambda built, stats: built.weight(stats) / lengths(stats))),
    ("mean over tokens", IFT_OPTIONS, _change(average="token")),
    ("mean per sequence of a mean over tokens", {**IFT_OPTIONS, "average": "token"}, _change(average="sequence")),
    ("without itself", IFT_OPTIONS, _divided(lambda built, stats: built.weight(stats) + stats.logprob)),
    (
        "one power too many",
        {**IFT_OPTIONS, "variant": "algorithm1"},
        _divided(lambda built, stats: built.gamma * built.weight(stats)),
    ),
    ("another gamma", IFT_OPTIONS, _change(gamma=0.55)),
    ("no propagation", IFT_OPTIONS, _change(gamma=0)),
    ("no discount", IFT_OPTIONS, _change(gamma=1)),
    (
        "weight without special case at 0",
        {"gamma": 0},
        _divided(lambda built, stats: stats.logprob * lengths(stats) / stats.logprob.sum()),
    ),
    ("place from 0", {"variant": "equation21"}, _divided(lambda built, stats: built.weight(stats) - 1)),
    ("place from the end", {"variant": "equation21"}, _divided(lambda built, stats: built.weight(_reordered(stats)))),
    ("plain", IFT_OPTIONS, _divided(lambda built, stats: torch.ones_like(stats.logprob))),
    ("through all sequences", {"gamma": 0.6}, _divided(lambda built, stats: built.weight(_in_one_sequence(stats)))),
    (
        "through all sequences",
        {"gamma": 0.6, "variant": "algorithm1"},
        _divided(lambda built, stats: built.weight(_in_one_sequence(stats))),
    ),
    (
        "normalised over the micro-batch",
        {"gamma": 0.6},
        _divided(lambda built, stats: propagated(stats, 0.6) * 40 / propagated(stats, 0.6).sum()),
    ),
    (
        "length of the micro-batch",
        {"gamma": 0.6},
        lambda built, stats: -stats.logprob * built.weight(stats) / len(stats.logprob),
    ),
]

CAYLEY: dict[str, Wrong] = {
    "of Σ p²": _change(exponent="renyi"),
    "without the mean": _weigh(lambda _, stats: _power(stats, stats.logprob.exp() / (2 - stats.logprob.exp()))),
    "the mean alone": _weigh(lambda _, stats: _power(stats, stats.logprob.exp().mean() / 2 + 0 * stats.logprob)),
    "the whole mean": _weigh(
        lambda _, stats: _power(
            stats,
            stats.logprob.exp().mean()
            + (1 - stats.logprob.exp().mean()) * stats.logprob.exp() / (2 - stats.logprob.exp()),
        )
    ),
}


def _power(stats: TokenStats, exponent: Tensor) -> Tensor:
    return (exponent * stats.logprob).exp()


def _talr_scale(scale: Callable[[TokenStats], Tensor]) -> Wrong:
    """Return TALR's loss with another number in place of the median of the sequences."""

    def weight(built: Objective, stats: TokenStats) -> Tensor:
        found = (stats.logprob / scale(stats)).exp().clamp(min=0.01)
        return found / found.mean()

    return _weigh(weight)


# Three tokens are one sequence, whose mean is every other mean too, so the golden row cannot tell these apart.
TALR: dict[str, Wrong] = {
    "mean of sequences": _talr_scale(lambda stats: -sequence_means(stats.logprob, stats).mean()),
    "mean of tokens": _talr_scale(lambda stats: -stats.logprob.mean()),
    "lower of two middle ones": _talr_scale(lambda stats: -sequence_means(stats.logprob, stats).median()),
    "each sequence its own": _talr_scale(
        lambda stats: -sequence_means(stats.logprob, stats)[stats.sequence.unique(return_inverse=True)[1]]
    ),
    "sums of sequences": _talr_scale(
        lambda stats: -stats.logprob.new_zeros(4).index_add(0, stats.sequence, stats.logprob).quantile(0.5)
    ),
}

WEIGHTED = ("dft", "prift-prob", "prift-mass", "weighted-sft", "deft", "talr")
IRFT_OPTIONS = {"beta": 0.5}


def _paired(**changes: Callable[[TokenStats], Tensor]) -> Wrong:
    """Return the loss of the same objective with some statistics falsified."""
    return lambda built, stats: built.per_token_loss(
        replace(stats, **{name: change(stats) for name, change in changes.items()})
    )


def _by_length(built: Objective, stats: TokenStats) -> Tensor:
    size = lengths(stats)
    return built.per_token_loss(replace(stats, logprob=stats.logprob / size, ref_logprob=stats.ref_logprob / size))


IRFT: dict[str, Wrong] = {
    "reference dropped": _paired(ref_logprob=lambda stats: 0 * stats.ref_logprob),
    "live for reference": _paired(ref_logprob=lambda stats: stats.logprob.detach()),
    "reference one token off": _paired(ref_logprob=lambda stats: stats.ref_logprob.roll(1)),
    "own answers preferred": _paired(origin=lambda stats: 2 - stats.origin),
    "own answers as one": _paired(sequence=lambda stats: stats.origin),
    "own answers without gradient": _paired(
        logprob=lambda stats: torch.where(stats.origin == 2, stats.logprob.detach(), stats.logprob)
    ),
    "experts without gradient": _paired(
        logprob=lambda stats: torch.where(stats.origin == 2, stats.logprob, stats.logprob.detach())
    ),
    "the paper's beta": _change(beta=0.1),
    "beta after the link": lambda built, stats: (
        objective("irft", beta=1, link=built.link).per_token_loss(stats) * built.beta
    ),
    "no link": _change(link="none"),
    "hinge for sigmoid": _change(link="hinge"),
    "sum over pairs": lambda built, stats: 2 * built.per_token_loss(stats),
    "the weights' loss": lambda built, stats: -stats.logprob * built.weight(stats).detach(),
}

FOR_LONGER_ANSWERS: dict[str, Wrong] = {
    "pairs across groups": _paired(group=lambda stats: 0 * stats.group),
    "divided by length": _by_length,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "eksft": EKSFT_OPTIONS,
    "gft": {"tau": 0.3},
    "ift": IFT_OPTIONS,
    # A mean over the kept tokens is what its own weights are divided by.
    "talr": {"floor": 0.4, "normalise": False},
    "irft": IRFT_OPTIONS,
}

MUTANTS = [
    *(
        Mutant(label, name, wrong, options=OPTIONS.get(name, {}))
        for name in ("sft", *WEIGHTED, "reweight", "eksft", "gft", "self-train", "ift", "irft", "psft")
        for label, wrong in FOR_ALL.items()
    ),
    *(
        Mutant(label, name, wrong, options=OPTIONS.get(name, {}))
        for name in (*WEIGHTED, "reweight")
        for label, wrong in FOR_WEIGHTED.items()
    ),
    *(Mutant(label, "deft", wrong, options={"exponent": "cayley"}) for label, wrong in CAYLEY.items()),
    *(Mutant(label, "talr", wrong, options={"floor": 0.01}) for label, wrong in TALR.items()),
    *(
        Mutant(label, name, wrong, options=OPTIONS.get(name, {}))
        for name, own in OWN.items()
        for label, wrong in own.items()
    ),
    *(Mutant(label, "reweight", wrong, options=options) for label, options, wrong in REWEIGHT),
    *(
        Mutant(label, name, wrong, options=options)
        for name, options in (
            ("prift-mass", KEPT_END),
            ("reweight", {"rule": "entropy", "max_entropy": 1.1, "keep_end": True}),
            ("eksft", {**EKSFT_OPTIONS, "rho": 0.7, "keep_end": True}),
        )
        for label, wrong in FOR_KEPT_ENDS.items()
    ),
    *(Mutant(label, "ift", wrong, options=options) for label, options, wrong in IFT),
    *(Mutant(label, "irft", wrong, options=IRFT_OPTIONS) for label, wrong in IRFT.items()),
    *(Mutant(label, "irft", wrong, options={"beta": 0.3}) for label, wrong in FOR_LONGER_ANSWERS.items()),
    *(Mutant(label, "eksft", wrong, options=EKSFT_OPTIONS) for label, wrong in FOR_EKSFT.items()),
    *(
        Mutant(label, "eksft", wrong, options={**EKSFT_OPTIONS, "entropy": "normalised", "penalty": "released"})
        for label, wrong in RELEASED_EKSFT.items()
    ),
    *(Mutant(label, "eksft", spoil=spoil, options=EKSFT_OPTIONS) for label, spoil in SPOILT.items()),
]
