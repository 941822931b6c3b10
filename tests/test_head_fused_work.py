"""What the fused loss does not do: project twice, hold all logits, or project tokens without loss."""

import pytest
import torch

from ballast import fused_loss, objective, token_stats
from ballast.head import LMHead, fused_pass
from ballast.head.folds import row_blocks
from ballast.head.tiles import CPU_TILE_LIMIT, SMALL_TILE, TILE_LIMIT, tile_rows
from ballast.stats import GROUP_FIELDS, LAYOUT_FIELDS, LIVE_FIELDS, PAIR_FIELDS, TOKEN_FIELDS
from head_inputs import inputs, leaves
from head_meter import Meter
from head_objectives import TOKEN_CASES, Anchored, advantages, assert_same, columns_of, gradients, ordinary
from oracles.cases import CASES, IDS
from oracles.rows import random_rows, statistics_of

VOCAB, HIDDEN = 131, 2


def _metered(rows, built, chunk=4, columns=None, backward=True, function=fused_loss, **settings):
    states, head, targets, reference = inputs(rows, HIDDEN, VOCAB, dtype=torch.float32, **settings)
    with Meter(VOCAB) as meter:
        loss = function(states, head, targets, built, reference=reference, chunk=chunk, columns=columns)
        if backward:
            loss.backward()
    return meter


def _in_full(states, head, targets, built, reference, chunk, columns):
    stats = token_stats(states, head, targets, fields=built.needs, backend="dense")
    return built.per_token_loss(stats).mean()


def test_three_products_a_tile():
    meter = _metered(10, objective("sft"))
    project, states, head = (4, HIDDEN, VOCAB), (4, VOCAB, HIDDEN), (VOCAB, 4, HIDDEN)
    last = [tuple(2 if size == 4 else size for size in sizes) for sizes in (project, states, head)]
    assert meter.products == [project, states, head] * 2 + last


@pytest.mark.parametrize(
    ("name", "projections"), [("sft", 1), ("reweight-mass-live", 1), ("reweight-mass-reference", 2)]
)
def test_products_in_all(name, projections):
    # A live reference is projected once a tile; the refused second projection of the model would be one more.
    products = _metered(12, TOKEN_CASES[name]).products
    projected = [sizes for sizes in products if sizes[-1] == VOCAB]
    assert len(projected) == 3 * projections
    assert {sizes[0] for sizes in projected} == {4}
    # Of a tile without gradient there is nothing to multiply.
    assert len(products) - len(projected) <= 3 * 2


def test_the_pair_of_models_is_projected_once_each():
    assert len(_metered(12, Anchored(), bias=True, softcap=5.0).products) == 3 * 4


def test_products_without_gradient_and_with_frozen_parts():
    states, head, targets, _ = inputs(8, HIDDEN, VOCAB, dtype=torch.float32)
    for asking, products in (((), 1), ((states,), 2), ((head.weight,), 2), ((states, head.weight), 3)):
        for leaf in (states, head.weight):
            leaf.requires_grad_(any(leaf is item for item in asking))
        with Meter(VOCAB) as meter:
            fused_loss(states, head, targets, objective("sft"), chunk=8)
        assert len(meter.products) == products
    with Meter(VOCAB) as meter, torch.no_grad():
        fused_loss(states, head, targets, objective("sft"), chunk=8)
    assert len(meter.products) == 1


def test_the_backward_multiplies_the_gradients_in_place_or_not_at_all():
    states, head, targets, _ = inputs(8, HIDDEN, VOCAB, dtype=torch.float32)
    for upstream, in_place in ((1.0, 0), (2.0, 2)):
        calls = []

        class Calls(Meter):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None, calls=calls):
                if func.overloadpacket.__name__.startswith("mul"):
                    calls.append((func.overloadpacket.__name__, args[0].dim()))
                return super().__torch_dispatch__(func, types, args, kwargs)

        loss = fused_loss(states, head, targets, objective("sft"), chunk=8)
        with Calls(VOCAB) as meter:
            torch.autograd.grad(loss, leaves(states, head), torch.tensor(upstream))
        assert calls == [("mul_", 2)] * in_place
        assert meter.products == []
        assert meter.largest <= 1


