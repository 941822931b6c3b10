"""Objectives against naive float64 formulas, from logits to loss and gradient."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast import list_objectives
from oracles import statistics as stat
from oracles.cases import CASES, IDS
from oracles.check import check_against_oracle
from oracles.losses import ORACLES, loss
from oracles.rows import random_rows, with_turns


def test_every_objective_has_an_oracle_and_cases():
    names = {info.name for info in list_objectives()}
    assert names == set(ORACLES) == {name for name, _ in CASES}


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_loss_and_gradient_equal_the_oracle(name, options, backend):
    check_against_oracle(name, options, backend=backend, chunk=4)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_loss_and_gradient_equal_the_oracle_on_rows_of_several_turns(name, options):
    check_against_oracle(name, options, rows=with_turns(random_rows()))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    # Of two tokens that tie each has a mass of exactly 1/2, and rounding decides whether it reaches the threshold.
    vocab=st.integers(3, 9),
    case=st.sampled_from(CASES),
)
def test_loss_and_gradient_equal_the_oracle_in_any_layout(seed, lengths, vocab, case):
    name, options = case
    check_against_oracle(name, options, rows=random_rows(seed, tuple(lengths), vocab))


def _difference(function, logits, index, step=1e-5):
    up, down = list(logits), list(logits)
    up[index] += step
    down[index] -= step
    return (function(up) - function(down)) / (2 * step)


def test_oracle_gradients_are_the_derivatives_of_oracle_values():
    rows = random_rows(3, (4,), 5)
    for live, reference, target in zip(rows.live, rows.reference, rows.targets, strict=True):
        pairs = [
            (lambda z, y=target: stat.logprob(z, y), stat.logprob_gradient(live, target)),
            (stat.entropy, stat.entropy_gradient(live)),
            (stat.collision, stat.collision_gradient(live)),
            (lambda z, q=reference: stat.released_penalty(z, q), stat.released_penalty_gradient(live, reference)),
            (lambda z, q=reference: stat.kl(z, q), stat.kl_gradient(live, reference)),
            (lambda z, q=reference: stat.kl_forward(z, q), stat.kl_forward_gradient(live, reference)),
        ]
        for function, gradient in pairs:
            for index, slope in enumerate(gradient):
                assert _difference(function, live, index) == pytest.approx(slope, abs=1e-8)


def test_the_oracle_of_eksft_keeps_the_weight_of_each_sequence():
    rows = random_rows(1, (10,), 5)
    plain, _ = loss("sft", rows)
    spared, _ = loss("eksft", rows, lambda_h=0, lambda_kl=0)
    kept = [t for t, value in enumerate(spared) if value != 0]
    assert len(kept) < 10
    assert sum(spared) == pytest.approx(10 * sum(plain[t] for t in kept) / len(kept))
