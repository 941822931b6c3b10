"""The fused loss is that of full logits and autograd, whatever the objective, the head and the tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast import fused_loss, list_objectives, objective, token_stats
from ballast.head import LMHead, fused_pass
from head_inputs import FIELDS, SETTINGS, inputs, leaves
from head_objectives import TOKEN_CASES, Anchored, assert_same, columns_of, gradients, ordinary

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
every_objective = pytest.mark.parametrize("built", TOKEN_CASES.values(), ids=TOKEN_CASES)


def _fused(given_inputs, built, columns, upstream=1.0, **options):
    states, head, targets, reference = given_inputs
    loss = fused_loss(states, head, targets, built, columns=columns, reference=reference, **options)
    assert loss.shape == ()
    return loss, gradients(loss * upstream, states, head)


def _assert_same(given_inputs, built, tolerance=TOLERANCE, columns=None, upstream=1.0, **options):
    columns = {**columns_of(built, given_inputs[2], given_inputs[0].dtype), **(columns or {})}
    shared = {name: options[name] for name in ("denominator", "vocab_size") if name in options}
    expected = ordinary(given_inputs, built.per_token_loss, built.needs, columns, upstream=upstream, **shared)
    ours = _fused(given_inputs, built, columns, upstream, **options)
    assert_same(ours, expected, **tolerance)
    return ours


def test_every_objective_of_token_scope_is_among_the_cases():
    names = {info.name for info in list_objectives() if info.scope == "token"}
    assert names <= {built.name for built in TOKEN_CASES.values()}


@every_objective
@pytest.mark.parametrize("chunk", [1, 3, 6, 9, None])
def test_equals_full_logits(built, chunk):
    _assert_same(inputs(6, bias=True), built, chunk=chunk, upstream=-2.5)


@pytest.mark.parametrize("case", list(SETTINGS.values()), ids=list(SETTINGS))
@pytest.mark.parametrize("name", ["sft", "reweight-entropy-live-1.1", "reweight-mass-reference", "anchored"])
@pytest.mark.parametrize("chunk", [2, None])
def test_equals_full_logits_with_every_kind_of_head(case, name, chunk):
    _assert_same(inputs(6, **case), TOKEN_CASES[name], chunk=chunk)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 9),
    hidden=st.integers(1, 4),
    vocab=st.integers(1, 9),
    chunk=st.none() | st.integers(1, 10),
    name=st.sampled_from(sorted(TOKEN_CASES)),
    case=st.sampled_from(list(SETTINGS.values())),
    seed=st.integers(0, 99),
)
def test_equals_full_logits_in_any_shape(rows, hidden, vocab, chunk, name, case, seed):
    built = TOKEN_CASES[name]
    # The likeliest k of fewer tokens are refused.
    least = [int(one.partition("@")[2]) for one in built.needs if one.startswith("top_")]
    _assert_same(inputs(rows, hidden, max([vocab, *least]), seed=seed, **case), built, chunk=chunk)


@pytest.mark.parametrize(("vocab", "ref_vocab", "vocab_size"), [(9, 9, 7), (9, 7, 7), (7, 9, 6), (7, 7, 7)])
@pytest.mark.parametrize("chunk", [2, None])
def test_equals_full_logits_with_padding_rows_in_either_vocabulary(vocab, ref_vocab, vocab_size, chunk):
    _assert_same(inputs(6, vocab=vocab, ref_vocab=ref_vocab, bias=True), Anchored(), chunk=chunk, vocab_size=vocab_size)


@pytest.mark.parametrize("only", ["entropy", "kl", "kl_forward"])
def test_equals_full_logits_where_one_statistic_alone_has_a_gradient(only):
    weights = dict.fromkeys(("entropy", "kl", "kl_forward"), 0.0) | {only: 1.0}
    _assert_same(inputs(6, bias=True), Anchored(**weights), chunk=4)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("name", ["sft", "anchored"])
@pytest.mark.parametrize(("threads", "widths"), [(1, {10, 7}), (2, {20, 17})])
def test_equals_full_logits_where_the_product_goes_in_strips(monkeypatch, softcap, name, threads, widths):
    import ballast.head.projection as projection

    monkeypatch.setattr(projection, "CPU_STRIP", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    given_inputs = inputs(6, vocab=37, dtype=torch.float32, bias=True, softcap=softcap)
    strips = []
    monkeypatch.setattr(torch, "addmm", _spy(torch.addmm, strips))
    _assert_same(given_inputs, TOKEN_CASES[name], {"rtol": 1e-4, "atol": 1e-5}, chunk=4)
    # Besides those of the fused loss there are the whole ones that it is compared with.
    assert {len(bias) for bias in strips} - {37} == widths


def _spy(function, seen):
    def spied(bias, *args, **kwargs):
        seen.append(bias)
        return function(bias, *args, **kwargs)

    return spied


@pytest.mark.parametrize("blocks", [1, 20])
@pytest.mark.parametrize("name", ["sft", "reweight-entropy-live-1.1", "reweight-mass-live-0.6-inclusive", "anchored"])
def test_equals_full_logits_where_passes_go_in_blocks(monkeypatch, blocks, name):
    import ballast.head.folds as folds

    monkeypatch.setattr(folds, "CPU_BLOCK_LOGITS", blocks)
    _assert_same(inputs(8, bias=True, softcap=3.0 if blocks == 1 else None), TOKEN_CASES[name], chunk=5)


@pytest.mark.parametrize("denominator", [7, 0.25, torch.tensor(3), torch.tensor([12.5], dtype=torch.float64)])
def test_divides_by_the_denominator(denominator):
    _assert_same(inputs(6), TOKEN_CASES["dft"], denominator=denominator, chunk=4)


def test_divides_by_the_number_of_tokens_by_default():
    states, head, targets, _ = inputs(6)
    ours = fused_loss(states, head, targets, objective("sft"))
    torch.testing.assert_close(ours, -token_stats(states, head, targets).logprob.mean())


@pytest.mark.parametrize("chunk", [2, None])
def test_cached_columns_stand_for_the_live_reference(chunk):
    given_inputs = inputs(8, bias=True)
    states, head, targets, reference = given_inputs
    fields = ("ref_logprob", "ref_entropy", "ref_mass", "ref_tied")
    cached = token_stats(states, head, targets, fields=fields, reference=reference, backend="dense")
    for built in TOKEN_CASES.values():
        if {"kl", "kl_forward"}.isdisjoint(built.needs):
            columns = {name: getattr(cached, name) for name in fields}
            columns |= columns_of(built, targets)
            without = (*given_inputs[:3], None)
            ours = _fused(without, built, columns, chunk=chunk)
            expected = ordinary(given_inputs, built.per_token_loss, built.needs, columns_of(built, targets))
            assert_same(ours, expected, **TOLERANCE)


def test_columns_come_before_a_live_reference():
    states, head, targets, reference = inputs(6)
    weight = torch.linspace(-3, 0, 6, dtype=torch.float64)
    both = fused_loss(
        states, head, targets, objective("prift-prob"), columns={"ref_logprob": weight}, reference=reference
    )
    torch.testing.assert_close(both, -(token_stats(states, head, targets).logprob * weight.exp()).mean())


@pytest.mark.parametrize("frozen", [("hidden",), ("weight",), ("bias",), ("hidden", "bias"), ("weight", "bias")])
@pytest.mark.parametrize("name", ["sft", "anchored"])
def test_a_frozen_part_gets_no_gradient_and_the_others_theirs(frozen, name):
    given_inputs = inputs(6, bias=True)
    parts = dict(zip(("hidden", "weight", "bias"), leaves(*given_inputs[:2]), strict=True))
    for part in frozen:
        parts[part].requires_grad_(False)
    _assert_same(given_inputs, TOKEN_CASES[name], chunk=4)
    loss = fused_loss(*given_inputs[:3], TOKEN_CASES[name], reference=given_inputs[3])
    loss.backward()
    assert [name for name, part in parts.items() if part.grad is None] == [*frozen]


def test_without_gradient_the_loss_is_the_same_number_alone():
    states, head, targets, reference = inputs(6, bias=True)
    expected = fused_loss(states, head, targets, Anchored(), reference=reference)
    with torch.no_grad():
        ours = fused_loss(states, head, targets, Anchored(), reference=reference)
    frozen = LMHead(head.weight.detach(), head.bias.detach())
    still = fused_loss(states.detach(), frozen, targets, Anchored(), reference=reference)
    with torch.inference_mode():
        inferred = fused_loss(states * 1, head, targets, Anchored(), reference=reference)
    assert inferred == ours
    assert expected.requires_grad
    assert not ours.requires_grad
    assert not still.requires_grad
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(still, expected.detach(), rtol=1e-14, atol=0)


def test_a_statistic_may_be_the_loss_itself_with_and_without_gradient():
    class Certain(type(TOKEN_CASES["entropy"])):
        def per_token_loss(self, stats):
            return stats.require("entropy")

    given_inputs = inputs(6, bias=True)
    loss, _ = _assert_same(given_inputs, Certain(), chunk=4)
    with torch.no_grad():
        assert fused_loss(*given_inputs[:3], Certain(), chunk=4) == loss


def test_a_tied_head_gets_both_gradients():
    draw = torch.Generator().manual_seed(3)
    tied = torch.randn(11, 4, generator=draw, dtype=torch.float64).requires_grad_()
    ids = torch.randint(0, 11, (9,), generator=draw)

    def gradient(function):
        states = torch.tanh(tied[ids])
        return torch.autograd.grad(function(states), tied)[0]

    ours = gradient(lambda states: fused_loss(states, tied, ids.roll(-1), objective("dft"), chunk=4))
    expected = gradient(
        lambda states: objective("dft").per_token_loss(token_stats(states, tied, ids.roll(-1), backend="dense")).mean()
    )
    torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_a_head_given_in_parts_is_the_head_given_whole():
    states, head, targets, _ = inputs(bias=True, softcap=2.0, scale=0.3)
    parts = fused_loss(states, head.weight, targets, objective("sft"), bias=head.bias, softcap=2.0, scale=0.3)
    assert torch.equal(parts, fused_loss(states, head, targets, objective("sft")))


def test_two_calls_accumulate():
    states, head, targets, _ = inputs(8, bias=True)
    whole = gradients(fused_loss(states, head, targets, objective("dft"), chunk=3), states, head)
    for part in (slice(0, 5), slice(5, 8)):
        fused_loss(states[part], head, targets[part], objective("dft"), denominator=8, chunk=3).backward()
    for leaf, expected in zip(leaves(states, head), whole, strict=True):
        torch.testing.assert_close(leaf.grad, expected, **TOLERANCE)


def test_a_sum_of_two_losses_has_the_sum_of_their_gradients():
    states, head, targets, _ = inputs(8)
    losses = [fused_loss(states, head, targets, objective(name), chunk=3) for name in ("sft", "dft")]
    ours = gradients(3 * losses[0] - losses[1], states, head)
    apart = [gradients(fused_loss(states, head, targets, objective(n), chunk=3), states, head) for n in ("sft", "dft")]
    for mine, first, second in zip(ours, *apart, strict=True):
        torch.testing.assert_close(mine, 3 * first - second, **TOLERANCE)


def test_a_second_backward_is_refused():
    states, head, targets, _ = inputs()
    loss = fused_loss(states, head, targets, objective("sft"))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="has handed on its gradient"):
        loss.backward()


def test_a_second_derivative_is_refused():
    states, head, targets, _ = inputs()
    loss = fused_loss(states, head, targets, objective("sft"))
    (slope,) = torch.autograd.grad(loss * loss, states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("name", ["sft", "anchored", "prift-mass"])
def test_no_tokens_give_zero_with_zero_gradients(name):
    ours = _assert_same(inputs(0, bias=True), TOKEN_CASES[name])
    assert ours[0].item() == 0
    assert all(gradient.abs().sum() == 0 for gradient in ours[1])


def test_a_loss_that_depends_on_nothing_has_zero_gradients():
    class Constant(type(objective("sft"))):
        def per_token_loss(self, stats):
            return stats.require("logprob").detach() * 0 + 2.0

    states, head, targets, _ = inputs(6, bias=True)
    loss = fused_loss(states, head, targets, Constant(), chunk=4)
    assert loss.item() == 2
    assert all(gradient.abs().sum() == 0 for gradient in gradients(loss, states, head))


@pytest.mark.parametrize("chunk", [4, None])
def test_the_pass_gives_the_statistics_it_used_and_those_asked_for(chunk):
    states, head, targets, reference = inputs(7, bias=True)
    built = TOKEN_CASES["reweight-mass-live"]
    formed = fused_pass(states, head, targets, built, reference=reference, chunk=chunk, fields=FIELDS)
    expected = token_stats(states, head, targets, fields=FIELDS, reference=reference, backend="dense")
    for name in FIELDS:
        value = getattr(formed.stats, name)
        assert not value.requires_grad
        torch.testing.assert_close(value, getattr(expected, name).detach(), **TOLERANCE)
    assert formed.computed is None
    plain = ordinary((states, head, targets, reference), built.per_token_loss, built.needs, {})
    assert_same((formed.loss, gradients(formed.loss, states, head)), plain, **TOLERANCE)
    few = fused_pass(states, head, targets, built, chunk=chunk).stats
    assert {name for name in FIELDS if getattr(few, name) is not None} == {"logprob", "mass"}


def test_statistics_that_the_objective_does_not_read_do_not_reach_it():
    class Greedy(type(objective("sft"))):
        def extra(self, stats):
            return stats.require("entropy")

    states, head, targets, _ = inputs()
    with pytest.raises(ValueError, match="'entropy' was not computed"):
        fused_pass(states, head, targets, Greedy(), fields=("entropy",))
