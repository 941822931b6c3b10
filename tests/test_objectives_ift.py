"""IFT's weights and their gradient, and the inputs that it mixes."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from ballast import TokenStats, objective

# Negative log-likelihoods 1, 2, 3, 4 with gamma = 1/2, worked by hand:
# c = 13/4, 9/2, 5, 4 and Σc = 67/4; backwards sums b = 1, 5/2, 17/4, 49/8; r = 1, 3/2, 7/4, 15/8; Σ nll·c = 173/4.
WEIGHTS = {
    "normalised": ["52/67", "72/67", "80/67", "64/67"],
    "algorithm1": ["13/4", "9/2", "5", "4"],
    "equation21": ["1", "2", "3", "4"],
}
# Slopes of the sum of nll_t·w_t by nll_j: 4·((c_j + b_j)/Σc − Σnll·c·r_j/(Σc)²), c_j + b_j, and j + 1.
SLOPES = {
    "normalised": ["1788/4489", "3352/4489", "5072/4489", "5664/4489"],
    "algorithm1": ["17/4", "7", "37/4", "81/8"],
    "equation21": ["1", "2", "3", "4"],
}


def numbers(fractions, divisor=1):
    return torch.tensor([float(Fraction(text) / divisor) for text in fractions], dtype=torch.float64)


def built(variant="normalised", gamma=0.5, **options):
    options = options if variant == "equation21" else {"gamma": gamma, **options}
    return objective("ift", variant=variant, **options)


@pytest.mark.parametrize("average", ["sequence", "token"])
@pytest.mark.parametrize("variant", list(WEIGHTS))
def test_four_tokens_by_hand(variant, average):
    nll = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64, requires_grad=True)
    method, divisor = built(variant, average=average), 4 if average == "sequence" else 1
    losses = method.per_token_loss(TokenStats(logprob=-nll))
    (slopes,) = torch.autograd.grad(losses.sum(), nll)
    torch.testing.assert_close(method.weight(TokenStats(logprob=-nll)), numbers(WEIGHTS[variant]), rtol=1e-14, atol=0)
    torch.testing.assert_close(losses, nll * numbers(WEIGHTS[variant], divisor), rtol=1e-14, atol=0)
    torch.testing.assert_close(slopes, numbers(SLOPES[variant], divisor), rtol=1e-14, atol=0)


def test_counts_what_it_averages_over():
    assert objective("ift").reduction == "sequences"
    assert objective("ift", average="token").reduction == "tokens"
    assert objective("ift").scope == "sequence"


def test_untrained_tokens_between_turns_count():
    """The authors' loader discounts over all positions of a row, trained or not."""
    nll = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    weight = built().weight(TokenStats(logprob=-nll, position=torch.tensor([0, 1, 8, 9])))
    # c = 1 + 2/2 + 3/2^8 + 4/2^9, 2 + 3/2^7 + 4/2^8, 3 + 4/2, 4 and Σc = 6686/512.
    torch.testing.assert_close(weight, numbers(["1034/512", "1044/512", "5", "4"]) * 4 * 512 / 6686, rtol=1e-14, atol=0)
    assert [round(value, 3) for value in weight.tolist()] == [0.619, 0.625, 1.532, 1.225]
    ramp = built("equation21").weight(TokenStats(logprob=-nll, position=torch.tensor([0, 1, 8, 9])))
    assert ramp.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.3, 0.95, 1.0])
def test_a_prompt_before_a_single_turn_changes_not_a_bit(gamma, dtype):
    nll = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = nll.clone()
    for reach in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        if gamma**reach > 0:
            expected = torch.cat([expected[:-reach] + gamma**reach * expected[reach:], expected[-reach:]])
    for position in (None, torch.arange(300), torch.arange(300) + 77):
        assert torch.equal(built("algorithm1", gamma).weight(TokenStats(logprob=-nll, position=position)), expected)


