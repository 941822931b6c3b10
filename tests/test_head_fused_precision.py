"""The fused loss in low precision, at extreme logits, and over many steps of training."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from ballast import fused_loss, objective, token_stats
from ballast.head import LMHead
from head_inputs import inputs, leaves
from head_objectives import Anchored, Entropy, assert_same, gradients, ordinary


def _ordinary_low(states, weight, targets):
    """The usual low-precision path: everything in the model's dtype."""
    logp = functional.linear(states, weight).log_softmax(-1)
    return SimpleNamespace(logprob=logp.gather(1, targets[:, None]).squeeze(1), entropy=-(logp.exp() * logp).sum(-1))


@pytest.mark.parametrize("built", [objective("sft"), objective("dft"), Entropy()], ids=["sft", "dft", "entropy"])
@pytest.mark.parametrize("shape", [(33, 16, 257), (8, 64, 1000), (64, 32, 4099)])
def test_bfloat16_is_nowhere_worse_than_the_ordinary_path(built, shape):
    means = [_errors_of_bfloat16(built, inputs(*shape, dtype=torch.bfloat16, seed=seed)) for seed in range(12)]
    for ours, usual in zip(*(torch.tensor(column).sum(0) for column in zip(*means, strict=True)), strict=True):
        assert ours <= usual * 1.05


def _errors_of_bfloat16(built, given_inputs):
    """Compare element by element; return the relative errors of the gradients, ours and the ordinary path's."""
    states, head, targets, _ = given_inputs
    with torch.no_grad():
        states.mul_(0.5)

    def run(function, hidden, weight):
        hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        value = function(hidden, weight)
        return [value.detach().double(), *(g.double() for g in torch.autograd.grad(value, (hidden, weight)))]

    def ours(hidden, weight):
        return fused_loss(hidden, weight, targets, built, chunk=5)

    def usual(hidden, weight):
        return built.per_token_loss(_Stats(_ordinary_low(hidden, weight, targets))).mean()

    truth = run(ours, states.double(), head.weight.double())
    results, usuals = run(ours, states, head.weight), run(usual, states, head.weight)
    # Both paths share the rounding of the logits to bfloat16, which either may undo by luck at single elements.
    rounding = 2**-9 * head.logits(states).abs().max().item()
    means = []
    for exact, expected, result in zip(truth, usuals, results, strict=True):
        slack = rounding * exact.abs().max()
        assert ((result - exact).abs() <= (expected - exact).abs() + slack).all()
        means.append([((value - exact).abs().mean() / exact.abs().mean()).item() for value in (result, expected)])
    return [ours for ours, _ in means[1:]], [usual for _, usual in means[1:]]


class _Stats:
    def __init__(self, values):
        self._values = values

    def require(self, name):
        return getattr(self._values, name)


@pytest.mark.parametrize("chunk", [7, None])
def test_float32_is_close_to_float64(chunk):
    states, head, targets, reference = inputs(33, 16, 5003, dtype=torch.float32, bias=True)
    exact = [LMHead(*(leaf.detach().double().requires_grad_() for leaf in leaves(states, head)[1:]))]
    wide = (states.detach().double().requires_grad_(), *exact, targets)
    ref_head = LMHead(*(leaf.double() for leaf in (reference[1].weight, reference[1].bias)))
    built = Anchored()
    truth = ordinary((*wide, (reference[0].double(), ref_head)), built.per_token_loss, built.needs, {})
    loss = fused_loss(states, head, targets, built, reference=reference, chunk=chunk)
    ours = gradients(loss, states, head)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach().double(), truth[0], rtol=2e-6, atol=0)
    for mine, theirs in zip(ours, truth[1], strict=True):
        assert mine.dtype == torch.float32
        assert (mine.double() - theirs).abs().max() <= 3e-6 * theirs.abs().max()


