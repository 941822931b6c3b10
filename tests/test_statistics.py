"""Statistics by registration: against naive float64 sums, through every way of the head, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from ballast import BallastError, token_stats
from ballast.head import fused_loss, two_phase
from ballast.objectives import Objective
from ballast.reference import CacheKey
from ballast.statistics import Statistic, find, is_differentiable, is_live, is_pair, mixture, names, tempered, top
from ballast.stats import REFERENCE_FIELDS
from head_inputs import SETTINGS, inputs, leaves
from oracles import statistics as stat

FIELDS = (
    "top_entropy@1", "top_entropy@3", "top_entropy@7", "top_mass@1", "top_mass@4", "top_mass@7",
    "tempered_ce@0.7", "tempered_ce@1", "tempered_ce@3", "tempered_gap@0.7", "tempered_gap@2",
    "skew_kl@0", "skew_kl@0.3", "skew_kl@0.9",
)  # fmt: skip
SLOPED = tuple(filter(is_differentiable, FIELDS))


def naive(field: str, live: list[float], reference: list[float], target: int) -> float:
    """The statistic of one token, summed one vocabulary entry after the other."""
    name, _, text = field.partition("@")
    p, q, number = stat.probabilities(live), stat.probabilities(reference), float(text)
    best = sorted(p, reverse=True)[: int(number)]
    r = stat.probabilities([z / number for z in live]) if number else p
    gap = [math.log(one) - math.log(p[target]) for one in p]
    mixed = [number * a + (1 - number) * b for a, b in zip(p, q, strict=True)]
    return {
        "top_entropy": lambda: -math.fsum(one / sum(best) * math.log(one / sum(best)) for one in best),
        "top_mass": lambda: math.fsum(best),
        "tempered_ce": lambda: -math.fsum(a * math.log(b) for a, b in zip(r, p, strict=True)),
        "tempered_gap": lambda: math.fsum(a / (1 + math.exp(-0.01 * g)) * g for a, g in zip(r, gap, strict=True)),
        "skew_kl": lambda: math.fsum(a * math.log(a / b) for a, b in zip(p, mixed, strict=True)),
    }[name]()


def computed(fields=FIELDS, backend="chunked", made=None, **options):
    states, head, targets, reference = made or inputs(**options)
    stats = token_stats(states, head, targets, fields=fields, reference=reference, backend=backend, chunk=2)
    return stats, leaves(states, head)


def check_values(field: str, setting: dict, backend: str) -> None:
    states, head, targets, reference = inputs(**setting)
    found = computed((field,), backend, (states, head, targets, reference))[0].require(field)
    live, ref = head.logits(states).tolist(), reference[1].logits(reference[0]).tolist()
    rows = zip(live, ref, targets.tolist(), strict=True)
    expected = torch.tensor([naive(field, *row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-12)


def check_gradient(field: str, setting: dict) -> None:
    """The chunked gradient against autograd through the formula."""
    made = inputs(**setting)
    upstream = torch.linspace(-1, 2, 5, dtype=torch.float64)
    found = []
    for backend in ("dense", "chunked"):
        stats, by = computed((field,), backend, made)
        found.append(torch.autograd.grad((stats.require(field) * upstream).sum(), by))
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("setting", list(SETTINGS.values()), ids=list(SETTINGS))
@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.parametrize("field", FIELDS)
def test_values_are_those_of_the_formulas(field, backend, setting):
    check_values(field, setting, backend)


@pytest.mark.parametrize("setting", list(SETTINGS.values()), ids=list(SETTINGS))
@pytest.mark.parametrize("field", SLOPED)
def test_gradients_are_those_of_the_formulas(field, setting):
    check_gradient(field, setting)


@pytest.mark.parametrize("field", ["tempered_ce@0.7", "tempered_gap@0.7"])
def test_no_gradient_goes_into_the_tempered_distribution(field):
    """With r held fixed the derivative is that of finite differences, with r moving along it is another."""
    live, target, step = [0.3, -1.0, 2.0, 0.1], 2, 1e-6
    r = stat.probabilities([z / 0.7 for z in live])

    def value(logits):
        gap = [a - b for a, b in zip(stat.log_probabilities(logits), [logits[target]] * 4, strict=True)]
        gap = [a - stat.log_probabilities(logits)[target] for a in stat.log_probabilities(logits)]
        fixed = [a - stat.log_probabilities(live)[target] for a in stat.log_probabilities(live)]
        if field.startswith("tempered_ce"):
            return -math.fsum(a * b for a, b in zip(r, stat.log_probabilities(logits), strict=True))
        return math.fsum(a / (1 + math.exp(-0.01 * f)) * g for a, f, g in zip(r, fixed, gap, strict=True))

    logits = torch.tensor([live], dtype=torch.float64, requires_grad=True)
    found = token_stats(logits, torch.eye(4, dtype=torch.float64), torch.tensor([target]), fields=(field,))
    (slopes,) = torch.autograd.grad(found.require(field).sum(), logits)
    for place in range(4):
        up, down = ([z + (by if v == place else 0) for v, z in enumerate(live)] for by in (step, -step))
        assert (value(up) - value(down)) / (2 * step) == pytest.approx(slopes[0, place].item(), abs=1e-8)


@dataclass(frozen=True)
class ReadsAll(Objective):
    """Reads every statistic by registration, and has a gradient by each that has one."""

    name = "reads-all"
    source = "these tests"

    @property
    def needs(self):
        return ("logprob", "entropy", *FIELDS)

    def weight(self, stats):
        return stats.require("top_entropy@3") + stats.require("top_mass@4")

    def extra(self, stats):
        terms = [(place + 1) * stats.require(name) for place, name in enumerate(SLOPED)]
        return 0.1 * sum(terms) - 0.2 * stats.require("entropy")


@pytest.mark.parametrize("setting", list(SETTINGS.values()), ids=list(SETTINGS))
@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_one_pass_and_two_phases_are_the_ordinary_way(chunk, setting):
    built, made = ReadsAll(), inputs(**setting)
    states, head, targets, reference = made
    stats, by = computed(built.needs, "dense", made)
    loss = built.per_token_loss(stats).mean()
    expected = torch.autograd.grad(loss, by)
    fused = fused_loss(states, head, targets, built, reference=reference, chunk=chunk)
    again = two_phase(
        states, head, targets, built.per_token_loss, fields=built.needs, reference=reference, chunk=chunk
    ).loss
    for other in (fused, again):
        torch.testing.assert_close(other.detach(), loss.detach(), rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(torch.autograd.grad(other, by), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("field", ["top_entropy@20", "top_mass@20"])
def test_one_that_needs_no_gradient_leaves_the_others_as_they_are(field):
    """Asked for beside the log-probability and the entropy, it changes neither these nor their gradient."""

    class Plain(Objective):
        name, source = "plain", "these tests"

    class Beside(Plain):
        needs = ("logprob", field)

        def weight(self, stats):
            return 1 + 0 * stats.require(field).detach()

    made = inputs(rows=9, hidden=8, vocab=300, dtype=torch.float32)
    found = [fused_loss(*made[:3], built(), chunk=4) for built in (Plain, Beside)]
    for plain, beside in zip(*(torch.autograd.grad(loss, leaves(*made[:2])) for loss in found), strict=True):
        torch.testing.assert_close(plain, beside, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("field", FIELDS)
def test_float32_errs_in_the_sixth_digit_at_most(field):
    made = inputs(rows=40, hidden=32, vocab=3000, dtype=torch.float32)
    exact = tuple(
        part.double() if isinstance(part, torch.Tensor) and part.is_floating_point() else part for part in made
    )
    states, head, targets, (ref, ref_head) = exact
    wide = type(head)(head.weight.double()), type(ref_head)(ref_head.weight.double())
    field = field.replace("@7", "@20")
    found = computed((field,), made=made)[0].require(field).double()
    expected = computed((field,), "dense", (states, wide[0], targets, (ref.double(), wide[1])))[0].require(field)
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_larger_vocabulary_is_left_out_of_what_is_compared():
    states, head, targets, reference = inputs(vocab=9, ref_vocab=7)
    field = "skew_kl@0.3"
    stats = token_stats(states, head, targets, fields=(field,), reference=reference, vocab_size=7, backend="chunked")
    narrow = type(head)(head.weight[:7])
    expected = token_stats(states, narrow, targets, fields=(field,), reference=reference, backend="dense")
    torch.testing.assert_close(stats.require(field), expected.require(field))
    ours, theirs = (torch.autograd.grad(one.require(field).sum(), leaves(states, head)) for one in (stats, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_tokens_of_probability_0_add_nothing():
    logits = torch.tensor([[0.0, -400.0, 1.0, -500.0]], requires_grad=True)
    reference = torch.tensor([[-400.0, 0.0, 1.0, -300.0]]), torch.eye(4)
    for field in FIELDS:
        if field.endswith("@7"):
            continue
        target = torch.tensor([2])
        found = token_stats(logits, torch.eye(4), target, fields=(field,), reference=reference, backend="chunked")
        value = found.require(field)
        assert torch.isfinite(value).all(), field
        if is_differentiable(field):
            assert torch.isfinite(torch.autograd.grad(value.sum(), logits)[0]).all(), field


def test_relations():
    stats, _ = computed(("entropy", "kl", "top_entropy@7", "top_mass@7", "tempered_ce@1", "skew_kl@0", "skew_kl@0.999"))
    for one, other in (("top_entropy@7", "entropy"), ("tempered_ce@1", "entropy"), ("skew_kl@0", "kl")):
        torch.testing.assert_close(stats.require(one), stats.require(other))
    torch.testing.assert_close(stats.require("top_mass@7"), torch.ones(5, dtype=torch.float64))
    assert stats.require("skew_kl@0.999").max() < 1e-2


def test_what_the_fields_are():
    assert set(names()) == {field.partition("@")[0] for field in FIELDS}
    assert [find(field).parameter for field in ("top_mass@4", "skew_kl@0.3")] == [4, 0.3]
    assert find("entropy") is None
    assert [is_live("top_mass@4"), is_pair("top_mass@4"), is_pair("skew_kl@0")] == [True, False, True]
    for name in names():
        assert type(find(f"{name}@{1 if name != 'skew_kl' else 0}")).__doc__ != Statistic.__doc__


def test_no_statistic_is_in_a_cache_key():
    assert CacheKey("a", "float32", "b").fields == REFERENCE_FIELDS
    assert not any("@" in name for name in REFERENCE_FIELDS)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("top_entropi@20", "no statistic; did you mean 'top_entropy'"),
        ("top_entropy@", "'' is no number; write top_entropy@NUMBER"),
        ("top_entropy@0", r"must lie in \[1, ∞\]"),
        ("top_mass@2.5", "must be a whole number; got 2.5"),
        ("tempered_ce@0", r"must lie in \[0.01, ∞\]"),
        ("skew_kl@1", r"must lie in \[0, 0.999\]"),
        ("skew_kl@nan", "must be finite; got nan"),
        ("top_mass@nan", "must be finite; got nan"),
        ("top_mass@inf", "must be finite; got inf"),
        ("tempered_ce@inf", "must be finite; got inf"),
        ("top_mass@8", "exceeds the vocabulary of 7 tokens"),
    ],
)
def test_refused_in_one_line(field, message):
    with pytest.raises(BallastError, match=message) as caught:
        computed((field,))
    assert "\n" not in str(caught.value)


def _forget_to_normalise(self, logp, targets, logq):
    best = logp.topk(int(self.parameter)).values
    return -(best.exp() * best).sum(-1)


MUTANTS = {
    "entropy without normalising": (top.TopEntropy, "fold", _forget_to_normalise),
    "smallest for largest": (
        top.TopMass, "fold",
        lambda self, logp, targets, logq: logp.sort().values[:, : int(self.parameter)].exp().sum(1)
    ),
    "the logarithm of the mass": (
        top.TopMass, "fold", lambda self, logp, targets, logq: logp.topk(int(self.parameter)).values.logsumexp(-1)
    ),
    "temperature turned round": (
        tempered.TemperedCrossEntropy, "fold",
        lambda self, logp, targets, logq: -((logp * self.parameter).softmax(-1) * logp).sum(-1),
    ),
    "entropy of the tempered": (
        tempered.TemperedCrossEntropy, "fold",
        lambda self, logp, targets, logq: torch.distributions.Categorical(logits=logp / self.parameter).entropy(),
    ),
    "slope into the tempered": (
        tempered.TemperedCrossEntropy, "gradient",
        lambda self, logp, targets, logq, value: logp.exp() - logp.exp() * (logp / self.parameter).softmax(-1),
    ),
    "slope turned round": (
        tempered.TemperedCrossEntropy, "gradient",
        lambda self, logp, targets, logq, value: (logp / self.parameter).softmax(-1) - logp.exp(),
    ),
    "target forgotten": (
        tempered.TemperedGap, "gradient",
        lambda self, logp, targets, logq, value: self._weights(logp - logp.gather(1, targets[:, None])),
    ),
    "mixture of logarithms": (
        mixture.SkewKL, "fold",
        lambda self, logp, targets, logq: (logp.exp() * (1 - self.parameter) * (logp - logq)).sum(-1),
    ),
    "shares exchanged": (
        mixture.SkewKL, "fold",
        lambda self, logp, targets, logq: (
            logp.exp() * (logp - ((1 - self.parameter) * logp.exp() + self.parameter * logq.exp()).log())
        ).sum(-1),
    ),
    "mixture held fixed": (
        mixture.SkewKL, "gradient",
        lambda self, logp, targets, logq, value: logp.exp() * (self._log_ratio(logp, logq) - value[:, None]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("cls", "method", "wrong"), list(MUTANTS.values()), ids=list(MUTANTS))
def test_the_checks_notice(monkeypatch, cls, method, wrong):
    monkeypatch.setattr(cls, method, wrong)
    field = {"top_entropy": "top_entropy@3", "top_mass": "top_mass@4", "skew_kl": "skew_kl@0.3"}.get(
        cls.name, f"{cls.name}@0.7"
    )
    with pytest.raises(AssertionError):
        check_values(field, {}, "chunked") if method == "fold" else check_gradient(field, {})
