"""Tokens exactly at a threshold: kept or dropped as the objective's page says, the same with skipping as without."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ballast import TokenStats, objective
from ballast.head import fused_pass
from ballast.objectives import Objective
from head_inputs import inputs
from head_objectives import assert_same, gradients
from oracles.cases import CASES

BELOW, AT, ABOVE = -1, 0, 1
SIDES = (BELOW, AT, ABOVE, AT, BELOW, ABOVE)


@dataclass(frozen=True)
class Gate:
    """An objective, the columns that its gate reads with their values at the threshold, and the sides that it keeps.

    The first column moves to a side of the threshold: by `step`, or to the next number that its dtype has.
    """

    built: Objective
    at: dict[str, float]
    keeps: tuple[int, ...]
    step: float | None = None
    beside: tuple[str, ...] = ()
    """Columns that the weight reads and the gate does not."""

    def columns(self, sides, dtype):
        moved, *others = self.at
        values = {moved: torch.stack([self._beside(self.at[moved], side, dtype) for side in sides])}
        return values | {name: torch.full((len(sides),), self.at[name], dtype=dtype) for name in others}

    def _beside(self, value, side, dtype):
        exact = torch.tensor(value, dtype=dtype)
        if self.step is not None:
            return exact + side * self.step
        return torch.nextafter(exact, exact.new_tensor(side * math.inf)) if side else exact

    def read(self, sides, dtype):
        """Return all columns that the objective reads."""
        return self.columns(sides, dtype) | {name: torch.zeros(len(sides), dtype=dtype) for name in self.beside}

    def kept(self, sides):
        return torch.tensor([side in self.keeps for side in sides])


def _reweight(rule, signal="reference", **options):
    return objective("reweight", rule=rule, signal=signal, **options)


GATES = {
    "mass": Gate(objective("prift-mass", threshold=0.7), {"ref_mass": 0.7}, (AT, ABOVE)),
    "mass of half": Gate(objective("prift-mass"), {"ref_mass": 0.5}, (AT, ABOVE)),
    "all of the mass": Gate(objective("prift-mass", threshold=1), {"ref_mass": 1.0}, (AT, ABOVE)),
    # The sum of two has other neighbours than they have.
    "mass with ties": Gate(
        objective("prift-mass", threshold=0.75, ties="inclusive"),
        {"ref_mass": 0.5, "ref_tied": 0.25},
        (AT, ABOVE),
        step=1e-3,
    ),
    "ties with mass": Gate(
        objective("prift-mass", ties="inclusive"), {"ref_tied": 0.25, "ref_mass": 0.25}, (AT, ABOVE), step=1e-3
    ),
    "mass by rule": Gate(_reweight("mass", threshold=0.3), {"ref_mass": 0.3}, (AT, ABOVE)),
    # Neighbours among log-probabilities can have the same probability.
    "probability": Gate(_reweight("threshold", threshold=1), {"ref_logprob": 0.0}, (AT, ABOVE), step=1e-3),
    "entropy": Gate(_reweight("entropy", max_entropy=1.1), {"ref_entropy": 1.1}, (BELOW, AT)),
    "no entropy": Gate(_reweight("entropy", max_entropy=0), {"ref_entropy": 0.0}, (BELOW, AT)),
    "advantage": Gate(objective("gft"), {"advantage": 0.0}, (BELOW, ABOVE)),
    "advantage beside an origin": Gate(objective("luffy"), {"advantage": 0.0}, (BELOW, ABOVE), beside=("origin",)),
    "mass in a product": Gate(objective("product", of=["dft", "prift-mass"]), {"ref_mass": 0.5}, (AT, ABOVE)),
    "advantage, never bounded": Gate(objective("gft", tau=0), {"advantage": 0.0}, (BELOW, ABOVE), step=1e-3),
}
every_gate = pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def _kind(built):
    return built.name, getattr(built, "rule", None)


def test_every_objective_that_skips_tokens_has_a_gate_here():
    columns = {name: torch.full((3,), 0.4) for gate in GATES.values() for name in gate.at}
    every = [objective(name, **options) for name, options in CASES]
    skipping = {_kind(built) for built in every if built.active(columns) is not None}
    assert skipping == {_kind(gate.built) for gate in GATES.values()}


@every_gate
def test_without_all_columns_of_the_gate_nothing_is_known(gate):
    columns = gate.columns(SIDES, torch.float64)
    for name in columns:
        assert gate.built.active({other: column for other, column in columns.items() if other != name}) is None


@every_gate
@every_dtype
@settings(max_examples=10, deadline=None)
@given(live=st.lists(st.floats(-1e4, 0) | st.just(0.0) | st.just(-1e-30), min_size=len(SIDES), max_size=len(SIDES)))
def test_a_dropped_token_has_no_weight_whatever_the_live_model_says(gate, dtype, live):
    columns, kept = gate.read(SIDES, dtype), gate.kept(SIDES)
    assert torch.equal(gate.built.active(columns), kept)
    logprob = torch.tensor(live, dtype=dtype, requires_grad=True)
    stats = TokenStats(logprob=logprob, **columns)
    losses = gate.built.per_token_loss(stats)
    (slope,) = torch.autograd.grad(losses.sum(), logprob)
    assert (gate.built.weight(stats)[~kept] == 0).all()
    assert (losses[~kept] == 0).all()
    assert (slope[~kept] == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    gate=st.sampled_from(list(GATES.values())),
    sides=st.lists(st.sampled_from((BELOW, AT, ABOVE)), max_size=9),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    chunk=st.none() | st.integers(1, 9),
    # Of steep logits most tokens are certain or impossible.
    steep=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 99),
)
@example(GATES["mass"], [AT] * 4, torch.float32, 3, 1.0, 0)
@example(GATES["advantage"], [AT] * 4, torch.float32, 3, 1.0, 0)
def test_skipping_changes_neither_loss_nor_gradient(gate, sides, dtype, chunk, steep, seed):
    states, head, targets, _ = inputs(len(sides), seed=seed, dtype=dtype, bias=True)
    with torch.no_grad():
        states.mul_(steep)
    columns = gate.read(sides, dtype) if sides else {name: states.new_empty(0) for name in (*gate.at, *gate.beside)}
    kept = gate.kept(sides) if sides else torch.zeros(0, dtype=torch.bool)
    skipped, whole = (
        fused_pass(states, head, targets, gate.built, columns=columns, chunk=chunk, whole=whole)
        for whole in (False, True)
    )
    assert torch.equal(skipped.computed, kept)
    assert len(skipped.stats.logprob) == kept.sum()
    ours, theirs = ((formed.loss, gradients(formed.loss, states, head)) for formed in (skipped, whole))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    assert_same(ours, (theirs[0].detach(), theirs[1]), **tolerance)
    for _, (by_states, *_) in (ours, theirs):
        assert (by_states[~kept] == 0).all()


@every_dtype
def test_a_gate_of_the_live_model_keeps_its_threshold_too(dtype):
    values = {"mass": 0.7, "entropy": 1.1}
    for rule, option, expected in (("mass", "threshold", [0, 1, 1]), ("entropy", "max_entropy", [1, 1, 0])):
        gate = Gate(_reweight(rule, "live", **{option: values[rule]}), {rule: values[rule]}, ())
        stats = TokenStats(logprob=torch.zeros(3, dtype=dtype), **gate.columns((BELOW, AT, ABOVE), dtype))
        assert gate.built.weight(stats).tolist() == expected


@every_dtype
def test_a_probability_exactly_at_the_bound(dtype):
    logprob = torch.tensor([-1.1, -1.0, -0.9], dtype=dtype)
    p = logprob.exp()
    stats = TokenStats(logprob=logprob, advantage=torch.ones(3, dtype=dtype))
    assert _reweight("threshold", "live", threshold=p[1].item()).weight(stats).tolist() == [0, 1, 1]
    bounded = objective("gft", tau=p[1].item())
    assert bounded.weight(stats).tolist() == [p[0].item(), 1, 1]
    assert bounded.report(stats)["rectified"].tolist() == [1, 0, 0]
