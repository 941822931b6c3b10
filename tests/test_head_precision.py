"""Low precision, extreme logits and ties: the head judged against float64 truth."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from ballast import token_stats
from ballast.head import LMHead
from ballast.head.folds import KL_FIELDS
from head_inputs import FIELDS, inputs, leaves
from oracles import statistics as stat

BACKENDS = pytest.mark.parametrize("backend", ["dense", "chunked"])


def _oracle(logits, ref_logits, targets):
    """Return every field by the naive formulas, float64."""
    rows = list(zip(logits.tolist(), ref_logits.tolist(), targets.tolist(), strict=True))
    values = {
        "logprob": [stat.logprob(z, y) for z, _, y in rows],
        "entropy": [stat.entropy(z) for z, _, _ in rows],
        "collision": [stat.collision(z) for z, _, _ in rows],
        "kl": [stat.kl(z, q) for z, q, _ in rows],
        "kl_forward": [stat.kl_forward(z, q) for z, q, _ in rows],
        "mass": [stat.mass_strict(z, y) for z, _, y in rows],
        "tied": [stat.mass_inclusive(z, y) - stat.mass_strict(z, y) for z, _, y in rows],
        "ref_logprob": [stat.logprob(q, y) for _, q, y in rows],
        "ref_entropy": [stat.entropy(q) for _, q, _ in rows],
        "ref_mass": [stat.mass_strict(q, y) for _, q, y in rows],
        "ref_tied": [stat.mass_inclusive(q, y) - stat.mass_strict(q, y) for _, q, y in rows],
    }
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in values.items()}


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_statistics_of_the_logits_as_computed_are_exact_to_float32(backend, dtype):
    states, head, targets, (ref_states, ref_head) = inputs(17, 6, 23, dtype=dtype, bias=True)
    with torch.no_grad():
        logits, ref_logits = head.logits(states), ref_head.logits(ref_states)
        # A bf16 product repeats exactly only for the same shape, so chunks hold all rows here.
        stats = token_stats(
            states, head, targets, fields=FIELDS, reference=(ref_states, ref_head), backend=backend, chunk=17
        )
    close = 1e-12 if dtype == torch.float64 else 3e-6
    for name, expected in _oracle(logits.double(), ref_logits.double(), targets).items():
        value = getattr(stats, name)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(value.double(), expected, rtol=close, atol=close, msg=lambda t, n=name: f"{n}: {t}")


LARGE = 49_152


def _large(scale):
    """Return inputs over a vocabulary of real size, a reference that lies near, and the logits of both in float64."""
    draw = torch.Generator().manual_seed(int(10 * scale))
    states = scale * torch.randn(24, 32, generator=draw)
    weight = torch.randn(LARGE, 32, generator=draw) / 32**0.5
    ref_states = states + 0.1 * scale**0.5 * torch.randn(24, 32, generator=draw)
    logits, ref_logits = states @ weight.T, ref_states @ weight.T
    targets = torch.distributions.Categorical(logits=logits).sample()
    return states, weight, targets, ref_states, logits.double(), ref_logits.double()


def _exact(logits, ref_logits, targets):
    """The formulas on whole rows in float64."""
    values, logs = {}, {}
    for prefix, z in (("", logits), ("ref_", ref_logits)):
        logs[prefix] = logp = z.log_softmax(-1)
        own = z.gather(1, targets[:, None])
        values[f"{prefix}logprob"] = logp.gather(1, targets[:, None]).squeeze(1)
        values[f"{prefix}entropy"] = -(logp.exp() * logp).sum(-1)
        values[f"{prefix}mass"] = (logp.exp() * (z < own)).sum(-1) + values[f"{prefix}logprob"].exp()
    p, q = logs[""].exp(), logs["ref_"].exp()
    values["collision"] = p.square().sum(-1)
    values["kl"] = (p * (logs[""] - logs["ref_"])).sum(-1)
    values["kl_forward"] = (q * (logs["ref_"] - logs[""])).sum(-1)
    return values


@BACKENDS
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 8.0])
def test_a_large_vocabulary_costs_float32_no_digits(backend, scale):
    states, weight, targets, ref_states, logits, ref_logits = _large(scale)
    reference = (ref_states, weight)
    stats = token_stats(states, weight, targets, fields=FIELDS, reference=reference, backend=backend, chunk=24)
    expected = _exact(logits, ref_logits, targets)
    # Chunks have log-probabilities in float32 in hand, whose own rounding does not average out entirely.
    slack = {"marginal": 0.0, "pair": 0.0} if backend == "dense" else {"marginal": 1e-7, "pair": 5e-7}
    for name, value in expected.items():
        atol = slack["pair" if name in KL_FIELDS else "marginal"]
        torch.testing.assert_close(
            getattr(stats, name).double(), value, rtol=2e-6, atol=atol, msg=lambda t, n=name: f"{n}: {t}"
        )


def _ordinary(states, weight, targets):
    """The usual low-precision path: everything in the model's dtype."""
    logp = functional.linear(states, weight).log_softmax(-1)
    return SimpleNamespace(logprob=logp.gather(1, targets[:, None]).squeeze(1), entropy=-(logp.exp() * logp).sum(-1))


