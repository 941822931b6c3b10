"""How published objectives relate to each other: in a limit, up to a scale, as a product, at the start of a run."""

import math
import random
from dataclasses import replace

import pytest
import torch

from ballast import TokenStats, objective
from ballast.groups import advantages
from ballast.objectives import Objective
from oracles.cases import CASES
from oracles.rows import random_rows, statistics_of

FACTORS = [
    (name, options) for name, options in CASES if type(objective(name)).per_token_loss is Objective.per_token_loss
]


def _loss_and_gradient(built, rows=None):
    stats, logits = statistics_of(rows or random_rows())
    losses = built.per_token_loss(stats)
    return losses.detach(), torch.autograd.grad(losses.sum(), logits)[0]


def _full():
    """Return the log-probabilities of live model and reference ``[N, V]``, the targets, and the leaf of logits."""
    rows = random_rows()
    logits = torch.tensor(rows.live, dtype=torch.float64, requires_grad=True)
    reference = torch.tensor(rows.reference, dtype=torch.float64).log_softmax(-1)
    return logits.log_softmax(-1), reference, torch.tensor(rows.targets), logits


def test_gift_approaches_plain_fine_tuning_exponentially():
    _, plain = _loss_and_gradient(objective("sft"))
    distance = [(_loss_and_gradient(objective("gift", beta=beta))[1] - plain).abs().max() for beta in (18, 19)]
    assert distance[1] / distance[0] == pytest.approx(math.exp(-1), rel=1e-2)


def test_gift_without_a_raise_distils_the_reference():
    losses, gradient = _loss_and_gradient(objective("gift", beta=0))
    logp, logq, _, logits = _full()
    expected = -(logq.exp() * logp).sum(-1)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])


@pytest.mark.parametrize(("beta", "imitated"), [(0, 0), (20, 0), (100, 0), (1e6, 1)])
def test_gift_in_float32_at_a_token_that_the_reference_excludes(beta, imitated):
    fields = {"logprob": -3.0, "ref_logprob": -210.0, "ref_entropy": 0.5, "kl_forward": 0.25}
    stats = TokenStats(**{name: torch.tensor([value]) for name, value in fields.items()})
    built = objective("gift", beta=beta)
    assert built.weight(stats).item() == pytest.approx(imitated, abs=1e-30)
    assert built.extra(stats).item() == 0.75 * (1 - imitated)


def test_tail_sft_leaves_out_the_likeliest_while_nothing_has_moved():
    """Whatever the order of the tokens, and whatever rounding has made of differences that are none."""
    stats, _ = statistics_of(random_rows())
    noise = 1e-6 * torch.randn(len(stats.logprob), generator=torch.manual_seed(0), dtype=torch.float64)
    stats = replace(stats, ref_logprob=stats.logprob.detach() + noise)
    means = [float(stats.logprob[stats.sequence == one].detach().mean()) for one in range(4)]
    best = max(range(4), key=means.__getitem__)
    weight = objective("tail-sft").weight(stats)
    assert ((weight == 0) == (stats.sequence == best)).all()
    assert weight.mean().item() == pytest.approx(1)


@pytest.mark.parametrize(("progress", "left_out"), [(0, 0), (0.25, 1), (0.5, 2), (1, 3)])
def test_tail_sft_ramps_up_and_keeps_a_sequence(progress, left_out):
    stats, _ = statistics_of(random_rows())
    stats = replace(stats, progress=torch.full_like(stats.logprob, progress))
    weight = objective("tail-sft", fraction=1, schedule="ramp").weight(stats)
    assert len(stats.sequence[weight == 0].unique()) == left_out


def test_kl_sft_smooths_labels_towards_the_reference():
    lam = 0.3
    _, gradient = _loss_and_gradient(objective("kl-sft", lambda_kl=lam))
    logp, logq, targets, logits = _full()
    smoothed = (torch.nn.functional.one_hot(targets, logp.shape[-1]) + lam * logq.exp()) / (1 + lam)
    (expected,) = torch.autograd.grad(-(1 + lam) * (smoothed * logp).sum(), logits)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("name", ["asft", "kl-sft"])
def test_at_the_start_the_anchor_does_not_pull(name, direction):
    rows = random_rows()
    stats, logits = statistics_of(replace(rows, reference=rows.live))
    pull = objective(name, direction=direction, lambda_kl=10).extra(stats)
    assert pull.abs().max() < 1e-12
    assert torch.autograd.grad(pull.sum(), logits)[0].abs().max() < 1e-12


