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
from tiny import char_tokenizer, tiny_model
from training_tools import OBJECTIVES, config, dataset

HERE = Path(__file__).parent
SAMPLE = ("prift-mass:lora:packed", "eksft:full:padded", "talr:full:accumulated")
MATRIX = tuple(
    f"{name}:{kind}:{layout}" for name in OBJECTIVES for kind in ("full", "lora") for layout in ("padded", "packed")
)
NEEDS_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")

ROUNDED = (*SAMPLE, "sft:full:packed", "iw-sft:full:padded", "iw-sft:lora:packed")
"""Cases that DeepSpeed also trains as it comes, in float32."""
EQUAL = 1e-12
"""How far apart two runs in float64 may end, whose largest amplification of an error (iw-sft) is 300."""
TIMES = 3.0
"""How many times the error of one process that of several may be, in float32."""


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


def difference(found: Path, wanted: Path) -> float:
    """Return the largest difference between the weights of two saved models."""
    ours, theirs = saved(found), saved(wanted)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in theirs)


def run_cases(folder: Path, setting: str, dtype: str, cases: tuple[str, ...], limit: int = 300) -> dict[str, Path]:
    """Train the cases on two processes; return where each is saved."""
    done = launch(setting, str(folder), dtype, *cases, limit=limit)
    assert done.returncode == 0, done.stderr[-4000:]
    return {case: folder / case.replace(":", "-") for case in cases}


def beyond(found: dict[str, float], bounds: dict[str, float]) -> list[str]:
    """Return all cases whose difference is beyond their bound, with both."""
    worst = max(found, key=lambda case: found[case] / bounds[case])
    print(f"{len(found)} cases, nearest to its bound: {worst} {found[worst]:.1e} of {bounds[worst]:.1e}")
    return [f"{case} {found[case]:.1e} > {bounds[case]:.1e}" for case in found if not found[case] <= bounds[case]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return where a case that one process has trained is saved, trained once for each dtype and number of parts."""
    made: dict[tuple[str, torch.dtype, int], Path] = {}

    def found(case: str, dtype: torch.dtype = torch.float64, parts: int = 1) -> Path:
        if (case, dtype, parts) not in made:
            folder = tmp_path_factory.mktemp("alone")
            trainer = train(folder, case, 1, dtype, parts)
            trainer.save_model(str(folder))
            made[case, dtype, parts] = folder
        return made[case, dtype, parts]

    return found


def check_float64(folder: Path, alone, setting: str, cases: tuple[str, ...], limit: int = 300) -> None:
    places = run_cases(folder, setting, "float64", cases, limit)
    found = {case: difference(place, alone(case)) for case, place in places.items()}
    assert not beyond(found, dict.fromkeys(cases, EQUAL))


def rounding(alone, case: str) -> float:
    """Return how far one process in float32 ends from float64, at most, however it splits a step."""
    return max(difference(alone(case, torch.float32, parts), alone(case)) for parts in (1, 2, 4))


@pytest.mark.parametrize("setting", settings("fsdp2", "zero3"))
def test_two_processes_are_one(tmp_path, alone, setting):
    check_float64(tmp_path, alone, setting, SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("setting", settings(*SETTINGS))
def test_two_processes_are_one_whatever_trains(tmp_path, alone, setting):
    check_float64(tmp_path, alone, setting, MATRIX, limit=3600)


@pytest.mark.slow
@pytest.mark.parametrize("setting", settings(*(name for name in SETTINGS if name.startswith("zero"))))
def test_deepspeed_rounds_as_one_process_does(tmp_path, alone, setting):
    places = run_cases(tmp_path, setting, "float32", ROUNDED)
    found = {case: difference(place, alone(case)) for case, place in places.items()}
    assert not beyond(found, {case: TIMES * rounding(alone, case) for case in ROUNDED})


def test_columns_keep_their_digits_under_deepspeed(tmp_path, monkeypatch):
    from argparse import Namespace

    from ballast import Trainer

    data = dataset(2)
    trainer = Trainer(tiny_model(), config(tmp_path), train_dataset=data, processing_class=char_tokenizer())
    plugin = Namespace(hf_ds_config=Namespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin)
    # Log-probabilities from a cache, the number of a group: bfloat16 has neither.
    batch = {"ref_logprob": torch.tensor([[-1.2345678, float("nan")]]), "group": torch.tensor([[257.0, 257.0]])}
    prepared = trainer._prepare_inputs(dict(batch))
    for name, column in batch.items():
        torch.testing.assert_close(prepared[name], column, rtol=0, atol=0, equal_nan=True)


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
