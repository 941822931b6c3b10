"""Several runs on one machine with several GPUs: each process sees one, and nobody starts on the first together."""

import pytest
import torch

from ballast.compare import Plan, pool
from ballast.compare.jobs import Job, JobContext
from ballast.compare.pool import Machine, Processes, Serial, visible_gpus
from ballast.compare.run import _jobs
from ballast.records.folder import Store
from compare_tools import Listed, one_rate, write_inputs

STUB = """
import json, os, sys, time
sys.stdin.readline()
print("{}", flush=True)
for line in sys.stdin:
    time.sleep(0.3)
    print(json.dumps({"said": [os.environ.get("CUDA_VISIBLE_DEVICES", "none")]}), flush=True)
"""


class Told:
    def __init__(self):
        self.lines = []

    def began(self, job):
        pass

    def ended(self, job):
        pass

    def said(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpus")
    write_inputs(path)
    return path


@pytest.fixture
def context(folder, tmp_path):
    found = JobContext(Plan(one_rate(folder, tmp_path / "out", seeds=6)), Store(tmp_path / "out"))
    found.store.root.mkdir()
    return found


@pytest.mark.parametrize(
    ("count", "named", "expected"),
    [
        (0, None, []),
        (0, "", []),
        (3, None, ["0", "1", "2"]),
        (2, "5,3", ["5", "3"]),
        (2, "GPU-a, MIG-b", ["GPU-a", "MIG-b"]),
        # CUDA leaves out what follows one that it does not find.
        (1, "5,-1,3", ["5"]),
    ],
)
def test_gpus_are_named_as_the_environment_names_them(monkeypatch, count, named, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected


@pytest.mark.parametrize(
    ("gpus", "count", "expected"),
    [(["5", "3"], 2, {"5", "3"}), (["5", "3"], 3, {"5", "3"}), (["7"], 2, {"7"}), ([], 2, {""})],
)
def test_every_process_sees_one(context, monkeypatch, gpus, count, expected):
    monkeypatch.setattr(pool, "PROGRAM", ("-c", STUB))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(gpus))
    told, processes = Told(), Processes(context, count, None, gpus)
    processes.each(Listed([Job(kind="train", cell=cell) for cell in context.plan.report({"sft": 1e-3})]), told)
    processes.close()
    assert set(told.lines) == expected
    assert len(told.lines) == 6


@pytest.mark.parametrize(
    ("gpus", "count", "kind", "default"),
    [([], 1, Serial, 1), (["0"], 1, Serial, 1), (["0", "1"], 1, Processes, 2), (["0", "1"], 2, Processes, 2)],
)
def test_a_run_never_sees_several(context, monkeypatch, gpus, count, kind, default):
    """One process with two GPUs would wrap the model in DataParallel."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: bool(gpus))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(gpus))
    with Machine(count, None).runner(context) as runner:
        assert type(runner) is kind
        assert list(getattr(runner, "gpus", gpus)) == gpus
    assert _jobs(None) == default
