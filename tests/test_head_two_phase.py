"""Losses of wider scope: the two-phase pass gives the loss and gradient of full logits, and projects little twice."""

import pytest
import torch

from ballast import objective, token_stats
from ballast.head import two_phase
from head_inputs import SETTINGS, inputs, leaves
from head_meter import Meter
from head_objectives import Anchored, assert_same, columns_of, gradients, ordinary
from oracles.cases import CASES, IDS

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def _layout(targets):
    place = torch.arange(len(targets))
    return {"sequence": place // 4, "position": place % 4}


def _columns(built, targets):
    return _layout(targets) | columns_of(built, targets)


def _two_phase(given_inputs, per_token_loss, fields, columns, upstream=1.0, **options):
    states, head, targets, reference = given_inputs
    formed = two_phase(
        states, head, targets, per_token_loss, fields=fields, columns=columns, reference=reference, **options
    )
    assert formed.computed is None
    return formed.loss, gradients(formed.loss * upstream, states, head)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
@pytest.mark.parametrize("chunk", [1, 3, 11, None])
def test_every_objective_equals_full_logits(name, options, chunk):
    built = objective(name, **options)
    given_inputs = inputs(11, bias=True)
    columns = _columns(built, given_inputs[2])
    fields = tuple(field for field in built.needs if field not in columns)
    options = {"denominator": 9, "chunk": chunk, "declared": built.columns}
    ours = _two_phase(given_inputs, built.per_token_loss, fields, columns, upstream=-1.5, **options)
    expected = ordinary(given_inputs, built.per_token_loss, built.needs, columns, denominator=9, upstream=-1.5)
    assert_same(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("case", list(SETTINGS.values()), ids=list(SETTINGS))
@pytest.mark.parametrize("chunk", [3, None])
def test_every_kind_of_head_equals_full_logits(case, chunk):
    given_inputs = inputs(8, vocab=9, ref_vocab=8, **case)
    built = Anchored()
    options = {"chunk": chunk, "vocab_size": 7}
    ours = _two_phase(given_inputs, built.per_token_loss, built.needs, {}, **options)
    assert_same(ours, ordinary(given_inputs, built.per_token_loss, built.needs, {}, vocab_size=7), **TOLERANCE)


@pytest.mark.parametrize("chunk", [2, None])
def test_statistics_are_returned(chunk):
    states, head, targets, reference = inputs(7)
    built, columns = objective("eksft"), _layout(targets)
    formed = two_phase(
        states, head, targets, built.per_token_loss, fields=built.needs, columns=columns, reference=reference,
        chunk=chunk,
    )  # fmt: skip
    expected = token_stats(states, head, targets, fields=built.needs, reference=reference, backend="dense")
    for name in built.needs:
        assert not getattr(formed.stats, name).requires_grad
        torch.testing.assert_close(getattr(formed.stats, name), getattr(expected, name).detach(), **TOLERANCE)
    assert torch.equal(formed.stats.sequence, columns["sequence"])


def test_a_column_stands_for_a_field_of_the_same_name():
    states, head, targets, reference = inputs(6)
    given = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    formed = two_phase(
        states, head, targets, objective("prift-prob").per_token_loss, fields=("logprob", "ref_logprob"),
        columns={"ref_logprob": given}, reference=reference,
    )  # fmt: skip
    assert torch.equal(formed.stats.ref_logprob, given)
    torch.testing.assert_close(formed.loss.detach(), -(formed.stats.logprob * given.exp()).mean())


VOCAB, HIDDEN = 131, 2


def _metered(per_token_loss, fields, chunk, rows=8):
    # The reference's hidden size is one more, which tells its products from the model's.
    states, head, targets, reference = inputs(rows, HIDDEN, VOCAB, dtype=torch.float32)
    with Meter(VOCAB) as meter:
        formed = two_phase(states, head, targets, per_token_loss, fields=fields, reference=reference, chunk=chunk)
        formed.loss.backward()
    kinds = {(inner, columns): 0 for _, inner, columns in meter.products}
    for rows_, inner, columns in meter.products:
        kinds[inner, columns] += rows_
    return meter, kinds


def _some(stats):
    """Tokens 0–3 without loss, 4–5 by their log-prob, 6 by its entropy, 7 by its KL."""
    place = torch.arange(8)
    losses = -stats.require("logprob") * ((place == 4) | (place == 5))
    return losses + stats.require("entropy") * (place == 6) + stats.require("kl") * (place == 7)


FIELDS = ("logprob", "entropy", "kl")


def test_only_tokens_with_gradient_are_projected_again_and_only_those_with_a_kl_under_the_reference():
    meter, kinds = _metered(_some, FIELDS, chunk=2)
    assert kinds[HIDDEN, VOCAB] == 8 + 4
    assert kinds[HIDDEN + 1, VOCAB] == 8 + 1
    assert kinds[VOCAB, HIDDEN] == 4
    assert meter.largest == max(2 * VOCAB, VOCAB * HIDDEN)
    # Two tiles of 2 rows (model and reference) and two temporaries of such size: the first tiles are gone by then.
    assert meter.peak <= 5 * 2 * VOCAB * 4


def test_one_tile_is_projected_once():
    _, kinds = _metered(_some, FIELDS, chunk=None)
    assert kinds[HIDDEN, VOCAB] == kinds[HIDDEN + 1, VOCAB] == 8
    assert kinds[VOCAB, HIDDEN] == 4


@pytest.mark.parametrize("chunk", [2, None])
def test_selected_tokens_equal_full_logits(chunk):
    given_inputs = inputs(8, bias=True)
    ours = _two_phase(given_inputs, _some, FIELDS, {}, chunk=chunk)
    assert_same(ours, ordinary(given_inputs, _some, FIELDS, {}), **TOLERANCE)


def test_without_gradient_one_projection_and_the_same_loss():
    states, head, targets, reference = inputs(8, HIDDEN, VOCAB)
    expected = two_phase(states, head, targets, _some, fields=FIELDS, reference=reference, chunk=3).loss
    with torch.no_grad(), Meter(VOCAB) as meter:
        loss = two_phase(states, head, targets, _some, fields=FIELDS, reference=reference, chunk=3).loss
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-14, atol=0)
    assert len(meter.products) == 2 * 3
    with torch.inference_mode():
        inferred = two_phase(states * 1, head, targets, _some, fields=FIELDS, reference=reference, chunk=3).loss
    assert inferred == loss


@pytest.mark.parametrize("rows", [0, 6])
@pytest.mark.parametrize("chunk", [2, None])
def test_no_tokens_or_no_loss_give_zero_gradients(rows, chunk):
    states, head, targets, reference = inputs(rows, bias=True)
    formed = two_phase(
        states, head, targets, lambda stats: 0 * stats.logprob, fields=FIELDS, reference=reference, chunk=chunk
    )
    assert formed.loss.item() == 0
    for leaf, gradient in zip(leaves(states, head), gradients(formed.loss, states, head), strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.abs().sum() == 0


def test_under_autocast():
    states, head, targets, reference = inputs(9, 5, 13, dtype=torch.float32, bias=True)
    built, columns = objective("eksft"), _layout(targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = _two_phase((states, head, targets, reference), built.per_token_loss, built.needs, columns, chunk=9)
        stats = token_stats(states, head, targets, fields=built.needs, reference=reference, backend="chunked", chunk=9)
    expected = built.per_token_loss(stats.changed(columns)).mean()
    torch.testing.assert_close(ours[0], expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(ours[1], gradients(expected, states, head), strict=True):
        assert (mine - theirs).abs().max() < 0.02 * theirs.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": ("advantage",)}, "'advantage' comes from the rows"),
        ({"fields": ("kl",)}, "'kl' needs `reference`"),
        ({"columns": {"entropy": torch.zeros(5)}}, "'entropy' follows from the live model"),
        ({"columns": {"sequence": torch.zeros(4)}}, r"'sequence' is \[4\]"),
        ({"denominator": -1}, "expected a positive finite number"),
        ({"chunk": 0}, "chunk must be at least 1 row"),
    ],
)
def test_refused(options, message):
    states, head, targets, _ = inputs()
    with pytest.raises(ValueError, match=message):
        two_phase(states, head, targets, objective("sft").per_token_loss, **options)