@pytest.mark.parametrize("options", [{}, {"temperature": 3}, {"per": "token"}, {"per": "token", "clip": 0.1}])
def test_iw_sft_is_plain_fine_tuning_at_the_start(options):
    rows = random_rows()
    rows = replace(rows, reference=rows.live)
    ours, plain = (_loss_and_gradient(built, rows) for built in (objective("iw-sft", **options), objective("sft")))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)


def test_iw_sft_weighs_up_a_sequence_that_the_model_has_learnt():
    stats, _ = statistics_of(random_rows())
    learnt = replace(stats, logprob=stats.ref_logprob + 0.5 * (stats.sequence == 1))
    expected = torch.where(stats.sequence == 1, math.e, 1.0).double()
    torch.testing.assert_close(objective("iw-sft", temperature=2).weight(learnt), expected, rtol=1e-6, atol=0)
    far = replace(stats, logprob=stats.ref_logprob + 1000)
    assert objective("iw-sft").weight(far).unique().tolist() == [16.0]


@pytest.mark.parametrize("alpha", [0.5, 1, 3])
def test_p_alpha_has_the_gradient_of_a_power_as_weight(alpha):
    losses, gradient = _loss_and_gradient(objective("p-alpha", alpha=alpha))
    _, expected = _loss_and_gradient(objective("reweight", rule="power", signal="live", alpha=alpha))
    torch.testing.assert_close(gradient, expected)
    logp, _, targets, logits = _full()
    value = (1 - logp.gather(1, targets[:, None])[:, 0].exp() ** alpha) / alpha
    torch.testing.assert_close(losses, value.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(value.sum(), logits)[0])


def test_p_alpha_at_1_has_the_gradient_of_dft():
    torch.testing.assert_close(_loss_and_gradient(objective("p-alpha"))[1], _loss_and_gradient(objective("dft"))[1])


@pytest.mark.parametrize("alpha", [1e-3, 1e-6])
def test_p_alpha_approaches_plain_fine_tuning(alpha):
    ours, plain = _loss_and_gradient(objective("p-alpha", alpha=alpha)), _loss_and_gradient(objective("sft"))
    for one, other in zip(ours, plain, strict=True):
        assert 0 < (one - other).abs().max() < 30 * alpha


def test_chord_phi_is_dft_less_the_square():
    stats, _ = statistics_of(random_rows())
    square = objective("reweight", rule="power", signal="live", alpha=2).weight(stats)
    torch.testing.assert_close(objective("chord-phi").weight(stats), objective("dft").weight(stats) - square)
    half = replace(stats, logprob=torch.full_like(stats.logprob, 0.5).log())
    torch.testing.assert_close(objective("chord-phi").weight(half), torch.full_like(half.logprob, 0.25))


def test_srft_is_half_of_plain_fine_tuning_where_the_model_is_certain():
    stats, _ = statistics_of(random_rows())
    assert objective("srft").weight(replace(stats, entropy=0 * stats.entropy)).unique().tolist() == [0.5]
    assert (objective("srft").weight(stats) < 0.5).all()


def test_luffy_on_own_answers_is_group_advantage_cross_entropy():
    stats, _ = statistics_of(random_rows())
    own = replace(stats, origin=0 * stats.origin + 2)
    assert torch.equal(objective("luffy").weight(own), objective("gft", tau=0).weight(own))


@pytest.mark.parametrize("origin", [0, 1])
@pytest.mark.parametrize("gamma", [1e3, 1e6])
def test_luffy_without_bound_is_dft_weighed_by_advantage(origin, gamma):
    stats, _ = statistics_of(random_rows())
    given = replace(stats, origin=0 * stats.origin + origin)
    scaled = gamma * objective("luffy", gamma=gamma).weight(given)
    torch.testing.assert_close(scaled, objective("gft", tau=2).weight(given), rtol=4 / gamma, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.1, 0.7])
def test_luffy_has_the_gradient_of_the_shaped_probability(gamma):
    _, gradient = _loss_and_gradient(objective("luffy", gamma=gamma))
    stats, logits = statistics_of(random_rows())
    p = stats.logprob.exp()
    shaped = (p / (p + gamma)).where(stats.origin != 2, p / p.detach())
    (expected,) = torch.autograd.grad(-(stats.advantage * shaped).sum(), logits)
    torch.testing.assert_close(gradient, expected)
    at_gamma = replace(stats, logprob=torch.full_like(p, gamma).log(), origin=0 * p, advantage=0 * p + 1)
    torch.testing.assert_close(objective("luffy", gamma=gamma).weight(at_gamma), torch.full_like(p, 0.25))


