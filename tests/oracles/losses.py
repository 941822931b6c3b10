"""Every objective's per-token loss and the gradient of their sum by the live logits, one token after the other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from oracles import statistics as stat
from oracles.published import PUBLISHED
from oracles.rows import Rows
from oracles.token_loss import Loss, sequences, weighted


def loss(name: str, rows: Rows, **options: Any) -> Loss:
    """Return the per-token losses ``[N]`` and the gradient ``[N][V]`` of their sum; weights are constants."""
    return ORACLES[name](rows, **options)


def _sft(rows: Rows) -> Loss:
    return weighted(rows, [1.0 for _ in rows.targets])


def _dft(rows: Rows) -> Loss:
    return weighted(rows, [stat.probabilities(z)[y] for z, y in zip(rows.live, rows.targets, strict=True)])


def _prift_prob(rows: Rows) -> Loss:
    return weighted(rows, [stat.probabilities(z)[y] for z, y in zip(rows.reference, rows.targets, strict=True)])


def _gft(rows: Rows, tau: float = 0.7, aggregation: str = "token") -> Loss:
    weights = []
    for logits, target, advantage in zip(rows.live, rows.targets, rows.advantage, strict=True):
        p = stat.probabilities(logits)[target]
        weights.append(advantage * (p if p < tau else 1.0))
    return weighted(rows, weights)


def _self_train(rows: Rows) -> Loss:
    weights = []
    for origin, reward, share in zip(rows.origin, rows.reward, rows.share, strict=True):
        weights.append(share if origin in (0, 1) or reward == 1 else 0.0)
    return weighted(rows, weights)


MASSES = {"strict": stat.mass_strict, "inclusive": stat.mass_inclusive}


def _prift_mass(rows: Rows, threshold: float = 0.5, ties: str = "strict", keep_end: bool = False) -> Loss:
    weights = []
    for logits, target, is_end in zip(rows.reference, rows.targets, _turn_ends(rows), strict=True):
        weights.append(1.0 if MASSES[ties](logits, target) >= threshold or (keep_end and is_end) else 0.0)
    return weighted(rows, weights)


WEIGHTS: dict[str, Callable[..., float]] = {
    "probability": lambda z, y: stat.probabilities(z)[y],
    "power": lambda z, y, alpha: stat.probabilities(z)[y] ** alpha,
    "threshold": lambda z, y, threshold: 1.0 if stat.probabilities(z)[y] >= threshold else 0.0,
    "mass": lambda z, y, threshold=0.5, ties="strict": 1.0 if MASSES[ties](z, y) >= threshold else 0.0,
    "entropy": lambda z, y, max_entropy: 1.0 if stat.entropy(z) <= max_entropy else 0.0,
}


def _reweight(
    rows: Rows, rule: str = "probability", signal: str = "reference", keep_end: bool = False, **options: Any
) -> Loss:
    logits = {"live": rows.live, "reference": rows.reference}[signal]
    weights = [WEIGHTS[rule](z, y, **options) for z, y in zip(logits, rows.targets, strict=True)]
    ends = _turn_ends(rows)
    return weighted(rows, [1.0 if keep_end and end else weight for weight, end in zip(weights, ends, strict=True)])


PENALTIES = {
    "kl": (stat.kl, stat.kl_gradient),
    "released": (stat.released_penalty, stat.released_penalty_gradient),
}


def _eksft(
    rows: Rows,
    rho: float = 0.2,
    lambda_h: float = 0.05,
    lambda_kl: float = 0.05,
    select: str = "union",
    scope: str = "sequence",
    extreme: str = "largest",
    extreme_kl: str | None = None,
    entropy: str = "nats",
    penalty: str = "kl",
    keep_end: bool = False,
) -> Loss:
    count = len(rows.targets)
    unit = {"nats": 1.0, "normalised": math.log(rows.vocab)}[entropy]
    value, slopes = PENALTIES[penalty]
    ends = _turn_ends(rows)
    entropies = [stat.entropy(logits) for logits in rows.live]
    moved = [stat.kl(live, reference) for live, reference in zip(rows.live, rows.reference, strict=True)]
    losses = [0.0] * count
    gradient = [[0.0] * rows.vocab for _ in range(count)]

    def add(token: int, scale: float, value: float, slopes: list[float]) -> None:
        losses[token] += scale * value
        gradient[token] = [old + scale * slope for old, slope in zip(gradient[token], slopes, strict=True)]

    segments = [list(range(count))] if scope == "batch" else sequences(rows.sequence)
    for members in segments:
        size = len(members)
        wanted = math.floor(Fraction(str(rho)) * size)
        by_entropy = _extreme(members, entropies, extreme, wanted, rows)
        by_kl = _extreme([t for t in members if moved[t] > 1e-6], moved, extreme_kl or extreme, wanted, rows)
        spared = by_entropy | by_kl if select == "union" else by_entropy & by_kl
        kept = [t for t in members if t not in spared or (keep_end and ends[t])]
        for t in kept:
            live, target = rows.live[t], rows.targets[t]
            add(t, -size / len(kept), stat.logprob(live, target), stat.logprob_gradient(live, target))
        for t in by_entropy:
            add(t, -lambda_h / unit * size / len(by_entropy), entropies[t], stat.entropy_gradient(rows.live[t]))
        for t in by_kl:
            pair = rows.live[t], rows.reference[t]
            add(t, lambda_kl * size / len(by_kl), value(*pair), slopes(*pair))
    return losses, gradient


def _ift(
    rows: Rows,
    variant: str = "normalised",
    gamma: float = 0.95,
    average: str = "sequence",
    **of_the_inputs: Any,
) -> Loss:
    losses = [0.0] * len(rows.targets)
    gradient = [[0.0] * rows.vocab for _ in rows.targets]
    for members in sequences(rows.sequence):
        ordered = sorted(members, key=lambda t: rows.position[t])
        nll = [-stat.logprob(rows.live[t], rows.targets[t]) for t in ordered]
        values, slopes = IFT_VARIANTS[variant](nll, [rows.position[t] for t in ordered], gamma)
        divisor = len(ordered) if average == "sequence" else 1
        for t, value, slope in zip(ordered, values, slopes, strict=True):
            losses[t] = value / divisor
            by_logits = stat.logprob_gradient(rows.live[t], rows.targets[t])
            gradient[t] = [-slope / divisor * along for along in by_logits]
    return losses, gradient


LINKS: dict[str, Callable[[float], tuple[float, float]]] = {
    "sigmoid": lambda m: (math.log1p(math.exp(-m)), -1 / (1 + math.exp(m))),
    "hinge": lambda m: (max(0.0, 1 - m), -1.0 if m < 1 else 0.0),
    "none": lambda m: (-m, -1.0),
}
"""The loss of a margin and its derivative."""


def _irft(rows: Rows, beta: float = 0.1, link: str = "sigmoid") -> Loss:
    """Every given answer against every own one of its group, as the papers write it: one pair after the other."""
    losses = [0.0] * len(rows.targets)
    slopes = [0.0] * len(rows.targets)
    ratio = [
        stat.logprob(live, y) - stat.logprob(reference, y)
        for live, reference, y in zip(rows.live, rows.reference, rows.targets, strict=True)
    ]
    for tokens in sequences(rows.group):
        answers = [[t for t in tokens if rows.sequence[t] == one] for one in sorted({rows.sequence[t] for t in tokens})]
        own = [answer for answer in answers if rows.origin[answer[0]] == 2]
        both = [(given, other) for given in answers if given not in own for other in own]
        for given, other in both:
            margin = beta * (math.fsum(ratio[t] for t in given) - math.fsum(ratio[t] for t in other))
            value, slope = LINKS[link](margin)
            for t in tokens:
                losses[t] += value / len(both) / len(tokens)
            for answer, sign in ((given, 1.0), (other, -1.0)):
                for t in answer:
                    slopes[t] += sign * beta * slope / len(both)
    gradient = [
        [slope * along for along in stat.logprob_gradient(live, y)]
        for live, y, slope in zip(rows.live, rows.targets, slopes, strict=True)
    ]
    return losses, gradient


Values = tuple[list[float], list[float]]


def _reach(nll: list[float], place: list[int], gamma: float) -> list[float]:
    """Discounted by position: what stands untrained between two tokens counts."""
    count = range(len(nll))
    return [math.fsum(gamma ** (place[i] - place[t]) * nll[i] for i in count[t:]) for t in count]


def _reach_back(nll: list[float], place: list[int], gamma: float) -> list[float]:
    count = range(len(nll))
    return [math.fsum(gamma ** (place[j] - place[t]) * nll[t] for t in count[: j + 1]) for j in count]


def _unnormalised(nll: list[float], place: list[int], gamma: float) -> Values:
    """The terms nll_t·c_t, and the slope of their sum: a token counts itself, as a weight's base and in weights."""
    after, before = _reach(nll, place, gamma), _reach_back(nll, place, gamma)
    return [x * c for x, c in zip(nll, after, strict=True)], [c + b for c, b in zip(after, before, strict=True)]