def ragged(lengths, seed=0, turns=False):
    """Return losses of sequences of these lengths in a random order of all tokens, with their layout.

    With `turns` sequences begin with a prompt, and untrained tokens stand before every third trained one.
    """
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.cat([torch.full((length,), 7 - index) for index, length in enumerate(lengths)])
    position = torch.cat([torch.arange(length) for length in lengths])
    position = 20 + position + 9 * (position // 3) if turns else position
    nll = torch.rand(len(sequence), generator=generator, dtype=torch.float64) * 5
    order = torch.randperm(len(sequence), generator=generator)
    return nll[order], sequence[order], position[order]


def naive_reach(nll, sequence, position, gamma):
    reach = torch.zeros_like(nll)
    for index in sequence.unique():
        members = (sequence == index).nonzero()[:, 0]
        following, place = 0.0, 0
        for member in members[position[members].argsort(descending=True)].tolist():
            following = float(nll[member]) + gamma ** max(place - int(position[member]), 0) * following
            reach[member], place = following, int(position[member])
    return reach


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("lengths", [(1,), (2, 1), (5, 1, 8, 3), (63, 64, 65, 1), (1, 1, 1)])
@pytest.mark.parametrize("turns", [False, True])
def test_losses_reach_back_in_any_order_and_layout(lengths, turns, gamma):
    nll, sequence, position = ragged(lengths, turns=turns)
    stats = TokenStats(logprob=-nll, sequence=sequence, position=position)
    expected = naive_reach(nll, sequence, position, gamma)
    torch.testing.assert_close(built("algorithm1", gamma).weight(stats), expected, rtol=1e-13, atol=0)
    ramp = built("equation21").weight(stats)
    places = [(position[sequence == own] <= place).sum() for own, place in zip(sequence, position, strict=True)]
    assert torch.equal(ramp, torch.stack(places).double())


def test_a_long_sequence_takes_no_square_of_memory():
    # A matrix of all pairs would have 3.6e9 entries.
    nll, sequence, position = ragged((50_000, 10_000))
    stats = TokenStats(logprob=-nll, sequence=sequence, position=position)
    expected = naive_reach(nll, sequence, position, 0.95)
    torch.testing.assert_close(built("algorithm1", 0.95).weight(stats), expected, rtol=1e-12, atol=0)


def test_without_layout_the_tokens_are_one_sequence_in_order():
    nll, sequence, position = ragged((9,))
    by_place = nll[position.argsort()]
    full = built().per_token_loss(TokenStats(logprob=-nll, sequence=sequence, position=position))[position.argsort()]
    torch.testing.assert_close(built().per_token_loss(TokenStats(logprob=-by_place)), full)
    scattered = built().per_token_loss(TokenStats(logprob=-nll, position=position))[position.argsort()]
    torch.testing.assert_close(scattered, full)


@pytest.mark.parametrize("average", ["sequence", "token"])
@pytest.mark.parametrize("variant", list(WEIGHTS))
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("turns", [False, True])
def test_the_gradient_goes_through_the_weights(variant, average, gamma, turns):
    nll, sequence, position = ragged((4, 1, 6), turns=turns)
    method = built(variant, gamma, average=average)

    def loss(logprob):
        return method.per_token_loss(TokenStats(logprob=logprob, sequence=sequence, position=position)).sum()

    assert torch.autograd.gradcheck(loss, (-nll).requires_grad_(), eps=1e-6, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.4, 0.95, 1.0])
