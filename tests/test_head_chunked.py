"""The chunked backend gives what the dense one gives, holding one chunk of logits at a time."""

import weakref
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ballast import token_stats
from ballast.head import LMHead
from ballast.stats import DIFFERENTIABLE_FIELDS
from head_inputs import FIELDS, SETTINGS, inputs, leaves
from head_meter import Meter as Products

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def _results(backend, given_inputs, fields, **options):
    """Return the fields and the gradients of a weighted sum of those that have one."""
    states, head, targets, reference = given_inputs
    stats = token_stats(states, head, targets, fields=fields, reference=reference, backend=backend, **options)
    values = {name: getattr(stats, name) for name in FIELDS if getattr(stats, name) is not None}
    assert set(values) == set(fields)
    total = states.sum() * 0
    for place, name in enumerate(DIFFERENTIABLE_FIELDS):
        if name in values:
            weights = torch.arange(1, len(targets) + 1, dtype=states.dtype) * (place + 1) - 2.5
            total = total + (weights * values[name]).sum()
    gradients = torch.autograd.grad(total, leaves(states, head), allow_unused=True)
    return {name: value.detach() for name, value in values.items()}, gradients


def _assert_same(given_inputs, fields, chunk, tolerance=TOLERANCE, **options):
    values, gradients = _results("dense", given_inputs, fields, **options)
    ours, our_gradients = _results("chunked", given_inputs, fields, chunk=chunk, **options)
    for name, value in values.items():
        torch.testing.assert_close(ours[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    for gradient, ours in zip(gradients, our_gradients, strict=True):
        if gradient is not None or ours is not None:
            torch.testing.assert_close(ours, gradient, **tolerance)


@pytest.mark.parametrize("case", list(SETTINGS.values()), ids=list(SETTINGS))
def test_equal_at_every_chunk_size(case):
    rows = 6
    for chunk in range(1, rows + 2):
        _assert_same(inputs(rows, **case), FIELDS, chunk)


def test_equal_with_every_pair_of_fields_and_each_alone():
    given_inputs = inputs(bias=True)
    for size in (1, 2):
        for fields in combinations(FIELDS, size):
            _assert_same(given_inputs, fields, 2)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 9),
    hidden=st.integers(1, 4),
    vocab=st.integers(1, 9),
    chunk=st.integers(1, 10),
    fields=st.lists(st.sampled_from(FIELDS), min_size=1, unique=True).map(tuple),
    case=st.sampled_from(list(SETTINGS.values())),
    seed=st.integers(0, 99),
)
def test_equal_in_any_shape_with_any_fields(rows, hidden, vocab, chunk, fields, case, seed):
    _assert_same(inputs(rows, hidden, vocab, seed=seed, **case), fields, chunk)


@pytest.mark.parametrize(("vocab", "ref_vocab", "vocab_size"), [(9, 9, 7), (9, 7, 7), (7, 9, 6), (7, 7, 7)])
def test_equal_with_padding_rows_in_either_vocabulary(vocab, ref_vocab, vocab_size):
    _assert_same(inputs(6, vocab=vocab, ref_vocab=ref_vocab, bias=True), FIELDS, 4, vocab_size=vocab_size)


def test_the_kl_over_part_of_the_vocabulary_is_that_of_heads_cut_to_it():
    states, head, targets, (ref_states, ref_head) = inputs(vocab=9, ref_vocab=8, bias=True)
    fields = ("kl", "kl_forward")
    padded = token_stats(states, head, targets, fields=fields, reference=(ref_states, ref_head), vocab_size=6)
    cut, ref_cut = (LMHead(whole.weight[:6], whole.bias[:6]) for whole in (head, ref_head))
    expected = token_stats(states, cut, targets.clamp(max=5), fields=fields, reference=(ref_states, ref_cut))
    torch.testing.assert_close(padded.kl, expected.kl)
    torch.testing.assert_close(padded.kl_forward, expected.kl_forward)


def test_equal_with_equal_logits():
    states, head, targets, reference = inputs(40, vocab=11, bias=True)
    with torch.no_grad():
        # Halves multiply exactly, so equal head rows tie in a product of any shape.
        for tensor in (states, head.weight, head.bias):
            tensor.mul_(2).round_().div_(2)
        head.weight[1::2] = head.weight[:-1:2]
        head.bias[1::2] = head.bias[:-1:2]
    assert (token_stats(states, head, targets, fields=("tied",)).tied > 0).float().mean() > 0.8
    _assert_same((states, head, targets, reference), FIELDS, 7)


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_no_rows_give_empty_fields_with_a_graph(backend):
    states, head, targets, reference = inputs(0)
    stats = token_stats(states, head, targets, fields=FIELDS, reference=reference, backend=backend)
    assert all(getattr(stats, name).shape == (0,) for name in FIELDS)
    (stats.logprob.sum() + stats.kl.sum() + stats.entropy.sum()).backward()
    assert head.weight.grad.abs().sum() == 0


