"""Oracles of objectives that read more than a token's own statistics: top-k, tempered, progress, a policy's column."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from oracles import statistics as stat
from oracles.rows import PROGRESS, Rows
from oracles.token_loss import Loss, sequences, weighted


def _live(rows: Rows) -> list[float]:
    return [stat.probabilities(z)[y] for z, y in zip(rows.live, rows.targets, strict=True)]


def _eaft(rows: Rows, alpha: float = 1.0, k: int = 20, scale: float = 3.0) -> Loss:
    weights = []
    for logits in rows.live:
        best = sorted(stat.probabilities(logits), reverse=True)[:k]
        shares = [one / math.fsum(best) for one in best]
        weights.append((-math.fsum(one * math.log(one) for one in shares) / scale) ** alpha)
    return weighted(rows, weights)


def _sed_sft(rows: Rows, strength: float = 1.0, k: int = 2, threshold: float = 0.7) -> Loss:
    losses, gradient = weighted(rows, [1.0 for _ in rows.targets])
    for t, (logits, target) in enumerate(zip(rows.live, rows.targets, strict=True)):
        p = stat.probabilities(logits)
        if math.fsum(sorted(p, reverse=True)[:k]) < threshold:
            own = p[target]
            losses[t] += strength * (own**2 - own + 0.25)
            slope = strength * (2 * own - 1)
            along = [own * one for one in stat.logprob_gradient(logits, target)]
            gradient[t] = [g + slope * one for g, one in zip(gradient[t], along, strict=True)]
    return losses, gradient


def _gem(rows: Rows, beta: float = 0.7, h: str = "linear") -> Loss:
    losses, gradient = [], []
    for logits, target in zip(rows.live, rows.targets, strict=True):
        logp, size = stat.log_probabilities(logits), len(logits)
        r = stat.probabilities([z / beta for z in logits])
        if h == "logsigmoid":
            r = [one / (1 + math.exp(-0.01 * (z - logits[target]))) for one, z in zip(r, logits, strict=True)]
        losses.append(math.fsum(r[v] * (logp[v] - logp[target]) for v in range(size)))
        slopes = [stat.logprob_gradient(logits, v) for v in range(size)]
        gradient.append(
            [math.fsum(r[v] * (slopes[v][u] - slopes[target][u]) for v in range(size)) for u in range(size)]
        )
    return losses, gradient


def _idft(
    rows: Rows,
    beta: float = 1.0,
    low: float = 0.1,
    high: float = 2.0,
    warmup: float = 0.0,
    transition: float = 0.0,
    gradient: str = "detached",
) -> Loss:
    weights, exponents = [], []
    for logits, p in zip(rows.live, _live(rows), strict=True):
        exponent = min(max(math.exp(-(math.log(p) + stat.entropy(logits)) / beta), low), high)
        done = PROGRESS - warmup
        share = (1.0 if done >= 0 else 0.0) if transition == 0 else min(max(done / transition, 0.0), 1.0)
        exponents.append(1 + share * (exponent - 1))
        weights.append(p ** exponents[-1])
    losses, slopes = weighted(rows, weights)
    if gradient == "attached":
        # The derivative of −p^g·log p by log p is −p^g·(1 + g·log p).
        factors = [1 + g * math.log(p) for g, p in zip(exponents, _live(rows), strict=True)]
        slopes = [[factor * one for one in row] for factor, row in zip(factors, slopes, strict=True)]
    return losses, slopes


def _pear(
    rows: Rows,
    by: str = "token",
    block: int = 4,
    gamma: float = 0.999,
    low: float = -0.08,
    high: float = 0.3,
    behaviour: str = "reference",
    column: str = "",
) -> Loss:
    writer = rows.behaviour_logprob
    if behaviour == "reference":
        writer = [stat.logprob(z, y) for z, y in zip(rows.reference, rows.targets, strict=True)]
    delta = [min(max(math.log(p) - b, low), high) for p, b in zip(_live(rows), writer, strict=True)]
    weights = [0.0] * len(delta)
    for members in sequences(rows.sequence):
        ordered = sorted(members, key=lambda t: rows.position[t])
        for place, t in enumerate(ordered):
            size = {"token": 1, "block": block, "sequence": 1}[by]
            later = ordered[(place // size + 1) * size :]
            total = math.fsum(delta[j] for j in later) + len(later) * math.log(gamma)
            if by == "sequence":
                total = math.fsum(delta[j] for j in ordered)
            weights[t] = math.exp(min(max(total, -10.0), 5.0))
    return weighted(rows, weights)


def _tail_sft(rows: Rows, fraction: float = 0.25, schedule: str = "static") -> Loss:
    reference = [stat.logprob(z, y) for z, y in zip(rows.reference, rows.targets, strict=True)]
    moved = [math.log(p) - q for p, q in zip(_live(rows), reference, strict=True)]
    members = sequences(rows.sequence)
    logp = [math.log(p) for p in _live(rows)]
    by_gain = sorted(members, key=lambda one: [-round(statistics.fmean(of[t] for t in one), 4) for of in (moved, logp)])
    share = fraction * (PROGRESS if schedule == "ramp" else 1.0)
    kept = {t for one in by_gain[min(round(share * len(members)), len(members) - 1) :] for t in one}
    return weighted(rows, [len(moved) / len(kept) if t in kept else 0.0 for t in range(len(moved))])


SHAPED: dict[str, Callable[..., Loss]] = {
    "eaft": _eaft,
    "gem": _gem,
    "idft": _idft,
    "pear": _pear,
    "sed-sft": _sed_sft,
    "tail-sft": _tail_sft,
}