@BACKENDS
@pytest.mark.parametrize("field", ["logprob", "entropy"])
@pytest.mark.parametrize("shape", [(33, 16, 257), (8, 64, 1000)])
def test_bfloat16_is_nowhere_worse_than_the_ordinary_path(backend, field, shape):
    states, head, targets, _ = inputs(*shape, dtype=torch.bfloat16)
    with torch.no_grad():
        states.mul_(0.5)

    def run(function, hidden, weight):
        hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        value = getattr(function(hidden, weight), field)
        return [value.detach().double(), *(g.double() for g in torch.autograd.grad(value.sum(), (hidden, weight)))]

    def ours(hidden, weight):
        return token_stats(hidden, weight, targets, fields=(field,), backend=backend, chunk=5)

    truth = run(ours, states.double(), head.weight.double())
    ordinary = run(lambda h, w: _ordinary(h, w, targets), states, head.weight)
    results = run(ours, states, head.weight)
    # Both paths share the rounding of the logits to bfloat16, which either may undo by luck at single elements.
    rounding = 2**-9 * head.logits(states).abs().max().item()
    for exact, usual, result in zip(truth, ordinary, results, strict=True):
        slack = rounding * exact.abs().max()
        assert ((result - exact).abs() <= (usual - exact).abs() + slack).all()
        assert (result - exact).abs().mean() <= (usual - exact).abs().mean() * 1.05


