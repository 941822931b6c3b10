"""The vocabulary of statistics."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from ballast import stats as vocabulary
from ballast.stats import TokenStats


def test_the_groups_of_fields_are_disjoint_and_cover_all():
    groups = (
        *vocabulary.LIVE_FIELDS,
        *vocabulary.PAIR_FIELDS,
        *vocabulary.REFERENCE_FIELDS,
        *vocabulary.GROUP_FIELDS,
        *vocabulary.OLD_FIELDS,
        *vocabulary.RUN_FIELDS,
        *vocabulary.LAYOUT_FIELDS,
    )
    assert len(groups) == len(set(groups))
    assert set(groups) == set(vocabulary.TOKEN_FIELDS)
    assert {*groups, "vocabulary"} == set(vocabulary.FIELDS)
    assert {*vocabulary.FIELDS, "further"} == {field.name for field in fields(TokenStats)}


def test_reference_fields_are_live_ones_renamed():
    # What nothing asks of a reference has no place in its cache.
    cached = [name for name in vocabulary.LIVE_FIELDS if name != "collision"]
    assert tuple(f"ref_{name}" for name in cached) == vocabulary.REFERENCE_FIELDS


def test_fields_are_absent_until_given_and_kept_by_replace():
    stats = TokenStats(logprob=torch.tensor([-1.0]))
    assert all(getattr(stats, name) is None for name in vocabulary.FIELDS if name != "logprob")
    placed = replace(stats, sequence=torch.tensor([3]))
    assert placed.logprob is stats.logprob
    assert placed.sequence.item() == 3


def test_require_returns_the_field_or_names_it():
    stats = TokenStats(logprob=torch.tensor([-1.0]))
    assert stats.require("logprob") is stats.logprob
    with pytest.raises(ValueError, match="'ref_mass' was not computed"):
        stats.require("ref_mass")


def test_what_has_no_field_of_its_own_is_kept_by_name():
    values = {"logprob": torch.tensor([-1.0, -2.0]), "top_mass@3": torch.tensor([0.5, 0.6]), "mine": torch.ones(2)}
    stats = TokenStats.of(values, vocabulary=9)
    assert stats.tensors() == values
    assert stats.require("mine") is values["mine"]
    assert stats.take(torch.tensor([1])).require("top_mass@3").item() == pytest.approx(0.6)
    other = stats.changed({"mine": torch.zeros(2), "entropy": torch.ones(2)})
    assert other.vocabulary == 9
    assert other.require("mine").sum() == 0
    assert other.require("top_mass@3") is values["top_mass@3"]
    assert stats.get("entropy") is None
    with pytest.raises(ValueError, match="'top_mass@4' was not computed"):
        stats.require("top_mass@4")


def test_taking_tokens_leaves_what_is_no_tokens_and_what_is_absent():
    stats = TokenStats(logprob=torch.tensor([-1.0, -2.0, -3.0]), sequence=torch.tensor([0, 0, 1]), vocabulary=9)
    for index in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        taken = stats.take(index)
        assert torch.equal(taken.logprob, stats.logprob[index])
        assert torch.equal(taken.sequence, stats.sequence[index])
        assert taken.vocabulary == 9
        assert taken.kl is None


def test_statistics_are_frozen():
    with pytest.raises(FrozenInstanceError):
        TokenStats().logprob = torch.zeros(1)


def test_importing_the_vocabulary_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, ballast.stats, ballast; ballast.list_objectives(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
