"""Statistics of one position from its logits (a list of floats), and their gradients by the logits."""

from __future__ import annotations

import math

Row = list[float]


def log_probabilities(logits: Row) -> Row:
    top = max(logits)
    normaliser = top + math.log(math.fsum(math.exp(z - top) for z in logits))
    return [z - normaliser for z in logits]


def probabilities(logits: Row) -> Row:
    return [math.exp(value) for value in log_probabilities(logits)]


def logprob(logits: Row, target: int) -> float:
    return log_probabilities(logits)[target]


def logprob_gradient(logits: Row, target: int) -> Row:
    return [(1.0 if v == target else 0.0) - p for v, p in enumerate(probabilities(logits))]


def entropy(logits: Row) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities(logits) if p > 0)


def entropy_gradient(logits: Row) -> Row:
    total = entropy(logits)
    return [-p * (math.log(p) + total) if p > 0 else 0.0 for p in probabilities(logits)]


def collision(logits: Row) -> float:
    return math.fsum(p * p for p in probabilities(logits))


def collision_gradient(logits: Row) -> Row:
    total = collision(logits)
    return [2 * p * (p - total) for p in probabilities(logits)]


def kl(live: Row, reference: Row) -> float:
    """KL(p‖q): the live distribution is the one averaged over."""
    pairs = zip(log_probabilities(live), log_probabilities(reference), strict=True)
    return math.fsum(math.exp(logp) * (logp - logq) for logp, logq in pairs if math.exp(logp) > 0)


def kl_gradient(live: Row, reference: Row) -> Row:
    total = kl(live, reference)
    pairs = zip(log_probabilities(live), log_probabilities(reference), strict=True)
    return [math.exp(logp) * (logp - logq - total) if math.exp(logp) > 0 else 0.0 for logp, logq in pairs]


def released_penalty(live: Row, reference: Row) -> float:
    """What EKSFT's authors compute for the KL: the probability stands where its logarithm was meant."""
    return math.fsum(p * (p - logq) for p, logq in zip(probabilities(live), log_probabilities(reference), strict=True))


def released_penalty_gradient(live: Row, reference: Row) -> Row:
    pairs = list(zip(probabilities(live), log_probabilities(reference), strict=True))
    mean = math.fsum(p * (2 * p - logq) for p, logq in pairs)
    return [p * (2 * p - logq - mean) for p, logq in pairs]


def kl_forward(live: Row, reference: Row) -> float:
    """KL(q‖p): the reference's distribution is the one averaged over."""
    return kl(reference, live)


def kl_forward_gradient(live: Row, reference: Row) -> Row:
    return [p - q for p, q in zip(probabilities(live), probabilities(reference), strict=True)]


def mass_strict(logits: Row, target: int) -> float:
    """Released PriFT code: all tokens strictly less likely than the target, and the target."""
    p = probabilities(logits)
    return math.fsum(p[v] for v in range(len(p)) if logits[v] < logits[target] or v == target)


def mass_inclusive(logits: Row, target: int) -> float:
    """PriFT's README: all tokens at most as likely as the target."""
    p = probabilities(logits)
    return math.fsum(p[v] for v in range(len(p)) if logits[v] <= logits[target])
