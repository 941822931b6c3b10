"""Objectives that are the same thing under two names, and the arithmetic of selection."""

import math
from fractions import Fraction

import pytest
import torch

from ballast import TokenStats, objective, token_stats
from oracles.rows import random_rows, statistics_of

SAME = {
    "deft with exponent 0": (("deft", {"exponent": "fixed", "alpha": 0}), ("sft", {})),
    "deft with exponent 1": (("deft", {"exponent": "fixed", "alpha": 1}), ("dft", {})),
    "eaft without exponent": (("eaft", {"k": 3, "alpha": 0}), ("sft", {})),
    "idft with exponent 0": (("idft", {"low": 0, "high": 0}), ("sft", {})),
    "idft with exponent 1": (("idft", {"low": 1, "high": 1}), ("dft", {})),
    "idft in its warm-up": (("idft", {"warmup": 1}), ("dft", {})),
    "pear without ratios": (("pear", {"low": 0, "high": 0, "gamma": 1}), ("sft", {})),
    "pear without ratios, by the sequence": (("pear", {"by": "sequence", "low": 0, "high": 0}), ("sft", {})),
    "pear in blocks of 1": (("pear", {"by": "block", "block": 1}), ("pear", {})),
    "sed-sft without pull": (("sed-sft", {"strength": 0}), ("sft", {})),
    "sed-sft where nothing is open": (("sed-sft", {"threshold": 0}), ("sft", {})),
    "tail-sft without a share": (("tail-sft", {"fraction": 0}), ("sft", {})),
    "talr with floor 1": (("talr", {"floor": 1}), ("sft", {})),
    "asft without its KL": (("asft", {"lambda_kl": 0}), ("dft", {})),
    "kl-sft without its KL": (("kl-sft", {"lambda_kl": 0}), ("sft", {})),
    "gift, raised without end": (("gift", {"beta": 1000}), ("sft", {})),
    "iw-sft at temperature 0": (("iw-sft", {"temperature": 0}), ("sft", {})),
    "iw-sft clipped to 1": (("iw-sft", {"per": "token", "clip": 0}), ("sft", {})),
    "p-alpha at 0": (("p-alpha", {"alpha": 0}), ("sft", {})),
    "p-alpha from 0": (("p-alpha", {"alpha": 0, "keep": "top", "threshold": 0}), ("sft", {})),
    "p-alpha at 0 from below": (
        ("p-alpha", {"alpha": 0, "keep": "bottom", "threshold": 0.2}),
        ("profit", {"keep": "lower", "threshold": 0.2}),
    ),
    "p-alpha at 0 from above": (
        ("p-alpha", {"alpha": 0, "keep": "top", "threshold": 0.2}),
        ("profit", {"threshold": 0.2}),
    ),
    "profit of all": (("profit", {"threshold": 0}), ("sft", {})),
    "profit up to 1": (("profit", {"keep": "lower", "threshold": 1}), ("sft", {})),
    "profit between 0 and 1": (("profit", {"keep": "middle", "threshold": 0, "upper": 1}), ("sft", {})),
    "profit": (("profit", {}), ("reweight", {"rule": "threshold", "signal": "live", "threshold": 0.1})),
    "a gate twice": (("product", {"of": ["prift-mass", "prift-mass"]}), ("prift-mass", {})),
    "eksft without selection": (("eksft", {"rho": 0}), ("sft", {})),
    "eksft without selection, any λ": (("eksft", {"rho": 0, "lambda_h": 3, "lambda_kl": 7}), ("sft", {})),
    "eksft without selection or λ": (("eksft", {"rho": 0, "lambda_h": 0, "lambda_kl": 0}), ("sft", {})),
    "eksft over the batch without selection": (("eksft", {"rho": 0, "scope": "batch"}), ("sft", {})),
    "mass 0": (("prift-mass", {"threshold": 0}), ("sft", {})),
    "mass 0 inclusive": (("prift-mass", {"threshold": 0, "ties": "inclusive"}), ("sft", {})),
    "power 0": (("reweight", {"rule": "power", "alpha": 0}), ("sft", {})),
    "live power 0": (("reweight", {"rule": "power", "alpha": 0, "signal": "live"}), ("sft", {})),
    "threshold 0": (("reweight", {"rule": "threshold", "threshold": 0}), ("sft", {})),
    "no entropy gate": (("reweight", {"rule": "entropy", "max_entropy": 1e9}), ("sft", {})),
    "power 1": (("reweight", {"rule": "power", "alpha": 1}), ("prift-prob", {})),
    "live power 1": (("reweight", {"rule": "power", "alpha": 1, "signal": "live"}), ("dft", {})),
    "live probability": (("reweight", {"rule": "probability", "signal": "live"}), ("dft", {})),
    "reference probability": (("reweight", {}), ("prift-prob", {})),
    "reference mass": (("reweight", {"rule": "mass"}), ("prift-mass", {})),
    "reference mass with options": (
        ("reweight", {"rule": "mass", "threshold": 0.7, "ties": "inclusive"}),
        ("prift-mass", {"threshold": 0.7, "ties": "inclusive"}),
    ),
}


