"""Two ranks of four rows are one rank of eight, for gradients and for logged metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distributed_run import UNEVEN, streamed
from tiny import tiny_model
from training_tools import OBJECTIVES, dataset, largest_difference, run, weights

HERE = Path(__file__).parent


def launch(script: str, *arguments: str) -> str:
    """Run a script of this folder on two ranks of gloo and return what it printed."""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    output = tmp_path_factory.mktemp("ranks") / "ends.pt"
    launch("distributed_run.py", str(output), *OBJECTIVES)
    return torch.load(output, weights_only=True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_are_one(tmp_path, two_ranks, name):
    end, log, held_out, _ = two_ranks[name]
    alone = run(tmp_path, name, model=tiny_model(dtype=torch.float64), per_device_train_batch_size=8, max_steps=2)
    assert largest_difference(weights(alone), end) < 1e-10
    measured = alone.evaluate(dataset(13).select(range(8, 13)))
    for metric in ("eval_loss", "eval_entropy", "eval_weight_mean"):
        assert held_out[metric] == pytest.approx(measured[metric], rel=1e-6), metric
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


def test_two_ranks_train_the_same_half(tmp_path, two_ranks):
    settings = {"per_device_train_batch_size": 8, "max_steps": 2, "half": 0.5}
    alone = run(tmp_path, "sft", model=tiny_model(dtype=torch.float64), **settings)
    assert largest_difference(weights(alone), two_ranks["half"]) < 1e-10
    assert len(two_ranks["half"]) == len(alone.half.trained)


def test_two_ranks_read_a_stream_as_one(tmp_path, two_ranks):
    assert largest_difference(streamed(tmp_path, 8), two_ranks["streamed"]) < 1e-10


@pytest.mark.parametrize("layout", UNEVEN)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_that_fill_up_the_last_batch_train_nothing(tmp_path, two_ranks, name, layout):
    end, tokens = two_ranks[name][3][layout]
    given = {"per_device_train_batch_size": 8, "max_steps": -1, "num_train_epochs": 2, "max_length": None}
    model = tiny_model(dtype=torch.float64)
    alone = run(
        tmp_path, name, model=model, data=dataset(UNEVEN[layout]), padding_free=layout == "padding_free", **given
    )
    assert alone.state.global_step == 4
    assert largest_difference(weights(alone), end) < 1e-10
    assert tokens == [log["num_tokens"] for log in alone.state.log_history if "loss" in log]


def test_a_sharded_head_has_the_gradients_of_a_whole_one():
    results = [line.split() for line in launch("fsdp_run.py").splitlines() if line.startswith("RESULT")]
    assert [tied for _, tied, _, _ in results] == ["True", "False"]
    for _, _, difference, size in results:
        assert float(difference) < 1e-12 * float(size)