class Meter(TorchDispatchMode):
    """Watches every tensor that is created: the largest, and how many vocabulary-wide elements live at once."""

    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.largest, self.alive, self.peak = vocab, 0, 0, 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor):
        self.largest = max(self.largest, tensor.numel())
        storage = tensor.untyped_storage()
        if tensor.dim() < 2 or tensor.shape[-1] != self.vocab or storage.data_ptr() in self.seen:
            return
        self.seen.add(storage.data_ptr())
        self.alive += tensor.numel()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, storage.data_ptr(), tensor.numel())

    def _release(self, pointer, count):
        self.seen.discard(pointer)
        self.alive -= count


def _metered(rows, backend, fields, chunk=4, vocab=131):
    states, head, targets, reference = inputs(rows, 2, vocab, dtype=torch.float32, softcap=5.0, bias=True)
    with Meter(vocab) as meter:
        stats = token_stats(states, head, targets, fields=fields, reference=reference, backend=backend, chunk=chunk)
        sum(getattr(stats, name).sum() for name in fields if name in DIFFERENTIABLE_FIELDS).backward()
    return meter


@pytest.mark.parametrize("fields", [("logprob",), ("logprob", "entropy", "kl", "kl_forward", "mass", "ref_mass")])
def test_never_more_than_one_chunk_of_logits_in_forward_and_backward(fields):
    few, many = _metered(20, "chunked", fields), _metered(80, "chunked", fields)
    assert many.largest == 4 * 131
    assert many.peak == few.peak > 0
    assert _metered(5, "chunked", fields, chunk=50).largest == 5 * 131


def test_the_meter_sees_all_logits_of_the_dense_backend():
    meter = _metered(80, "dense", ("logprob",))
    assert meter.largest == 80 * 131
    assert meter.peak >= 80 * 131


def test_a_frozen_head_forms_no_head_gradient():
    states, head, targets, _ = inputs(6, 5, 31, dtype=torch.float32)
    for frozen in (False, True):
        head.weight.requires_grad_(not frozen)
        value = token_stats(states, head, targets, backend="chunked", chunk=2).logprob.sum()
        with Products(31) as meter:
            value.backward()
        assert ((31, 2, 5) in meter.products) == (not frozen)
        assert meter.products.count((2, 5, 31)) == 3


@pytest.mark.parametrize(("field", "forward", "backward"), [("mass", 3, 3), ("ref_logprob", 6, 3), ("kl", 6, 6)])
def test_a_reference_is_projected_where_it_is_read(field, forward, backward):
    states, head, targets, reference = inputs(6, 5, 31)
    given = {"fields": ("logprob", field), "reference": reference, "backend": "chunked", "chunk": 2}
    with Products(31) as meter:
        stats = token_stats(states, head, targets, **given)
    assert len(meter.products) == forward
    with Products(31) as meter:
        (stats.logprob.sum() + (stats.kl.sum() if field == "kl" else 0)).backward()
    assert sum(sizes[-1] == 31 for sizes in meter.products) == backward


def test_autocast_leaves_the_gradient_of_a_float64_head_as_it_is():
    results = []
    for lowered in (False, True):
        states, head, targets, _ = inputs(6)
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            stats = token_stats(states, head, targets, fields=("logprob", "entropy"), backend="chunked", chunk=2)
        results.append(torch.autograd.grad((stats.logprob + stats.entropy).sum(), leaves(states, head)))
    for plain, under in zip(*results, strict=True):
        assert torch.equal(plain, under)


def test_auto_holds_small_logits_whole_and_cuts_large_ones(monkeypatch):
    import ballast.head as head_module

    used = []
    monkeypatch.setattr(head_module, "dense", lambda *args: used.append("dense") or {})
    monkeypatch.setattr(head_module, "chunked", lambda *args: used.append(args[-1]) or {})
    monkeypatch.setattr("ballast.head.projection.CHUNK_LIMIT", 40)
    states, head, targets, _ = inputs(6, vocab=10)
    token_stats(states, head, targets)
    monkeypatch.setattr(head_module, "DENSE_LIMIT", 59)
    token_stats(states, head, targets)
    token_stats(states, head, targets, chunk=3)
    assert used == ["dense", 4, 3]