@pytest.mark.parametrize(("one", "other"), list(SAME.values()), ids=list(SAME))
def test_the_same_loss_and_gradient(one, other):
    results = []
    for name, options in (one, other):
        stats, logits = statistics_of(random_rows())
        losses = objective(name, **options).per_token_loss(stats)
        results.append((losses, *torch.autograd.grad(losses.sum(), logits)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_a_free_psft_has_the_gradient_of_sft_where_nothing_has_moved():
    stats, logits = statistics_of(random_rows())
    fresh = stats.changed({"old_logprob": stats.logprob.detach()})
    slopes = [
        torch.autograd.grad(objective(name, **options).per_token_loss(fresh).sum(), logits, retain_graph=True)[0]
        for name, options in (("psft", {"clip": 1e9}), ("psft", {"clip": 0}), ("sft", {}))
    ]
    torch.testing.assert_close(slopes[0], slopes[2])
    torch.testing.assert_close(slopes[1], slopes[2])


def test_gem_is_sft_less_a_cross_entropy_to_itself_and_vanishes_where_the_tempered_model_is_right():
    stats, _ = statistics_of(random_rows())
    gap = objective("gem").per_token_loss(stats) - objective("sft").per_token_loss(stats)
    torch.testing.assert_close(gap, -stats.require("tempered_ce@0.7"))
    logits = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True, dtype=torch.float64)
    found = token_stats(
        logits, torch.eye(3, dtype=torch.float64), torch.tensor([1]), fields=("logprob", "tempered_ce@1.0")
    )
    slopes = [
        torch.autograd.grad(objective(name, **options).per_token_loss(found).sum(), logits, retain_graph=True)[0]
        for name, options in (("gem", {"beta": 1.0}), ("sft", {}))
    ]
    torch.testing.assert_close(*slopes)
    sure = torch.tensor([[30.0, 0.0, 0.0]], requires_grad=True, dtype=torch.float64)
    found = token_stats(sure, torch.eye(3, dtype=torch.float64), torch.tensor([0]), fields=objective("gem").needs)
    (slope,) = torch.autograd.grad(objective("gem").per_token_loss(found).sum(), sure)
    assert slope.abs().max() < 1e-12


def _eksft_stats(entropy, kl, **layout):
    count = len(entropy)
    return TokenStats(
        logprob=-torch.arange(1, count + 1, dtype=torch.float64),
        entropy=torch.tensor(entropy, dtype=torch.float64),
        kl=torch.tensor(kl, dtype=torch.float64),
        **layout,
    )


@pytest.mark.parametrize("extreme", ["largest", "smallest"])
@pytest.mark.parametrize("residue", [0.0, 1e-7, -1e-9])
def test_before_the_model_has_moved_nothing_is_selected_by_kl(extreme, residue):
    stats = _eksft_stats([0.1 * i for i in range(10)], [residue] * 10)
    by_entropy, by_kl, spared = objective("eksft", extreme=extreme).selections(stats)
    assert not by_kl.any()
    assert torch.equal(spared, by_entropy)
    assert objective("eksft", select="intersection", extreme=extreme).weight(stats).tolist() == [1.0] * 10


def test_a_token_that_has_moved_is_selected_by_kl():
    stats = _eksft_stats([0.0] * 10, [0.0] * 4 + [2e-6] + [0.0] * 5)
    _, by_kl, _ = objective("eksft").selections(stats)
    assert by_kl.nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("rho", [0.1, 0.2, 0.29, 0.3, 0.7, 1, 1 / 3, 0.57, 0.58])
def test_k_is_the_floor_of_the_share(rho):
    for count in [*range(1, 31), 50, 100, 1000]:
        stats = _eksft_stats([float(i) for i in range(count)], [float(i) for i in range(1, count + 1)])
        by_entropy, by_kl, _ = objective("eksft", rho=rho).selections(stats)
        exact = Fraction(1, 3) if rho == 1 / 3 else Fraction(str(rho))
        assert by_entropy.sum() == by_kl.sum() == math.floor(exact * count), count
        assert by_entropy.nonzero().flatten().tolist() == list(range(count - int(by_entropy.sum()), count))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_fewer_than_five_tokens_are_plain_imitation(count):
    stats = _eksft_stats([1.0] * count, [1.0] * count)
    losses = objective("eksft").per_token_loss(stats)
    assert torch.equal(losses, -stats.logprob)


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_everything_spared_is_finite_and_regularises_alone(scope):
    stats, logits = statistics_of(random_rows())
    losses = objective("eksft", rho=1, scope=scope).per_token_loss(stats)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
    assert objective("eksft", rho=1, scope=scope).weight(stats).sum() == 0
    assert objective("eksft", rho=1, scope=scope, lambda_h=0, lambda_kl=0).per_token_loss(stats).abs().sum() == 0


@pytest.mark.parametrize("rho", [0, 0.1, 0.2, 0.45])
@pytest.mark.parametrize("select", ["union", "intersection"])
def test_each_sequence_keeps_its_weight(rho, select):
    stats, _ = statistics_of(random_rows())
    weight = objective("eksft", rho=rho, select=select).weight(stats)
    totals = torch.zeros(4, dtype=torch.float64).index_add_(0, stats.sequence, weight)
    torch.testing.assert_close(totals, torch.tensor([9.0, 3, 11, 17], dtype=torch.float64))
    whole = objective("eksft", rho=rho, select=select, scope="batch").weight(stats)
    torch.testing.assert_close(whole.sum().item(), 40.0)


def test_the_regularisers_are_means_that_keep_the_weight_of_the_sequence():
    stats, _ = statistics_of(random_rows(lengths=(10,)))
    built = objective("eksft", rho=0.3, lambda_h=0.5, lambda_kl=2)
    by_entropy, by_kl, _ = built.selections(stats)
    expected = 2 * stats.kl[by_kl].mean() - 0.5 * stats.entropy[by_entropy].mean()
    torch.testing.assert_close(built.extra(stats).sum() / 10, expected)


def test_equal_scores_are_selected_by_position():
    layout = {"position": torch.tensor([4, 2, 0, 3, 1]), "sequence": torch.zeros(5, dtype=torch.long)}
    stats = _eksft_stats([1.0] * 5, [1.0] * 5, **layout)
    for extreme in ("largest", "smallest"):
        by_entropy, by_kl, _ = objective("eksft", rho=0.4, extreme=extreme).selections(stats)
        assert by_entropy.tolist() == by_kl.tolist() == [False, False, True, False, True]


def test_sequences_are_selected_apart_and_the_batch_together():
    layout = {"sequence": torch.tensor([0] * 5 + [1] * 5), "position": torch.tensor([*range(5)] * 2)}
    stats = _eksft_stats([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0], [0.0] * 10, **layout)
    apart, _, _ = objective("eksft").selections(stats)
    together, _, _ = objective("eksft", scope="batch").selections(stats)
    assert apart.nonzero().flatten().tolist() == [0, 5]
    assert together.nonzero().flatten().tolist() == [0, 1]


def test_the_weight_of_an_interleaved_batch_is_that_of_its_sequences():
    stats, _ = statistics_of(random_rows(lengths=(6, 6)))
    order = torch.arange(12).view(2, 6).T.flatten()
    mixed = stats.take(order)
    built = objective("eksft", rho=0.4)
    assert torch.equal(built.per_token_loss(mixed), built.per_token_loss(stats)[order])


def test_the_mass_rules_disagree_on_tied_tokens():
    logits = torch.tensor([[0.3, 0.3, 0.3, 0.1]], dtype=torch.float64).log()
    from ballast import token_stats

    eye, target = torch.eye(4, dtype=torch.float64), torch.tensor([0])
    fields = ("logprob", "ref_mass", "ref_tied")
    stats = token_stats(logits, eye, target, fields=fields, reference=(logits, eye))
    assert objective("prift-mass").weight(stats).item() == 0
    assert objective("prift-mass", ties="inclusive").weight(stats).item() == 1
    assert objective("prift-mass", ties="inclusive", threshold=1).weight(stats).item() == 1
