"""Two ranks of four rows are one rank of eight, for gradients and for logged metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny import tiny_model
from training_tools import OBJECTIVES, largest_difference, run, weights

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    output = tmp_path_factory.mktemp("ranks") / "ends.pt"
    cases = [f"{name}:padded" for name in OBJECTIVES]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(HERE / "distributed_run.py"), str(output), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(output, weights_only=True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_are_one(tmp_path, two_ranks, name):
    end, log = two_ranks[f"{name}:padded"]
    alone = run(tmp_path, name, model=tiny_model(dtype=torch.float64), per_device_train_batch_size=8, max_steps=2)
    assert largest_difference(weights(alone), end) < 1e-10
    for metric, value in alone.state.log_history[0].items():
        if metric in (
            "loss",
            "nll",
            "entropy",
            "weight_mean",
            "weight_zero_share",
            "effective_tokens",
            "kl",
            "num_tokens",
        ):
            assert log[metric] == pytest.approx(value, rel=1e-6, abs=1e-9), metric