@pytest.mark.parametrize("name", ["sft", "reweight-mass-live", "reweight-entropy-live-1.1", "anchored"])
def test_no_more_rows_of_logits_than_the_tile_has(name):
    few, many = (_metered(rows, TOKEN_CASES[name]) for rows in (20, 160))
    assert many.largest == max(4 * VOCAB, VOCAB * HIDDEN)
    # Beyond the tile only vectors of one number a token and the gradient of the hidden states grow.
    assert many.peak - few.peak <= 140 * 4 * (2 * HIDDEN + 24)


@pytest.mark.parametrize(("name", "tiles"), [("sft", 1.1), ("anchored", 6.5)])
def test_memory_is_the_tile_and_blocks_of_it(name, tiles):
    # Without block-wise passes: the tile, and of the anchored loss the reference's, with p, q, their difference, slope.
    meter = _metered(12, TOKEN_CASES[name], chunk=12)
    tile, gradient = 12 * VOCAB * 4, VOCAB * HIDDEN * 4
    assert meter.peak <= tiles * tile + gradient + 12 * 4 * 60


def test_the_meter_sees_all_logits_of_the_ordinary_way():
    meter = _metered(160, objective("sft"), function=_in_full)
    assert meter.largest == 160 * VOCAB
    assert meter.peak >= 3 * 160 * VOCAB * 4
    assert len(meter.products) == 3


def test_tile_rows():
    def elsewhere(count, vocab, hidden):
        return tile_rows(count, LMHead(torch.empty(vocab, hidden, device="meta")))

    def on_cpu(count, vocab, hidden, ref_vocab=None):
        head = LMHead(torch.empty(1, 1).expand(vocab, hidden))
        return tile_rows(count, head, None if ref_vocab is None else LMHead(torch.empty(1, 1).expand(ref_vocab, 1)))

    assert on_cpu(0, 1000, 8) == 1
    assert on_cpu(512, 65_536, 512) == 171
    # Two fifths of the head are the least, the limit the most; the tiles are equally high.
    assert on_cpu(1024, 151_936, 896) == 342 <= CPU_TILE_LIMIT // 151_936
    assert on_cpu(1024, 151_936, 896, ref_vocab=151_936) == 205 <= CPU_TILE_LIMIT // (2 * 151_936)
    assert on_cpu(10_000, 32_000, 64) * 32_000 <= SMALL_TILE
    assert on_cpu(300, 32_000, 64) == 150
    assert on_cpu(7, 2**27, 8) == 1
    assert elsewhere(4096, 151_936, 4096) == 1366 <= TILE_LIMIT // 151_936
    assert elsewhere(512, 65_536, 512) == 256


def test_passes_over_a_small_tile_go_in_smaller_blocks():
    def rows_of_blocks(rows, vocab):
        return [part.stop - part.start for part in row_blocks(torch.empty(1, 1).expand(rows, vocab))]

    assert rows_of_blocks(1024, 2**10) == [256] * 4
    assert rows_of_blocks(1025, 2**10)[:2] == [512, 512]
    assert rows_of_blocks(3, 2**20) == [1, 1, 1]
    assert rows_of_blocks(200, 2**10) == [256]