def test_normalised_weights_have_a_mean_of_one_in_every_sequence(gamma):
    nll, sequence, position = ragged((4, 1, 6))
    weight = built(gamma=gamma).weight(TokenStats(logprob=-nll, sequence=sequence, position=position))
    for index in sequence.unique():
        assert float(weight[sequence == index].mean()) == pytest.approx(1, abs=1e-14)
    assert (weight == 1).all() == (gamma == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sequence_without_loss_has_weights_of_one_and_a_finite_gradient(dtype):
    logprob = torch.tensor([0.0, 0, 0, -1, -2], dtype=dtype, requires_grad=True)
    stats = TokenStats(logprob=logprob, sequence=torch.tensor([0, 0, 0, 1, 1]), position=torch.tensor([0, 1, 2, 0, 1]))
    method = objective("ift")
    assert method.weight(stats)[:3].tolist() == [1, 1, 1]
    losses = method.per_token_loss(stats)
    losses.sum().backward()
    assert losses[:3].abs().sum() == 0
    torch.testing.assert_close(logprob.grad[:3], torch.full((3,), -1 / 3, dtype=dtype))
    assert logprob.grad[3:].isfinite().all()
    assert (logprob.grad[3:] < 0).all()


LABELS = torch.tensor([[-100, -100, 5, 6], [3, 4, -100, -100]])


def inputs(**options):
    """Return gold and greedy embeddings that differ everywhere, and what the method makes of them."""
    generator = torch.Generator().manual_seed(0)
    gold, guess = (torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    state = {name: options.pop(name) for name in ("progress", "noise") if name in options}
    return gold, guess, objective("ift", **options).prepare_inputs(gold, guess, LABELS, **state)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_every_trained_position_is_mixed_and_no_other(share):
    gold, guess, mixed = inputs(lam=share)
    for row, column in ((0, 2), (0, 3), (1, 1)):
        expected = (1 - share) * gold[row, column] + share * guess[row, column]
        assert torch.equal(mixed[row, column], expected)
    # The first of a row has a label here, but nothing predicts it.
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 2), (1, 3)):
        assert torch.equal(mixed[row, column], gold[row, column])
    assert LABELS[1, 0] == 3


SHARES = {
    "constant": ({"lam": 0.4, "progress": 0.5, "noise": 3.0}, 0.4),
    "linear at the start": ({"lam": 0.4, "schedule": "linear", "lam_start": 0.1, "noise": 3.0}, 0.1),
    "linear halfway": ({"lam": 0.4, "schedule": "linear", "lam_start": 0.1, "progress": 0.5}, 0.25),
    "linear at the end": ({"lam": 0.4, "schedule": "linear", "lam_start": 0.1, "progress": 1.0}, 0.4),
    "linear downwards": ({"lam": 0.0, "schedule": "linear", "lam_start": 0.8, "progress": 0.25}, 0.6),
    "noisy": ({"lam": 0.4, "schedule": "noisy", "noise": 0.5, "progress": 0.7}, 0.5),
    "noisy downwards": ({"lam": 0.4, "schedule": "noisy", "noise": -1.0}, 0.2),
    "noisy below 0": ({"lam": 0.4, "schedule": "noisy", "noise": -2.5}, 0.0),
    "noisy above 1": ({"lam": 0.4, "schedule": "noisy", "noise": 3.5}, 1.0),
}


@pytest.mark.parametrize(("options", "share"), list(SHARES.values()), ids=list(SHARES))
def test_the_schedule_decides_the_share(options, share):
    gold, guess, mixed = inputs(**options)
    got = (mixed - gold)[0, 2] / (guess - gold)[0, 2]
    torch.testing.assert_close(got, torch.full_like(got, share), atol=1e-14, rtol=0)


def test_detached_inputs_carry_no_gradient():
    assert not inputs()[2].requires_grad


def test_attached_inputs_carry_it_to_both_embeddings():
    gold, guess, mixed = inputs(lam=0.25, embeddings="attached")
    mixed.sum().backward()
    share = torch.tensor([[0, 0, 0.25, 0.25], [0, 0.25, 0, 0]], dtype=torch.float64)[..., None].expand(2, 4, 3)
    assert torch.equal(guess.grad, share)
    assert torch.equal(gold.grad, 1 - share)


def test_the_labels_are_left_as_they_were():
    before = LABELS.clone()
    inputs()
    assert torch.equal(LABELS, before)
