"""What holds for every objective in the registry, whatever its options."""

import dataclasses
import json

import pytest
import torch

from ballast import Objective, TokenStats, objective
from ballast.statistics import is_differentiable
from ballast.stats import DIFFERENTIABLE_FIELDS, FIELDS, GROUP_FIELDS, LAYOUT_FIELDS
from oracles.cases import CASES, IDS
from oracles.rows import COLUMNS, MODEL_FIELDS, STATISTICS, random_rows, statistics_of
from third_party import Focal

GIVEN = (*MODEL_FIELDS, *STATISTICS, *GROUP_FIELDS, "old_logprob", "progress", *COLUMNS)

every_case = pytest.mark.parametrize(
    ("name", "options"), [*CASES, ("third_party:Focal", {})], ids=[*IDS, "third-party"]
)


def _stats(seed=0, lengths=(7, 3, 11)):
    return statistics_of(random_rows(seed, lengths))[0]


def _leaves(stats):
    """Return the same statistics, those that carry gradient as leaves of their own."""
    names = (*DIFFERENTIABLE_FIELDS, *filter(is_differentiable, STATISTICS))
    return stats.changed({name: stats.require(name).detach().requires_grad_() for name in names})


class Spy:
    """Statistics that note which fields are read, by attribute or by `require`."""

    def __init__(self, stats):
        self._stats, self.read = stats, set()

    def __getattr__(self, field):
        self.read.add(field)
        return getattr(self._stats, field)

    def require(self, field):
        self.read.add(field)
        return self._stats.require(field)


@every_case
def test_reads_what_it_declares_and_no_more(name, options):
    built = objective(name, **options)
    spy = Spy(_stats())
    built.per_token_loss(spy)
    declared = set(built.needs)
    assert declared <= spy.read <= declared | set(LAYOUT_FIELDS)
    assert not declared & set(LAYOUT_FIELDS)
    assert declared <= {*FIELDS, *built.columns, *STATISTICS}
    assert "logprob" in declared
    if built.scope == "token":
        assert not spy.read & set(LAYOUT_FIELDS)


@every_case
def test_needs_only_what_it_declares(name, options):
    built = objective(name, **options)
    everything = _stats()
    fields = (*built.needs, *LAYOUT_FIELDS)
    values = {field: everything.require(field) for field in fields if field != "vocabulary"}
    declared = TokenStats.of(values, vocabulary=everything.vocabulary if "vocabulary" in fields else None)
    assert torch.equal(built.per_token_loss(declared), built.per_token_loss(everything))


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_are_those_of_the_log_probabilities(name, options, dtype):
    built = objective(name, **options)
    stats = _stats()
    stats = stats.changed({field: stats.require(field).to(dtype) for field in GIVEN})
    for vector in (built.per_token_loss(stats), built.weight(stats), built.extra(stats)):
        assert vector.shape == (21,)
        assert vector.dtype == dtype


@every_case
def test_finite_at_a_log_probability_of_minus_200(name, options):
    built = objective(name, **options)
    extreme = {
        "logprob": -200.0, "entropy": 0.0, "kl": 200.0, "kl_forward": 200.0, "mass": 0.0, "tied": 0.0, "collision": 1.0,
        "ref_logprob": -200.0, "ref_entropy": 0.0, "ref_mass": 0.0, "ref_tied": 0.0, "advantage": -1.0,
        "origin": 0.0, "group": 0.0, "reward": 0.0, "share": 1.0, "old_logprob": -1.0, "progress": 0.0, "weight": 1.0,
    }  # fmt: skip
    constant = {field: torch.full((6,), value) for field, value in extreme.items()}
    answers = {"sequence": torch.tensor([0, 0, 0, 1, 1, 2]), "origin": torch.tensor([0.0, 0, 0, 2, 2, 2])}
    stats = _leaves(TokenStats.of({**constant, **answers}, vocabulary=9))
    losses = built.per_token_loss(stats)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(stats.logprob.grad).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [case for case in CASES if type(objective(case[0])).per_token_loss is Objective.per_token_loss],
)
def test_no_gradient_flows_through_the_weights(name, options):
    built = objective(name, **options)
    ours, by_hand = _leaves(_stats()), _leaves(_stats())
    built.per_token_loss(ours).sum().backward()
    weight = torch.tensor(built.weight(by_hand).tolist(), dtype=torch.float64)
    (-weight * by_hand.logprob + built.extra(by_hand)).sum().backward()
    torch.testing.assert_close(ours.logprob.grad, by_hand.logprob.grad, rtol=0, atol=0)
    for field in ("entropy", "collision", "kl", "kl_forward"):
        got, expected = getattr(ours, field).grad, getattr(by_hand, field).grad
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


