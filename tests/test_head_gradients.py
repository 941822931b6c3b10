"""Derivatives through the head: against finite differences, with every way of forming logits."""

import pytest
import torch

from ballast import token_stats
from ballast.head import LMHead
from ballast.stats import DIFFERENTIABLE_FIELDS
from head_inputs import SETTINGS, inputs, leaves

BACKENDS = [("dense", None), ("chunked", 2), ("chunked", 5)]


@pytest.mark.parametrize("settings", list(SETTINGS.values()), ids=list(SETTINGS))
@pytest.mark.parametrize(("backend", "chunk"), BACKENDS)
@pytest.mark.parametrize("field", DIFFERENTIABLE_FIELDS)
def test_gradcheck(field, backend, chunk, settings):
    states, head, targets, reference = inputs(rows=3, **settings)

    def through_head(hidden, weight, bias=None):
        built = LMHead(weight, bias, head.softcap, head.scale)
        stats = token_stats(hidden, built, targets, fields=(field,), reference=reference, backend=backend, chunk=chunk)
        return getattr(stats, field)

    assert torch.autograd.gradcheck(through_head, leaves(states, head))


@pytest.mark.parametrize(("backend", "chunk"), BACKENDS)
def test_gradcheck_of_all_fields_at_once_over_part_of_the_vocabulary(backend, chunk):
    states, head, targets, reference = inputs(rows=3, vocab=8, ref_vocab=6, bias=True, softcap=3.0)

    def through_head(hidden, weight, bias):
        stats = token_stats(
            hidden,
            LMHead(weight, bias, head.softcap),
            targets,
            fields=DIFFERENTIABLE_FIELDS,
            reference=reference,
            vocab_size=5,
            backend=backend,
            chunk=chunk,
        )
        return tuple(stats.require(field) for field in DIFFERENTIABLE_FIELDS)

    assert torch.autograd.gradcheck(through_head, leaves(states, head))


@pytest.mark.parametrize(("backend", "chunk"), BACKENDS)
def test_gradcheck_with_a_head_tied_to_the_embedding(backend, chunk):
    embedding = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    tokens, targets = torch.tensor([1, 4, 5]), torch.tensor([4, 5, 0])

    def tied(weight):
        return token_stats(weight[tokens].tanh(), weight, targets, backend=backend, chunk=chunk).logprob

    assert torch.autograd.gradcheck(tied, [embedding])


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_nothing_of_the_reference_or_of_the_masses_carries_gradient(backend):
    states, head, targets, (ref_states, ref_head) = inputs()
    ref_states.requires_grad_()
    ref_head.weight.requires_grad_()
    fields = ("kl", "mass", "tied", "ref_logprob", "ref_entropy", "ref_mass", "ref_tied")
    stats = token_stats(
        states, head, targets, fields=fields, reference=(ref_states, ref_head), backend=backend, chunk=2
    )
    stats.kl.sum().backward()
    assert ref_states.grad is None
    assert ref_head.weight.grad is None
    assert [name for name in fields if getattr(stats, name).requires_grad] == ["kl"]


@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_a_frozen_side_gets_no_gradient(backend, frozen):
    states, head, targets, _ = inputs(bias=True)
    for tensor in [states] if frozen == "hidden" else [head.weight, head.bias]:
        tensor.requires_grad_(False)
    token_stats(states, head, targets, backend=backend, chunk=2).logprob.sum().backward()
    has_gradient = [tensor.grad is not None for tensor in leaves(states, head)]
    assert has_gradient == ([False, True, True] if frozen == "hidden" else [True, False, False])


def test_chunked_has_no_second_derivative():
    states, head, targets, _ = inputs()
    value = token_stats(states, head, targets, backend="chunked").logprob.sum()
    (slope,) = torch.autograd.grad(value, states, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(slope.sum(), states)