COLUMNS = tuple(name for name in TOKEN_FIELDS if name not in (*LIVE_FIELDS, *PAIR_FIELDS, *LAYOUT_FIELDS))


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_a_token_that_an_objective_calls_inactive_has_no_loss_and_no_gradient(name, options):
    built = objective(name, **options)
    stats, logits = statistics_of(random_rows(5, (40,)))
    columns = {field: getattr(stats, field).detach() for field in COLUMNS if field not in GROUP_FIELDS}
    of_rows = columns_of(built, stats.logprob)
    columns |= of_rows
    mask = built.active(columns)
    assert built.active({}) is None
    if mask is None:
        return
    assert mask.dtype == torch.bool
    losses = built.per_token_loss(stats.changed(of_rows))
    assert 0 < mask.sum() < len(mask)
    assert (losses[~mask] == 0).all()
    assert (losses[mask] != 0).all()
    (slope,) = torch.autograd.grad(losses.sum(), logits)
    assert (slope[~mask] == 0).all()


def test_which_objectives_skip():
    columns = {name: torch.full((3,), 0.4) for name in COLUMNS}
    skipping = {built.name for built in TOKEN_CASES.values() if built.active(columns) is not None}
    assert skipping == {"prift-mass", "reweight", "gft", "luffy", "product", "self-train"}
    assert objective("reweight", rule="mass", signal="live").active(columns) is None
    assert objective("prift-mass").active({"ref_tied": torch.zeros(3)}) is None


@pytest.mark.parametrize("chunk", [2, 3, None])
@pytest.mark.parametrize("name", ["gft", "prift-mass-0.7-inclusive", "reweight-entropy-reference-1.1"])
def test_tokens_without_loss_are_not_projected_and_nothing_changes(chunk, name):
    given_inputs = inputs(10, HIDDEN, VOCAB, dtype=torch.float64, bias=True)
    states, head, targets, _ = given_inputs
    built = TOKEN_CASES[name]
    gate = (advantages(targets) != 0).double()
    columns = {
        "advantage": advantages(targets), "ref_mass": gate, "ref_tied": 0 * gate, "ref_entropy": 2.0 - gate
    }  # fmt: skip
    active = gate != 0
    with Meter(VOCAB) as meter:
        formed = fused_pass(states, head, targets, built, columns=columns, chunk=chunk, fields=("entropy",))
    assert torch.equal(formed.computed, active)
    projected = sum(rows for rows, *sizes in meter.products if sizes == [HIDDEN, VOCAB])
    assert projected == active.sum() < len(targets)
    ours = (formed.loss, gradients(formed.loss, states, head))
    assert_same(ours, ordinary(given_inputs, built.per_token_loss, built.needs, columns), rtol=1e-10, atol=1e-12)
    assert (ours[1][0][~active] == 0).all()
    truth = token_stats(states, head, targets, fields=("logprob", "entropy"), backend="dense")
    for field in ("logprob", "entropy"):
        torch.testing.assert_close(getattr(formed.stats, field), getattr(truth, field)[active].detach())
    assert torch.equal(formed.stats.ref_mass, gate[active])


def test_every_token_is_projected_where_the_whole_is_asked_for():
    states, head, targets, _ = inputs(10, bias=True)
    built, columns = objective("gft"), {"advantage": advantages(targets)}
    less, whole = (
        fused_pass(states, head, targets, built, columns=columns, chunk=3, whole=whole) for whole in (False, True)
    )
    assert whole.computed is None
    assert len(less.stats.logprob) < len(whole.stats.logprob) == len(targets)
    ours, theirs = ((formed.loss, gradients(formed.loss, states, head)) for formed in (less, whole))
    assert_same(ours, (theirs[0].detach(), theirs[1]), rtol=1e-12, atol=1e-14)


def test_a_batch_without_active_tokens_gives_zero_without_any_product():
    states, head, targets, _ = inputs(6, HIDDEN, VOCAB, bias=True)
    columns = {"ref_mass": torch.zeros(6, dtype=torch.float64)}
    with Meter(VOCAB) as meter:
        loss = fused_loss(states, head, targets, objective("prift-mass"), columns=columns)
    assert loss.item() == 0
    assert meter.products == []
    for leaf, gradient in zip(leaves(states, head), gradients(loss, states, head), strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.abs().sum() == 0