@every_case
def test_an_empty_micro_batch_gives_zero_with_a_graph(name, options):
    built = objective(name, **options)
    leaf = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    layout = {"sequence": torch.zeros(0, dtype=torch.long), "position": torch.zeros(0, dtype=torch.long)}
    for columns in ({}, layout):
        values = {**dict.fromkeys(GIVEN, leaf * 1), **columns}
        losses = built.per_token_loss(TokenStats.of(values, vocabulary=9))
        assert losses.shape == (0,)
        assert losses.sum().item() == 0
        losses.sum().backward()
        assert leaf.grad is not None


@every_case
def test_permuting_the_tokens_permutes_the_losses(name, options):
    built = objective(name, **options)
    stats = _stats()
    for seed in range(3):
        order = torch.randperm(21, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(built.per_token_loss(stats.take(order)), built.per_token_loss(stats)[order])


@every_case
def test_permuting_tokens_of_equal_scores_permutes_the_losses(name, options):
    built = objective(name, **options)
    stats = _stats()
    level = {field: torch.full_like(getattr(stats, field), 0.3) for field in ("entropy", "kl")}
    stats = dataclasses.replace(stats, **level)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(built.per_token_loss(stats.take(order)), built.per_token_loss(stats)[order])


@every_case
def test_splitting_the_micro_batch_changes_nothing_that_the_scope_forbids(name, options):
    built = objective(name, **options)
    stats = _stats(lengths=(7, 3, 11, 2, 5, 4))
    whole = built.per_token_loss(stats)
    cuts = {
        "token": [[0, 1], [1, 9], [9, 32]],
        "sequence": [[0, 7], [7, 10], [10, 21], [21, 32]],
        "group": [[0, 21], [21, 32]],
        "batch": [[0, 32]],
        "step": [[0, 32]],
    }[built.scope]
    parts = [built.per_token_loss(stats.take(slice(*cut))) for cut in cuts]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


@every_case
def test_one_sequence_needs_no_sequence_column(name, options):
    built = objective(name, **options)
    stats = _stats(lengths=(9,))
    bare = dataclasses.replace(stats, sequence=None, position=None)
    torch.testing.assert_close(built.per_token_loss(bare), built.per_token_loss(stats))


@every_case
def test_sequences_may_have_any_numbers(name, options):
    built = objective(name, **options)
    stats = _stats()
    renumbered = dataclasses.replace(stats, sequence=torch.tensor([40, -3, 7])[stats.sequence])
    if built.scope not in ("batch", "step"):
        torch.testing.assert_close(built.per_token_loss(renumbered), built.per_token_loss(stats))


@every_case
def test_survives_a_dictionary_and_json(name, options):
    built = objective(name, **options)
    written = json.loads(json.dumps(built.to_dict()))
    assert objective(written) == built
    assert objective(written.pop("name"), **written) == built
    assert objective(built) is built


@every_case
def test_equal_options_make_equal_hashable_frozen_objectives(name, options):
    first, second = objective(name, **options), objective(name, **options)
    assert first == second
    assert len({first, second}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.name = "other"
    for field in dataclasses.fields(first):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(first, field.name, None)


def test_an_objective_of_another_package_has_its_own_mathematics():
    stats = _stats()
    built = objective("third_party:Focal", gamma=1)
    assert isinstance(built, Focal)
    torch.testing.assert_close(built.per_token_loss(stats), -stats.logprob * (1 - stats.logprob.exp()))
