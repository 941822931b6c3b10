"""IFT on two ranks of four rows is IFT on one of eight: noise, frozen embeddings, checkpointing, sharded weights."""

from __future__ import annotations

import pytest
import torch

from ift_ranks import CASES, end
from test_training_distributed import launch
from training_tools import largest_difference


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    output = tmp_path_factory.mktemp("ranks") / "ends.pt"
    launch("ift_ranks.py", str(output))
    return torch.load(output, weights_only=True)


@pytest.mark.parametrize("case", list(CASES))
def test_two_ranks_are_one(tmp_path, two_ranks, case):
    theirs, their_log = two_ranks["ends"][case]
    ours, our_log = end(tmp_path, case, batch=8)
    assert largest_difference(ours, theirs) < 1e-10
    for metric in ("loss", "nll", "entropy", "weight_mean", "effective_tokens", "num_tokens"):
        assert their_log[metric] == pytest.approx(our_log[metric], rel=1e-6), metric


@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_model_has_the_gradients_of_a_whole_one(two_ranks, tied):
    assert two_ranks["sharded"][str(tied)] < 1e-12
