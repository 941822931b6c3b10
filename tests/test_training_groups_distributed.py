"""Two ranks of two prompts are one rank of four: answers, gradients and metrics."""

from __future__ import annotations

import pytest
import torch

from distributed_groups import OBJECTIVES, PROMPTS, train
from test_training_distributed import launch
from training_tools import largest_difference, weights


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    output = tmp_path_factory.mktemp("ranks") / "ends.pt"
    launch("distributed_groups.py", str(output))
    return torch.load(output, weights_only=True)


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_are_one(tmp_path, two_ranks, name, kind):
    end, logs = two_ranks[f"{name}, {kind}"]
    alone = train(tmp_path, name, PROMPTS[kind], 4)
    assert largest_difference(weights(alone), end) < 1e-10
    mine = [log for log in alone.state.log_history if "loss" in log]
    assert len(logs) == len(mine) == 4
    for ours, theirs in zip(mine, logs, strict=True):
        for metric, value in ours.items():
            if not metric.startswith("seconds"):
                assert theirs[metric] == pytest.approx(value, rel=1e-6, abs=1e-9), metric