def test_many_chunks_of_bfloat16_sum_their_head_gradient_in_float32():
    # 512 equal contributions: summed one by one in bfloat16 they stop growing at 256 times the first.
    states, weight = torch.ones(512, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight.requires_grad_()
    targets = torch.zeros(512, dtype=torch.long)
    token_stats(states, weight, targets, backend="chunked", chunk=1).logprob.sum().backward()
    assert weight.grad.tolist() == [[256.0], [-256.0]]


@BACKENDS
def test_autocast_projects_in_bfloat16_and_keeps_float32_statistics_and_gradients(backend):
    states, head, targets, reference = inputs(9, 5, 13, dtype=torch.float32, bias=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stats = token_stats(states, head, targets, fields=FIELDS, reference=reference, backend=backend, chunk=9)
    low = LMHead(*(tensor.detach().bfloat16() for tensor in (head.weight, head.bias)))
    ref_low = LMHead(*(tensor.bfloat16() for tensor in (reference[1].weight, reference[1].bias)))
    expected = _oracle(
        low.logits(states.detach().bfloat16()).double(), ref_low.logits(reference[0].bfloat16()).double(), targets
    )
    for name in FIELDS:
        assert getattr(stats, name).dtype == torch.float32
        torch.testing.assert_close(getattr(stats, name).double(), expected[name], rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad((stats.logprob + stats.kl).sum(), leaves(states, head))
    exact = token_stats(states, head, targets, fields=("logprob", "kl"), reference=reference, backend="dense")
    truth = torch.autograd.grad((exact.logprob + exact.kl).sum(), leaves(states, head))
    for gradient, expected_gradient in zip(gradients, truth, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected_gradient, rtol=0.1, atol=0.1)
        assert not torch.equal(gradient, expected_gradient)


@BACKENDS
def test_a_masked_vocabulary_row_gives_finite_values_and_gradients(backend):
    states, head, targets, reference = inputs(6, bias=True)
    with torch.no_grad():
        head.bias[2] = reference[1].bias[2] = -torch.inf
        targets[targets == 2] = 3
    stats = token_stats(states, head, targets, fields=FIELDS, reference=reference, backend=backend, chunk=4)
    total = stats.logprob.sum() + stats.entropy.sum() + stats.kl.sum() + stats.kl_forward.sum()
    gradients = torch.autograd.grad(total, leaves(states, head))
    assert all(torch.isfinite(getattr(stats, name)).all() for name in FIELDS)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    keep = [0, 1, 3, 4, 5, 6]
    cut, ref_cut = (LMHead(whole.weight[keep], whole.bias[keep]) for whole in (head, reference[1]))
    renumbered = torch.tensor([keep.index(y) for y in targets.tolist()])
    without = token_stats(states, cut, renumbered, fields=FIELDS, reference=(reference[0], ref_cut))
    for name in FIELDS:
        torch.testing.assert_close(getattr(stats, name), getattr(without, name))


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_probability_of_minus_200_is_finite_in_value_and_gradient(backend, dtype):
    states = torch.tensor([[200.0], [-200.0], [200.0]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [0.0]], dtype=dtype, requires_grad=True)
    targets = torch.tensor([1, 0, 0])
    stats = token_stats(
        states,
        weight,
        targets,
        fields=FIELDS,
        reference=(states.detach() / 2, weight.detach()),
        backend=backend,
        chunk=2,
    )
    torch.testing.assert_close(stats.logprob.detach(), torch.tensor([-200.0, -200.6931, 0.0]))
    assert all(torch.isfinite(getattr(stats, name)).all() for name in FIELDS)
    torch.testing.assert_close(stats.kl[0].item(), 0.0, atol=1e-6, rtol=0)
    (stats.logprob.sum() + stats.entropy.sum() + stats.kl.sum() + stats.kl_forward.sum()).backward()
    assert torch.isfinite(states.grad).all()
    assert torch.isfinite(weight.grad).all()
    assert states.grad[0].item() < -0.9


TIES = [
    ([0.3, 0.3, 0.3, 0.1], 0, 0.4, 0.6),
    ([0.3, 0.3, 0.3, 0.1], 2, 0.4, 0.6),
    ([0.3, 0.3, 0.3, 0.1], 3, 0.1, 0.0),
    ([0.1, 0.1, 0.3, 0.5], 0, 0.1, 0.1),
    ([0.1, 0.1, 0.3, 0.5], 2, 0.5, 0.0),
    ([0.25, 0.25, 0.25, 0.25], 1, 0.25, 0.75),
]


@BACKENDS
@pytest.mark.parametrize(("q", "target", "mass", "tied"), TIES)
def test_ties_are_told_apart_from_lower_mass(backend, q, target, mass, tied):
    probabilities = torch.tensor([q], dtype=torch.float64)
    given_inputs = (probabilities.log(), torch.eye(4, dtype=torch.float64), torch.tensor([target]))
    stats = token_stats(
        *given_inputs,
        fields=("mass", "tied", "ref_mass", "ref_tied"),
        reference=given_inputs[:2],
        backend=backend,
    )
    for prefix in ("", "ref_"):
        assert getattr(stats, f"{prefix}mass").item() == pytest.approx(mass, abs=1e-14)
        assert getattr(stats, f"{prefix}tied").item() == pytest.approx(tied, abs=1e-14)


@BACKENDS
def test_equal_head_rows_tie_in_float64(backend):
    # Small integers multiply exactly; of other numbers a matrix product need not give equal rows equal bits.
    states, head, _, _ = inputs(20, 4, 6)
    states, weight = states.detach().mul(3).round(), head.weight.detach().mul(3).round().clone()
    weight[5] = weight[1]
    weight[[0, 2, 3, 4]] = torch.tensor([[9.0, 0, 0, 0], [0, 9, 0, 1], [0, 0, 9, 2], [0, 0, 1, 9]], dtype=weight.dtype)
    targets = torch.full((20,), 1)
    stats = token_stats(states, weight, targets, fields=("logprob", "mass", "tied"), backend=backend)
    torch.testing.assert_close(stats.tied, stats.logprob.exp())


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_arg_max_has_mass_one_exactly_with_its_ties(backend, dtype):
    states, head, _, _ = inputs(300, 8, 501, dtype=dtype)
    with torch.no_grad():
        top = head.logits(states).argmax(-1)
        stats = token_stats(states, head, top, fields=("mass", "tied"), backend=backend, chunk=300)
    assert (stats.mass + stats.tied == 1).all()
    assert (stats.mass[stats.tied == 0] == 1).all()
    assert (stats.tied >= 0).all()
    if dtype != torch.bfloat16:
        assert (stats.tied == 0).all()


@BACKENDS
def test_the_kl_of_a_model_to_itself_is_zero_to_the_bit(backend):
    states, head, targets, _ = inputs(30, 6, 50, dtype=torch.float32, bias=True)
    frozen = LMHead(head.weight.detach(), head.bias.detach())
    reference = (states.detach(), frozen)
    stats = token_stats(states, head, targets, fields=("kl", "kl_forward"), reference=reference, backend=backend)
    assert (stats.kl == 0).all()
    assert (stats.kl_forward == 0).all()
