"""What IRFT is beside SFT: laws by enumeration over every answer of a small policy, each seen to fail on a mutant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from torch import Tensor

from ballast import TokenStats, objective

V, LENGTH, BETA = 4, 2, 0.3
ANSWERS = list(product(range(V), repeat=LENGTH))
GOLD = (1, 2)
EXPERT, TEACHER, OWN = 0.0, 1.0, 2.0
SCALE = {"sigmoid": BETA / 2, "hinge": BETA, "none": BETA}
FIRST = {"sigmoid": math.log(2), "hinge": 1.0, "none": 0.0}

PerToken = Callable[[TokenStats], Tensor]
Change = Callable[[str, float], PerToken]


@dataclass(frozen=True)
class Policy:
    """A table of logits for the first token, and for the second given the first."""

    first: Tensor
    second: Tensor

    @classmethod
    def random(cls, seed: int) -> Policy:
        draw = torch.Generator().manual_seed(seed)
        shapes = ((V,), (V, V))
        return cls(*(torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes))

    def logprobs(self, answer: tuple[int, ...]) -> Tensor:
        return torch.stack([self.first.log_softmax(-1)[answer[0]], self.second[answer[0]].log_softmax(-1)[answer[1]]])

    def probability(self, answer: tuple[int, ...]) -> float:
        return float(self.logprobs(answer).sum().exp())

    def gradient(self, value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, (self.first, self.second), allow_unused=True, materialize_grads=True)
        return torch.cat([one.flatten() for one in found])


def built(link: str, beta: float = BETA) -> PerToken:
    return objective("irft", link=link, beta=beta).per_token_loss


def pair(loss: PerToken, model: Policy, reference: Policy, *own: tuple[int, ...], given: tuple = (GOLD,)) -> Tensor:
    """Return the loss of one group: the given answers, the expert's first, and some own ones."""
    answers = [*given, *own]
    origins = [EXPERT, *[TEACHER] * (len(given) - 1), *[OWN] * len(own)]

    def per_token(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(LENGTH)

    stats = TokenStats(
        logprob=torch.cat([model.logprobs(one) for one in answers]),
        ref_logprob=torch.cat([reference.logprobs(one) for one in answers]).detach(),
        origin=per_token(origins),
        group=per_token([7.0] * len(answers)),
        sequence=per_token([float(place) for place in range(len(answers))]).long(),
    )
    return loss(stats).sum()


def expected(loss: PerToken, model: Policy, reference: Policy, sampler: Policy) -> tuple[float, Tensor]:
    """Return the loss averaged over own answers of `sampler`, and its gradient."""
    value = sum(sampler.probability(own) * pair(loss, model, reference, own) for own in ANSWERS)
    return float(value), model.gradient(value)


def sft(model: Policy) -> Tensor:
    """Return the gradient of the demonstration's negative log-likelihood, summed over its tokens."""
    return model.gradient(-model.logprobs(GOLD).sum())


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def first_step_value(make: Change, link: str) -> None:
    """L1: with p = q every pair has the same loss: log 2, 1 or 0."""
    policy = Policy.random(0)
    for own in ANSWERS:
        assert float(pair(make(link, BETA), policy, policy, own)) == pytest.approx(FIRST[link], abs=1e-12)


def first_step_gradient(make: Change, link: str) -> None:
    """L2: there, averaged over own answers, the gradient is that of summed SFT times beta/2, or beta."""
    policy = Policy.random(0)
    close(expected(make(link, BETA), policy, policy, policy)[1], SCALE[link] * sft(policy))


def on_policy_without_link(make: Change, link: str) -> None:
    """L3: own answers of the current model and no link: SFT's gradient times beta, whatever the reference."""
    model, reference = Policy.random(1), Policy.random(2)
    close(expected(make("none", BETA), model, reference, model)[1], BETA * sft(model))


def stale_answers(make: Change, link: str) -> None:
    """L4: with answers of an older model the gradient is SFT's plus beta·E_old ∇log p, which is not 0."""
    model, old = Policy.random(1), Policy.random(2)
    _, gradient = expected(make("none", BETA), model, old, old)
    drift = model.gradient(sum(old.probability(own) * model.logprobs(own).sum() for own in ANSWERS))
    close(gradient, BETA * (sft(model) + drift))
    assert (gradient - BETA * sft(model)).abs().max() > 1e-2


def equal_answers(make: Change, link: str) -> None:
    """L5: an own answer that is the demonstration moves nothing."""
    model, reference = Policy.random(1), Policy.random(2)
    value = pair(make(link, BETA), model, reference, GOLD)
    assert float(value) == pytest.approx(FIRST[link], abs=1e-12)
    assert model.gradient(value).abs().max() < 1e-15


def without_own(make: Change, link: str) -> None:
    """L8: no link, beta 1, and an own answer that does not change: summed SFT up to a constant."""
    model, reference, still = Policy.random(1), Policy.random(2), (0, 0)
    value = pair(make("none", 1.0), model, reference, still)
    wanted = -model.logprobs(GOLD).sum() + model.logprobs(still).sum()
    wanted = wanted + reference.logprobs(GOLD).sum() - reference.logprobs(still).sum()
    assert float(value) == pytest.approx(float(wanted), abs=1e-12)


def copies(make: Change, link: str) -> None:
    """L9: several own answers are a mean over pairs, so copies of one count as one; so are several given ones."""
    model, reference = Policy.random(1), Policy.random(2)
    loss = make(link, BETA)
    one, other = (0, 3), (2, 2)
    single = pair(loss, model, reference, one)
    close(pair(loss, model, reference, one, one, one), single)
    close(pair(loss, model, reference, one, other), (single + pair(loss, model, reference, other)) / 2)
    with_teacher = pair(loss, model, reference, one, given=(GOLD, (3, 3)))
    close(with_teacher, (single + pair(loss, model, reference, one, given=((3, 3),))) / 2)


LAWS = {
    law.__name__: law
    for law in (
        first_step_value,
        first_step_gradient,
        on_policy_without_link,
        stale_answers,
        equal_answers,
        without_own,
        copies,
    )
}


@pytest.mark.parametrize("link", list(FIRST))
@pytest.mark.parametrize("law", list(LAWS))
def test_law(law, link):
    LAWS[law](built, link)


def _with(**changes: Callable[[TokenStats], Tensor]) -> Change:
    def make(link: str, beta: float) -> PerToken:
        return lambda stats: built(link, beta)(
            replace(stats, **{name: change(stats) for name, change in changes.items()})
        )

    return make


def _apart(link: str, beta: float) -> PerToken:
    """Each answer through the link by itself, as a classifier of demonstrations and own answers would."""

    def loss(stats: TokenStats) -> Tensor:
        sign = torch.where(stats.origin == OWN, -1.0, 1.0)
        ratio = stats.logprob - stats.ref_logprob
        return -(beta * sign * ratio).sigmoid().log() / 2

    return loss


MUTANTS: dict[str, tuple[str, Change]] = {
    "no reference": ("first_step_value", _with(ref_logprob=lambda stats: 0 * stats.ref_logprob)),
    "a mean over tokens": (
        "first_step_gradient",
        lambda link, beta: built(link, beta / LENGTH),
    ),
    "a link after all": ("on_policy_without_link", lambda link, beta: built("sigmoid", 2 * beta)),
    "demonstrations alone": (
        "stale_answers",
        _with(logprob=lambda stats: torch.where(stats.origin == OWN, stats.logprob.detach(), stats.logprob)),
    ),
    "each answer by itself": ("equal_answers", _apart),
    "beta left out": ("first_step_gradient", lambda link, beta: built(link, 1.0)),
    "pushed apart twice": ("without_own", lambda link, beta: built(link, 2 * beta)),
    "a sum over pairs": (
        "copies",
        lambda link, beta: lambda stats: built(link, beta)(stats) * (stats.origin == OWN).sum() / LENGTH,
    ),
    "teachers as own answers": (
        "copies",
        _with(origin=lambda stats: torch.where(stats.origin == TEACHER, OWN, stats.origin)),
    ),
}


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_the_law_fails_on(mutant):
    law, make = MUTANTS[mutant]
    with pytest.raises(AssertionError):
        _hold(LAWS[law], make)


def _hold(law, make: Change) -> None:
    for link in FIRST:
        law(make, link)


def test_every_law_has_failed():
    assert {law for law, _ in MUTANTS.values()} == set(LAWS)


@pytest.mark.parametrize("link", list(FIRST))
def test_weights_are_bounded_by_beta_and_have_the_losses_gradient(link):
    """L7: +w on demonstrations and −w on own answers, w = beta·σ(−m) with the sigmoid link."""
    model, reference = Policy.random(1), Policy.random(2)
    irft = objective("irft", link=link, beta=BETA)
    weights, slopes = [], []

    def watched(stats: TokenStats) -> Tensor:
        weights.append(irft.weight(stats).detach())
        (slope,) = torch.autograd.grad(irft.per_token_loss(stats).sum(), stats.logprob, retain_graph=True)
        slopes.append(slope)
        return irft.per_token_loss(stats)

    pair(watched, model, reference, (0, 3))
    pair(watched, model, reference, (0, 3), (2, 2))
    for weight, slope in zip(weights, slopes, strict=True):
        close(weight, -slope)
        assert weight.abs().max() <= BETA
    margin = BETA * float(
        sum(sign * (model.logprobs(y) - reference.logprobs(y)).sum() for sign, y in ((1, GOLD), (-1, (0, 3))))
    )
    wanted = {"sigmoid": BETA / (1 + math.exp(margin)), "hinge": BETA * (margin < 1), "none": BETA}[link]
    close(weights[0], torch.tensor([wanted] * 2 + [-wanted] * 2, dtype=torch.float64))


def test_it_reports_margins_and_which_answers_are_preferred():
    model, reference = Policy.random(1), Policy.random(2)
    irft, found = objective("irft", beta=BETA), []
    pair(lambda stats: found.append(irft.report(stats)) or stats.logprob, model, reference, (0, 3), (2, 2))
    ratios = {y: float((model.logprobs(y) - reference.logprobs(y)).sum()) for y in (GOLD, (0, 3), (2, 2))}
    margins = [BETA * (ratios[GOLD] - ratios[y]) for y in ((0, 3), (2, 2))]
    assert found[0]["margin"].tolist() == pytest.approx([sum(margins) / 2] * 6)
    assert found[0]["preferred"].tolist() == [sum(margin > 0 for margin in margins) / 2] * 6


def test_a_group_without_a_pair_moves_nothing():
    policy = Policy.random(1)
    value = pair(built("sigmoid"), policy, Policy.random(2))
    assert float(value) == 0
    assert policy.gradient(value).abs().max() == 0