@pytest.mark.parametrize(("name", "options"), FACTORS)
def test_plain_fine_tuning_is_the_factor_that_changes_nothing(name, options):
    built = objective(name, **options)
    expected = _loss_and_gradient(built)
    for of in ([built, "sft"], ["sft", built], [built]):
        product = objective("product", of=of)
        assert (product.scope, product.reduction) == (built.scope, built.reduction)
        assert set(product.needs) == set(built.needs)
        for ours, theirs in zip(_loss_and_gradient(product), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_the_order_of_factors_does_not_matter():
    of = ["iw-sft", objective("asft", lambda_kl=0.3), "prift-prob", objective("eksft", rho=0.4)]
    first = _loss_and_gradient(objective("product", of=of))
    for other in (of[::-1], [objective("product", of=of[:2]), objective("product", of=of[2:])]):
        for ours, theirs in zip(_loss_and_gradient(objective("product", of=other)), first, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_a_weight_twice_is_its_square():
    twice = _loss_and_gradient(objective("product", of=["prift-prob", "prift-prob"]))
    for ours, theirs in zip(twice, _loss_and_gradient(objective("reweight", rule="power", alpha=2)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_product_leaves_out_what_any_factor_leaves_out_unless_another_has_a_further_term():
    columns = {"ref_mass": torch.tensor([0.2, 0.9, 0.7, 0.1]), "advantage": torch.tensor([1.0, 0.0, -1.0, 0.0])}
    assert objective("product", of=["dft", "sft"]).active(columns) is None
    assert objective("product", of=["prift-mass", "dft"]).active(columns).tolist() == [False, True, True, False]
    assert objective("product", of=["prift-mass", "gft"]).active(columns).tolist() == [False, False, True, False]
    assert objective("product", of=["prift-mass", "asft"]).active(columns) is None


def test_a_probability_that_rounds_to_more_than_1_is_kept():
    stats = TokenStats(logprob=torch.tensor([2e-7]))
    assert stats.require("logprob").exp().item() > 1
    for built in (
        objective("profit"),
        objective("profit", keep="lower", threshold=1),
        objective("profit", keep="middle", upper=1),
        objective("p-alpha", keep="bottom", threshold=1),
    ):
        assert built.weight(stats).item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_own_outcomes_are_those_of_a_group_of_own_answers(dtype):
    draw = random.Random(3)
    sizes = (1, 1, 2, 3, 5, 8, 8, 4)
    rewards = [[draw.choice((0.0, 0.1, 1.0)) for _ in range(size)] for size in sizes]
    # Equal rewards whose mean is not one of them, rounded.
    rewards[3:6] = [0.7] * 3, [0.1] * 6, [0.1] * 3
    columns = {"reward": [], "sequence": [], "group": [], "expected": []}
    for group, found in enumerate(rewards):
        for place, (reward, advantage) in enumerate(zip(found, advantages(found), strict=True)):
            tokens = draw.randint(1, 4)
            for name, value in zip(columns, (reward, 100 * group + place, 7 - group, advantage), strict=True):
                columns[name] += [value] * tokens
    given = {name: torch.tensor(values, dtype=dtype) for name, values in columns.items()}
    expected = given.pop("expected")
    stats = TokenStats(logprob=-torch.ones_like(expected), origin=torch.full_like(expected, 2), **given)
    torch.testing.assert_close(objective("hpt", gate=-1).weight(stats), expected, rtol=1e-5, atol=1e-6)
    assert (objective("hpt", gate=-1).weight(stats)[expected == 0] == 0).all()
    imitating = replace(stats, origin=0 * stats.origin)
    assert (objective("hpt", gate=99).weight(imitating) == 1).all()
    assert (objective("hpt", gate=99).weight(stats) == 0).all()


def test_rift_imitates_right_answers_and_bounds_what_it_unlearns():
    stats, _ = statistics_of(random_rows())
    right, wrong = (replace(stats, reward=0 * stats.reward + value) for value in (1, 0))
    assert torch.equal(objective("rift").per_token_loss(right), objective("sft").per_token_loss(right))
    assert objective("rift", wrong=0).weight(wrong).abs().max() == 0
    unlearnt = replace(wrong, advantage=0 * stats.advantage - 0.2)
    torch.testing.assert_close(objective("rift").weight(wrong), objective("gft", tau=2).weight(unlearnt))