def _normalised(nll: list[float], place: list[int], gamma: float) -> Values:
    """n·Σ nll_t·c_t / Σ c_s by the rule for quotients; Σ c_s has the slope Σ_{t≤j} γ^(j−t) at token j."""
    if gamma == 0:
        return nll, [1.0 for _ in nll]
    size, total = len(nll), math.fsum(_reach(nll, place, gamma))
    if total == 0:
        return nll, [1.0 for _ in nll]
    values, slopes = _unnormalised(nll, place, gamma)
    product = math.fsum(values)
    reached_by = _reach_back([1.0 for _ in nll], place, gamma)
    quotient = [s / total - product * r / total**2 for s, r in zip(slopes, reached_by, strict=True)]
    return [size * value / total for value in values], [size * slope for slope in quotient]


def _by_place(nll: list[float], place: list[int], gamma: float) -> Values:
    return [(t + 1) * x for t, x in enumerate(nll)], [float(t + 1) for t in range(len(nll))]


IFT_VARIANTS: dict[str, Callable[[list[float], list[int], float], Values]] = {
    "normalised": _normalised,
    "algorithm1": _unnormalised,
    "equation21": _by_place,
}


def _product(rows: Rows, of: Sequence[str | Mapping[str, Any]] = ("dft", "prift-mass")) -> Loss:
    """Weights are recovered as loss over loss; of factors with a KL from their loss without it."""
    plain, plain_slopes = loss("sft", rows)
    weights = [1.0 for _ in plain]
    further = [0.0 for _ in plain]
    further_slopes = [[0.0] * rows.vocab for _ in plain]
    for one in of:
        options = {"name": one} if isinstance(one, str) else dict(one)
        name = options.pop("name")
        bare = {**options, "lambda_kl": 0} if name in ("kl-sft", "asft") else options
        values, slopes = loss(name, rows, **options)
        bare_values, bare_slopes = loss(name, rows, **bare)
        for t, nll in enumerate(plain):
            weights[t] *= bare_values[t] / nll
            further[t] += values[t] - bare_values[t]
            beyond = [a - b for a, b in zip(slopes[t], bare_slopes[t], strict=True)]
            further_slopes[t] = [a + b for a, b in zip(further_slopes[t], beyond, strict=True)]
    losses = [w * nll + more for w, nll, more in zip(weights, plain, further, strict=True)]
    gradient = [
        [w * own + more for own, more in zip(along, beyond, strict=True)]
        for w, along, beyond in zip(weights, plain_slopes, further_slopes, strict=True)
    ]
    return losses, gradient


