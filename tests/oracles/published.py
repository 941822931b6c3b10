"""Oracles of published objectives: from their papers' formulas, not from the form that the library gives them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from oracles import statistics as stat
from oracles.rows import Rows
from oracles.token_loss import Loss, sequences, weighted

DIVERGENCES = {
    "forward": (stat.kl_forward, stat.kl_forward_gradient),
    "reverse": (stat.kl, stat.kl_gradient),
}


def _live(rows: Rows) -> list[float]:
    return [stat.probabilities(z)[y] for z, y in zip(rows.live, rows.targets, strict=True)]


def _reference(rows: Rows) -> list[float]:
    return [stat.probabilities(z)[y] for z, y in zip(rows.reference, rows.targets, strict=True)]


def _anchored(rows: Rows, weights: list[float], lambda_kl: float, direction: str) -> Loss:
    value, slopes = DIVERGENCES[direction]
    losses, gradient = weighted(rows, weights)
    for t, pair in enumerate(zip(rows.live, rows.reference, strict=True)):
        losses[t] += lambda_kl * value(*pair)
        gradient[t] = [own + lambda_kl * slope for own, slope in zip(gradient[t], slopes(*pair), strict=True)]
    return losses, gradient


def _kl_sft(rows: Rows, lambda_kl: float = 0.1, direction: str = "forward") -> Loss:
    return _anchored(rows, [1.0 for _ in rows.targets], lambda_kl, direction)


def _asft(rows: Rows, lambda_kl: float = 0.1, direction: str = "forward") -> Loss:
    return _anchored(rows, _live(rows), lambda_kl, direction)


def _gift(rows: Rows, beta: float = 20.0) -> Loss:
    """The cross-entropy to the raised distribution, summed over the vocabulary."""
    losses, gradient = [], []
    for live, reference, target in zip(rows.live, rows.reference, rows.targets, strict=True):
        raised = [logq + beta * (v == target) for v, logq in enumerate(stat.log_probabilities(reference))]
        wanted = stat.probabilities(raised)
        losses.append(-math.fsum(w * logp for w, logp in zip(wanted, stat.log_probabilities(live), strict=True)))
        gradient.append([p - w for p, w in zip(stat.probabilities(live), wanted, strict=True)])
    return losses, gradient


KEPT: dict[str, Callable[[float, float, float], bool]] = {
    "higher": lambda p, low, high: p >= low,
    "lower": lambda p, low, high: p <= low,
    "middle": lambda p, low, high: low <= p <= high,
}


def _profit(rows: Rows, keep: str = "higher", threshold: float = 0.1, upper: float = math.inf) -> Loss:
    return weighted(rows, [float(KEPT[keep](p, threshold, upper)) for p in _live(rows)])


def _p_alpha(rows: Rows, alpha: float = 1.0, keep: str = "all", threshold: float = 0.0) -> Loss:
    trained = {"all": lambda p: True, "top": lambda p: p >= threshold, "bottom": lambda p: p <= threshold}[keep]
    losses, gradient = [], []
    for logits, target, p in zip(rows.live, rows.targets, _live(rows), strict=True):
        value, slope = ((1 - p**alpha) / alpha, -(p ** (alpha - 1))) if alpha else (-math.log(p), -1 / p)
        along = [p * part for part in stat.logprob_gradient(logits, target)]
        losses.append(value if trained(p) else 0.0)
        gradient.append([slope * part if trained(p) else 0.0 for part in along])
    return losses, gradient


def _iw_sft(rows: Rows, per: str = "sequence", temperature: float = 1.0, cap: float = 16.0, clip: float = 0.8) -> Loss:
    ratios = [p / q for p, q in zip(_live(rows), _reference(rows), strict=True)]
    if per == "token":
        return weighted(rows, [min(max(ratio, 1 - clip), 1 + clip) for ratio in ratios])
    weights = [0.0] * len(ratios)
    for members in sequences(rows.sequence):
        geometric = math.prod(ratios[t] for t in members) ** (1 / len(members))
        for t in members:
            weights[t] = min(cap, geometric**temperature)
    return weighted(rows, weights)


def _srft(rows: Rows) -> Loss:
    weights = [0.0] * len(rows.targets)
    for members in sequences(rows.sequence):
        entropy = math.fsum(stat.entropy(rows.live[t]) for t in members) / len(members)
        for t in members:
            weights[t] = 0.5 * math.exp(-entropy)
    return weighted(rows, weights)


def _rift(rows: Rows, right: float = 1.0, wrong: float = -0.2) -> Loss:
    weights = []
    for p, reward in zip(_live(rows), rows.reward, strict=True):
        value = right * reward + wrong * (1 - reward)
        weights.append(value if value >= 0 else value * p)
    return weighted(rows, weights)


def _hpt(rows: Rows, gate: float = 0, imitation: float = 1.0) -> Loss:
    weights = [0.0] * len(rows.targets)
    for group in sorted(set(rows.group)):
        answers = [one for one in sequences(rows.sequence) if rows.group[one[0]] == group]
        own = [one for one in answers if rows.origin[one[0]] == 2]
        rewards = [rows.reward[one[0]] for one in own]
        failed = sum(reward == 1 for reward in rewards) <= gate
        spread = statistics.stdev(rewards) + 1e-6 if len(rewards) > 1 else 1.0
        middle = statistics.fmean(rewards) if len(rewards) > 1 else 0.0
        for one in answers:
            for t in one:
                if one in own:
                    weights[t] = 0.0 if failed else (rows.reward[t] - middle) / spread
                else:
                    weights[t] = imitation if failed else 0.0
    return weighted(rows, weights)


def _chord_phi(rows: Rows) -> Loss:
    return weighted(rows, [p * (1 - p) for p in _live(rows)])


def _luffy(rows: Rows, gamma: float = 0.1) -> Loss:
    """Own answers by the advantage alone; the others by A·f'(p)·p with f' by the rule for quotients."""
    weights = []
    for p, advantage, origin in zip(_live(rows), rows.advantage, rows.origin, strict=True):
        slope = ((p + gamma) - p) / (p + gamma) ** 2
        weights.append(advantage if origin == 2 else advantage * slope * p)
    return weighted(rows, weights)


PUBLISHED: dict[str, Callable[..., Loss]] = {
    "asft": _asft,
    "chord-phi": _chord_phi,
    "gift": _gift,
    "hpt": _hpt,
    "iw-sft": _iw_sft,
    "kl-sft": _kl_sft,
    "luffy": _luffy,
    "p-alpha": _p_alpha,
    "profit": _profit,
    "rift": _rift,
    "srft": _srft,
}
