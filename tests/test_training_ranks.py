"""Several processes are one: DDP, FSDP2 and ZeRO, all objectives, full and LoRA, padded and packed, on 33 rows.

The whole matrix is marked slow; a sample of it runs by default. Each setting is one pair of processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sharded import SETTINGS
from sharded_run import train
from training_tools import OBJECTIVES

HERE = Path(__file__).parent
SAMPLE = ("prift-mass:lora:packed", "eksft:full:padded", "talr:full:accumulated")
MATRIX = tuple(
    f"{name}:{kind}:{layout}" for name in OBJECTIVES for kind in ("full", "lora") for layout in ("padded", "packed")
)
NEEDS_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def settings(*names: str):
    return [pytest.param(name, marks=NEEDS_DEEPSPEED if name.startswith("zero") else ()) for name in names]


def launch(
    setting: str, *arguments: str, ranks: int = 2, script: str = "sharded_run.py", limit: int = 300, **more: str
):
    """Run a script of this folder on some ranks under a setting; return the finished process."""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **SETTINGS[setting], **more}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(HERE / script), *arguments]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=limit)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a saved model or adapter."""
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def check_equal(found: Path, wanted: Path, setting: str) -> None:
    ours, theirs = saved(found), saved(wanted)
    assert ours.keys() == theirs.keys()
    # DeepSpeed keeps what the optimiser moves in float32, whose rounding iw-sft amplifies to 1e-4.
    bound = 3e-4 if setting.startswith("zero") else 1e-10
    for name, weight in theirs.items():
        assert float((ours[name] - weight).abs().max()) < bound, f"{found.name}: {name}"


def run_cases(folder: Path, setting: str, cases: tuple[str, ...], limit: int = 300) -> None:
    done = launch(setting, str(folder / setting), *cases, limit=limit)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return where a case that one process has trained is saved, trained once for each dtype."""
    made: dict[tuple[str, bool], Path] = {}

    def found(case: str, wide: bool) -> Path:
        if (case, wide) not in made:
            folder = tmp_path_factory.mktemp("alone")
            trainer = train(folder, case, 1, wide=wide)
            trainer.save_model(str(folder))
            made[case, wide] = folder
        return made[case, wide]

    return found


@pytest.mark.parametrize("setting", settings("fsdp2", "zero3"))
def test_two_processes_are_one(tmp_path, alone, setting):
    run_cases(tmp_path, setting, SAMPLE)
    for case in SAMPLE:
        check_equal(tmp_path / setting / case.replace(":", "-"), alone(case, setting == "fsdp2"), setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", settings(*SETTINGS))
def test_two_processes_are_one_whatever_trains(tmp_path, alone, setting):
    run_cases(tmp_path, setting, MATRIX, limit=3600)
    for case in MATRIX:
        wide = not setting.startswith("zero")
        check_equal(tmp_path / setting / case.replace(":", "-"), alone(case, wide), setting)


@pytest.mark.parametrize(("drop_last", "left"), [(False, [1, 0]), (True, [4, 4])])
def test_the_last_batch_is_known_in_an_epoch_that_is_gone_on_with(drop_last, left):
    from argparse import Namespace

    from accelerate.data_loader import SkipBatchSampler
    from torch.utils.data import BatchSampler

    from ballast.training.ranks import rows_left

    sampler = SkipBatchSampler(BatchSampler(range(33), 4, drop_last), skip_batches=2)
    state = Namespace(end_of_dataloader=True, remainder=-1)
    state.active_dataloader = Namespace(batch_sampler=sampler, dataset=range(33))
    found = [rows_left(Namespace(num_processes=2, process_index=rank, gradient_state=state), 4) for rank in (0, 1)]
    assert found == left
