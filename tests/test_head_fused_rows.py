"""Rows that turn out to have no gradient, known only from the loss itself, are left out of the gradient's products."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ballast import fused_loss, objective
from ballast.head import two_phase
from ballast.head.folds import Scratch, packed
from head_inputs import SETTINGS, inputs
from head_meter import Meter
from head_objectives import Anchored, assert_same, gradients, ordinary

VOCAB, HIDDEN = 131, 2


@dataclass(frozen=True)
class Gated(Anchored):
    """The loss of some tokens; of all but those without `ref_mass` the head learns it from the loss alone.

    By kind the loss is the likelihood's, that of `Anchored`, or the likelihood's of some tokens and the entropy's of
    others.
    """

    kind: str = "likelihood"

    @property
    def needs(self):
        needs = {"anchored": super().needs, "apart": ("logprob", "entropy", "ref_mass")}
        return (*needs.get(self.kind, ("logprob", "ref_mass")), "advantage")

    def active(self, columns):
        known = columns["ref_mass"] != 0
        return None if known.all() else known

    def per_token_loss(self, stats):
        gate = stats.require("advantage") * (stats.require("ref_mass") != 0)
        if self.kind == "anchored":
            return super().per_token_loss(stats) * gate
        loss = -stats.require("logprob") * gate
        return loss if self.kind == "likelihood" else loss.where(gate > 0, stats.require("entropy") * gate)


every_kind = pytest.mark.parametrize("kind", ["likelihood", "anchored", "apart"])


def _columns(kept, known=None, dtype=torch.float64):
    # Weights that differ, so that a token in another's place is seen.
    weights = [(place + 0.5) * (-1) ** place if keep else 0.0 for place, keep in enumerate(kept)]
    known = torch.ones(len(kept)) if known is None else torch.tensor(known)
    return {"advantage": torch.tensor(weights, dtype=dtype), "ref_mass": known.to(dtype)}


def _gradient_rows(kept, chunk, built=None):
    states, head, targets, reference = inputs(len(kept), HIDDEN, VOCAB, dtype=torch.float32)
    columns = _columns(kept, dtype=torch.float32)
    with Meter(VOCAB) as meter:
        loss = fused_loss(
            states, head, targets, built or Gated(), columns=columns, reference=reference, chunk=chunk, denominator=1
        )
    loss.backward()
    return [rows for rows, inner, columns in meter.products if (inner, columns) == (VOCAB, HIDDEN)]


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.lists(st.tuples(st.booleans(), st.sampled_from([True, True, False])), max_size=14),
    chunk=st.none() | st.integers(1, 15),
    case=st.sampled_from(list(SETTINGS.values())),
    kind=st.sampled_from(["likelihood", "anchored", "apart"]),
    seed=st.integers(0, 99),
)
@example([(True, True), (False, True), (False, False)] * 4, 3, {}, "likelihood", 0)
@example([(True, True), (False, True)] * 6, 3, {}, "apart", 0)
def test_loss_and_gradient_are_those_of_full_logits(tokens, chunk, case, kind, seed):
    given_inputs = inputs(len(tokens), 3, 11, seed=seed, **case)
    states, head, targets, reference = given_inputs
    built, columns = Gated(kind=kind), _columns([kept for kept, _ in tokens], [known for _, known in tokens])
    loss = fused_loss(states, head, targets, built, columns=columns, reference=reference, chunk=chunk)
    expected = ordinary(given_inputs, built.per_token_loss, built.needs, columns)
    assert_same((loss, gradients(loss, states, head)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 30])
@every_kind
def test_the_same_where_rows_are_moved_in_blocks(monkeypatch, blocks, kind):
    import ballast.head.folds as folds

    monkeypatch.setattr(folds, "CPU_BLOCK_LOGITS", blocks)
    kept = [False, True, True, False, False, True, False, True, True]
    given_inputs = inputs(len(kept), 3, 11, bias=True)
    states, head, targets, reference = given_inputs
    built, columns = Gated(kind=kind), _columns(kept)
    loss = fused_loss(states, head, targets, built, columns=columns, reference=reference, chunk=len(kept))
    expected = ordinary(given_inputs, built.per_token_loss, built.needs, columns)
    assert_same((loss, gradients(loss, states, head)), expected, rtol=1e-10, atol=1e-12)


def test_rows_are_moved_to_the_front_in_order():
    for order in ([], [4], [0, 1, 2], [1, 3, 4], [0, 2, 4]):
        rows = torch.arange(10.0).reshape(5, 2)
        expected = rows[order].clone()
        assert torch.equal(packed(rows, torch.tensor(order, dtype=torch.long), Scratch()), expected)


@every_kind
def test_products_of_the_gradient_have_the_rows_with_gradient(kind):
    built = Gated(kind=kind)
    some = [True, False] * 8
    assert _gradient_rows(some, 16, built) == [8]
    assert _gradient_rows(some, 8, built) == [4, 4]
    assert _gradient_rows([True] * 8 + [False] * 8, 8, built) == [8]
    assert _gradient_rows([False] * 16, 8, built) == []


def test_a_few_rows_without_gradient_are_not_worth_moving_the_others():
    assert _gradient_rows([True] * 15 + [False], 16) == [16]
    assert _gradient_rows([True] * 14 + [False] * 2, 16) == [14]


def test_a_gate_of_the_live_model_spares_its_dropped_tokens():
    states, head, targets, _ = inputs(16, HIDDEN, VOCAB, dtype=torch.float32)
    built = objective("reweight", rule="mass", signal="live")
    with Meter(VOCAB) as meter:
        fused_loss(states, head, targets, built, chunk=16)
    projected, *formed = [rows for rows, *sizes in meter.products if VOCAB in sizes]
    assert projected == 16
    assert 0 < formed[0] <= 14


def test_rows_are_left_out_of_the_second_phase_too():
    states, head, targets, _ = inputs(8, HIDDEN, VOCAB, dtype=torch.float32)
    with Meter(VOCAB) as meter:
        two_phase(states, head, targets, lambda stats: -stats.logprob * torch.tensor([1.0, 0.0] * 4))
    assert [rows for rows, inner, columns in meter.products if (inner, columns) == (VOCAB, HIDDEN)] == [4]