def test_many_tiles_of_bfloat16_sum_their_head_gradient_in_float32():
    # 512 equal contributions: summed one by one in bfloat16 they stop growing at 256 times the first.
    states, weight = torch.ones(512, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight.requires_grad_()
    targets = torch.zeros(512, dtype=torch.long)
    fused_loss(states, weight, targets, objective("sft"), denominator=1, chunk=1).backward()
    assert weight.grad.tolist() == [[-256.0], [256.0]]


def test_a_scaled_float16_gradient_does_not_vanish_before_the_scale():
    # A probability of 1e-8 and a gradient over 2^20 tokens are both 0 in float16; times 2^28 they are not.
    found = []
    for dtype in (torch.float16, torch.float32):
        states = torch.tensor([[1.0, 0.5], [0.5, 1.0], [1.0, 1.0]], dtype=dtype, requires_grad=True)
        weight = torch.tensor([[9.0, 9.0], [8.0, 9.5], [-4.0, 0.0]], dtype=dtype, requires_grad=True)
        loss = fused_loss(states, weight, torch.tensor([0, 0, 1]), objective("sft"), denominator=2**20, chunk=2)
        (loss * 2**28).backward()
        assert states.grad.dtype == weight.grad.dtype == dtype
        found.append((states.grad.float(), weight.grad.float()))
    assert 0 < found[1][1][2].max() < 2**-15
    for low, exact in zip(*found, strict=True):
        torch.testing.assert_close(low, exact, rtol=0.02, atol=0)
        assert (low != 0).all()


@pytest.mark.parametrize("chunk", [4, None])
def test_autocast_projects_in_bfloat16_and_keeps_float32_losses_and_gradients(chunk):
    states, head, targets, reference = inputs(9, 5, 13, dtype=torch.float32, bias=True)
    built = Anchored()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused_loss(states, head, targets, built, reference=reference, chunk=chunk)
        stats = token_stats(states, head, targets, fields=built.needs, reference=reference, backend="chunked", chunk=9)
    expected = built.per_token_loss(stats).mean()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    exact = ordinary((states, head, targets, reference), built.per_token_loss, built.needs, {})
    assert not torch.isclose(loss.detach(), exact[0], rtol=1e-5)
    pairs = zip(gradients(loss, states, head), gradients(expected, states, head), exact[1], strict=True)
    for mine, chunked, theirs in pairs:
        assert mine.dtype == torch.float32
        scale = theirs.abs().max()
        assert (mine - chunked).abs().max() < 0.02 * scale
        assert (mine - theirs).abs().max() < 0.1 * scale
        assert not torch.equal(mine, theirs)


def test_autocast_leaves_a_float64_head_as_it_is():
    states, head, targets, _ = inputs(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fused_loss(states, head, targets, objective("sft"))
    assert torch.equal(ours, fused_loss(states, head, targets, objective("sft")))


@pytest.mark.parametrize("name", ["sft", "anchored"])
def test_a_masked_vocabulary_row_gives_finite_losses_and_gradients(name):
    given_inputs = inputs(6, bias=True)
    states, head, targets, reference = given_inputs
    built = Anchored() if name == "anchored" else objective(name)
    with torch.no_grad():
        head.bias[2] = reference[1].bias[2] = -torch.inf
        targets[targets == 2] = 3
    loss = fused_loss(states, head, targets, built, reference=reference, chunk=4)
    ours = (loss, gradients(loss, states, head))
    keep = [0, 1, 3, 4, 5, 6]
    cut, ref_cut = (LMHead(whole.weight.detach()[keep], whole.bias.detach()[keep]) for whole in (head, reference[1]))
    cut = LMHead(cut.weight.requires_grad_(), cut.bias.requires_grad_())
    renumbered = torch.tensor([keep.index(y) for y in targets.tolist()])
    without = ordinary((states, cut, renumbered, (reference[0], ref_cut)), built.per_token_loss, built.needs, {})
    assert_same((loss, (ours[1][0], ours[1][1][keep], ours[1][2][keep])), without, rtol=1e-10, atol=1e-12)
    assert (ours[1][1][2] == 0).all()
    assert ours[1][2][2] == 0


@pytest.mark.parametrize("built", [objective("sft"), Entropy(), Anchored()], ids=["sft", "entropy", "anchored"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_probability_of_minus_200_is_finite_in_value_and_gradient(built, dtype):
    states = torch.tensor([[200.0], [-200.0], [200.0]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [0.0]], dtype=dtype, requires_grad=True)
    reference = (states.detach() / 2, weight.detach())
    loss = fused_loss(states, weight, torch.tensor([1, 0, 0]), built, reference=reference, denominator=1, chunk=2)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(states.grad).all()
    assert torch.isfinite(weight.grad).all()
    if built.name == "sft":
        torch.testing.assert_close(loss.item(), 400.6931, rtol=1e-6, atol=0)
        assert states.grad[0].item() == 1


def test_a_softcapped_log_probability_of_minus_190_has_the_gradient_of_float64():
    # exp(−190) is 0 in float32, so the slope of the cap at the target must come from the logit itself.
    weight = torch.tensor([[3.0], [-3.0], [0.1]])
    for dtype in (torch.float32, torch.float64):
        states = torch.tensor([[60.0]], dtype=dtype, requires_grad=True)
        head = LMHead(weight.to(dtype).requires_grad_(), softcap=100.0)
        loss = fused_loss(states, head, torch.tensor([1]), objective("sft"))
        found = loss.item(), *(g.double() for g in gradients(loss, states, head))
        if dtype == torch.float32:
            ours = found
    assert found[0] > 185
    for mine, theirs in zip(ours, found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


VOCAB, WIDTH, TOKENS, STEPS = 61, 12, 96, 200


def _train(loss_of, dtype=torch.float32, low=None):
    """Train a small tied model by plain SGD; return losses, entropies and final weights."""
    draw = torch.Generator().manual_seed(11)
    table = (0.7 * torch.randn(VOCAB, WIDTH, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()
    mixer = (0.3 * torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()
    successor = torch.randint(0, VOCAB, (VOCAB,), generator=draw)
    losses, entropies = [], []
    for _ in range(STEPS):
        ids = torch.randint(0, VOCAB, (TOKENS,), generator=draw)
        noise = torch.randint(0, VOCAB, (TOKENS,), generator=draw)
        targets = torch.where(torch.rand(TOKENS, generator=draw) < 0.7, successor[ids], noise)
        with torch.autocast("cpu", dtype=low or torch.bfloat16, enabled=low is not None):
            states = torch.tanh(table[ids] @ mixer) + table[ids]
            loss = loss_of(states, table, targets)
        for leaf, gradient in zip((table, mixer), torch.autograd.grad(loss, (table, mixer)), strict=True):
            with torch.no_grad():
                leaf -= 0.5 * gradient
        losses.append(loss.item())
        with torch.no_grad():
            entropies.append(token_stats(states, table, targets, fields=("entropy",)).entropy.mean().item())
    return torch.tensor(losses), torch.tensor(entropies), table.detach().double(), mixer.detach().double()


def _dense(states, weight, targets):
    stats = token_stats(states, weight, targets, fields=("logprob", "entropy"), backend="dense")
    return Entropy().per_token_loss(stats).mean()


def _fused(states, weight, targets):
    return fused_loss(states, weight, targets, Entropy(), chunk=17)


@pytest.fixture(scope="module")
def exact_run():
    return _train(_dense, torch.float64)


def test_200_steps_of_sgd_are_those_of_full_logits(exact_run):
    ours, dense = _train(_fused), _train(_dense)
    assert exact_run[0][-10:].mean() < 0.75 * exact_run[0][:10].mean()
    for mine, theirs, exact in zip(ours, dense, exact_run, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)
        torch.testing.assert_close(mine, exact.to(mine.dtype), rtol=0, atol=2e-4)


def test_200_steps_under_autocast_do_not_drift_in_entropy(exact_run):
    ours, dense = (_train(function, low=torch.bfloat16) for function in (_fused, _dense))
    drift, usual = ((run[1] - exact_run[1])[-50:].mean().abs() for run in (ours, dense))
    assert drift <= usual + 0.005
    assert drift < 0.02
    assert (ours[0] - exact_run[0]).abs().max() <= (dense[0] - exact_run[0]).abs().max() + 0.02
