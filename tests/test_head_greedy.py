"""The greedy token: the arg-max of the model's own logits, a chunk of rows at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ballast.head import LMHead, greedy


def states(rows=37, hidden=8, vocab=50, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, hidden), (vocab, hidden), (vocab,)))


@pytest.mark.parametrize("chunk", [None, 1, 5, 37, 100])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (30.0, 1.0), (None, 0.25), (30.0, -2.0), (None, -1.0)])
def test_is_the_argmax_of_the_logits(chunk, with_bias, softcap, scale):
    hidden, weight, bias = states(dtype=torch.float64)
    head = LMHead(weight, 3 * bias if with_bias else None, softcap, scale)
    assert torch.equal(greedy(hidden, head, chunk=chunk), head.logits(hidden).argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_lowest_of_tied_tokens_is_taken(dtype):
    hidden, weight, _ = states(dtype=dtype)
    twice = torch.cat([weight, weight, weight])
    for scale in (1.0, -1.0):
        found = greedy(hidden, LMHead(twice, scale=scale), chunk=8)
        assert (found < len(weight)).all()
    assert torch.equal(greedy(hidden, LMHead(twice)), LMHead(twice).logits(hidden).argmax(-1))
    assert greedy(hidden, LMHead(torch.zeros_like(weight))).eq(0).all()


def test_a_cap_that_saturates_makes_no_ties():
    hidden, weight, _ = states()
    plain = greedy(hidden, LMHead(weight))
    assert torch.equal(greedy(hidden, LMHead(weight, softcap=0.01)), plain)
    assert not torch.equal(LMHead(weight, softcap=0.01).logits(hidden).argmax(-1), plain)


def test_projects_in_the_heads_own_dtype():
    hidden, weight, _ = states(rows=400)
    low = LMHead(weight.bfloat16())
    assert torch.equal(greedy(hidden, low), low.logits(hidden).argmax(-1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = greedy(hidden, LMHead(weight))
    assert torch.equal(cast, greedy(hidden, low))
    assert not torch.equal(cast, greedy(hidden, LMHead(weight)))


def seen_shapes(monkeypatch):
    shapes, plain = [], functional.linear

    def linear(*args):
        shapes.append(tuple(plain(*args).shape))
        return plain(*args)

    monkeypatch.setattr(functional, "linear", linear)
    return shapes


def test_holds_a_chunk_of_logits_and_no_more(monkeypatch):
    hidden, weight, _ = states()
    shapes = seen_shapes(monkeypatch)
    greedy(hidden, LMHead(weight), chunk=10)
    assert shapes == [(10, 50)] * 3 + [(7, 50)]


def test_a_chunk_is_as_large_as_that_of_the_statistics(monkeypatch):
    hidden, weight, _ = states()
    monkeypatch.setattr("ballast.head.projection.CPU_CHUNK_LIMIT", 600)
    shapes = seen_shapes(monkeypatch)
    greedy(hidden, LMHead(weight))
    assert shapes == [(12, 50)] * 3 + [(1, 50)]
    monkeypatch.setattr("ballast.head.projection.CPU_CHUNK_LIMIT", 1)
    shapes.clear()
    greedy(hidden, LMHead(weight))
    assert shapes == [(1, 50)] * 37


def test_no_positions_no_tokens():
    hidden, weight, _ = states()
    found = greedy(hidden[:0], LMHead(weight))
    assert found.shape == (0,)
    assert found.dtype == torch.long


def test_carries_no_gradient_and_refuses_empty_chunks():
    hidden, weight, _ = states()
    assert not greedy(hidden.requires_grad_(), LMHead(weight.requires_grad_())).requires_grad
    with pytest.raises(ValueError, match="at least 1 row"):
        greedy(hidden, LMHead(weight), chunk=0)
