"""What the formulas are written with: losses that are a weight times the negative log-likelihood, and sequences."""

from __future__ import annotations

from oracles import statistics as stat
from oracles.rows import Rows

Loss = tuple[list[float], list[list[float]]]
"""The per-token losses ``[N]`` and the gradient ``[N][V]`` of their sum by the live logits."""


def weighted(rows: Rows, weights: list[float]) -> Loss:
    losses, gradient = [], []
    for logits, target, weight in zip(rows.live, rows.targets, weights, strict=True):
        losses.append(-weight * stat.logprob(logits, target))
        gradient.append([-weight * slope for slope in stat.logprob_gradient(logits, target)])
    return losses, gradient


def sequences(sequence: list[int]) -> list[list[int]]:
    return [[t for t, other in enumerate(sequence) if other == index] for index in sorted(set(sequence))]