def _turn_ends(rows: Rows) -> list[bool]:
    ends = [False] * len(rows.targets)
    for members in sequences(rows.sequence):
        turns: list[list[int]] = []
        for t in sorted(members, key=lambda t: rows.position[t]):
            if turns and rows.position[t] == rows.position[turns[-1][-1]] + 1:
                turns[-1].append(t)
            else:
                turns.append([t])
        for turn in turns:
            stops = [t for t in turn if rows.end[t]]
            ends[(stops or turn)[-1]] = True
    return ends


def _extreme(members: list[int], score: list[float], extreme: str, wanted: int, rows: Rows) -> set[int]:
    sign = {"largest": -1.0, "smallest": 1.0}[extreme]
    ranked = sorted(members, key=lambda t: (sign * score[t], rows.sequence[t], rows.position[t]))
    return set(ranked[:wanted])


def _weighted_sft(rows: Rows, column: str = "weight") -> Loss:
    return weighted(rows, rows.weight)


def _psft(rows: Rows, clip: float = 0.28, refresh: int = 8) -> Loss:
    """The clipped ratio, and its derivative: the ratio itself times that of the log-probability, 0 beyond the bound."""
    losses, gradient = [], []
    for logits, before, target in zip(rows.live, rows.old, rows.targets, strict=True):
        ratio = stat.probabilities(logits)[target] / stat.probabilities(before)[target]
        losses.append(-min(ratio, 1 + clip))
        slope = ratio if ratio <= 1 + clip else 0.0
        gradient.append([-slope * one for one in stat.logprob_gradient(logits, target)])
    return losses, gradient


def _deft(rows: Rows, exponent: str = "renyi", alpha: float | None = None) -> Loss:
    own = [stat.probabilities(logits)[target] for logits, target in zip(rows.live, rows.targets, strict=True)]
    mean = math.fsum(own) / len(own)
    by_exponent: dict[str, Callable[[int], float]] = {
        "renyi": lambda t: stat.collision(rows.live[t]),
        "cayley": lambda t: 0.5 * mean + (1 - 0.5 * mean) * own[t] / (2 - own[t]),
        "fixed": lambda t: float(alpha or 0),
    }
    return weighted(rows, [p ** by_exponent[exponent](t) for t, p in enumerate(own)])


def _talr(rows: Rows, floor: float = 0.01, normalise: bool = True) -> Loss:
    nll = [-stat.logprob(logits, target) for logits, target in zip(rows.live, rows.targets, strict=True)]
    means = [statistics.fmean(nll[t] for t in members) for members in sequences(rows.sequence)]
    middle = statistics.median(means)
    weights = [max(floor, math.exp(-one / middle)) for one in nll]
    scale = statistics.fmean(weights) if normalise else 1.0
    return weighted(rows, [weight / scale for weight in weights])


ORACLES: dict[str, Callable[..., Loss]] = {
    "sft": _sft,
    "dft": _dft,
    "prift-prob": _prift_prob,
    "prift-mass": _prift_mass,
    "reweight": _reweight,
    "eksft": _eksft,
    "gft": _gft,
    "self-train": _self_train,
    "ift": _ift,
    "weighted-sft": _weighted_sft,
    "psft": _psft,
    "deft": _deft,
    "talr": _talr,
    "irft": _irft,
    "product": _product,
    **PUBLISHED,
}
