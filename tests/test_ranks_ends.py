"""How a command on several processes ends: with one line, the exit code of who began, and what was done left whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ranks_run
from test_ranks_commands import HERE, start

pytestmark = pytest.mark.slow

SAMPLE = """\
model: model
data: {train: asked.jsonl}
groups: {file: groups, verifier: "fatal_judge:judge", judge_cut_off: true, own: 2, max_new_tokens: 4}
"""
TRAIN = """\
model: model
data: {train: asked.jsonl}
objective: prift-mass
reference: {cache: cache}
training: {per_device_train_batch_size: 2, logging_steps: 1, report_to: none, save_strategy: steps, save_steps: 1000}
evaluation: {tasks: []}
output: out
"""


@pytest.fixture
def folder(tmp_path):
    ranks_run.workspace(tmp_path)
    asked = [{"prompt": f"{n}+{n}=", "completion": f"{2 * n}", "answer": str(2 * n)} for n in range(200)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "sample.yaml").write_text(SAMPLE)
    (tmp_path / "train.yaml").write_text(TRAIN)
    return tmp_path


def ballast(folder, *words, **more):
    return start(folder, "-m", "ballast.cli", *words, **more)


def parts(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.mark.parametrize("again", [1, 3])
def test_a_killed_rank_ends_the_command_and_another_number_goes_on(folder, again):
    died = ballast(folder, "sample", "sample.yaml", "--nproc", "2", KILL="1")
    assert died.returncode == 137
    (line,) = [line for line in died.stderr.splitlines() if not line.startswith("sampling:")]
    assert line.startswith("rank 1 was ended by SIGKILL")
    assert "part-00001.parquet" not in parts(folder / "groups")
    words = ["sample", "sample.yaml", *([] if again == 1 else ["--nproc", str(again)])]
    assert ballast(folder, *words).returncode == 0
    assert ballast(folder, "sample", "sample.yaml", "groups.file=whole").returncode == 0
    assert parts(folder / "groups") == parts(folder / "whole")


def test_what_all_ranks_come_upon_is_one_line(folder):
    done = ballast(folder, "sample", "sample.yaml", "--nproc", "2", "groups.owm=2")
    assert done.returncode == 2
    assert done.stderr == "command line: groups.owm: unknown key; did you mean 'own'?\n"
    assert done.stdout == ""


def test_what_one_rank_comes_upon_is_one_line(folder):
    first = ballast(folder, "sample", "sample.yaml")
    assert first.returncode == 0
    (folder / "groups" / "part-00000.parquet").write_bytes(b"")
    done = ballast(folder, "sample", "sample.yaml", "--nproc", "2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "part-00000.parquet: damaged" in line


@pytest.mark.parametrize("launcher", ["nproc", "torchrun"])
def test_training_starts_its_ranks(folder, launcher):
    words = ["train", "train.yaml", "training.max_steps=3", "training.use_cpu=true"]
    done = ballast(folder, *words, "--nproc", "2") if launcher == "nproc" else ballast(folder, *words, processes=2)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "out" / "run.json").read_text())
    assert (record["processes"], record["status"]) == (2, "finished")
    assert done.stdout.count("holds 200 rows") == 1


def test_sigterm_reaches_the_ranks_which_save_a_last_checkpoint(folder):
    words = ["-m", "ballast.cli", "train", "train.yaml", "training.max_steps=100000", "--nproc", "2"]
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    running = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    log = folder / "out" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 1) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=200)
    assert running.returncode == 143, said
    (line,) = [line for line in said.splitlines() if not line.startswith("scoring:")]
    assert "with --resume goes on from out/checkpoint-" in line
    assert [*Path(folder / "out").glob("checkpoint-*")]


def test_ctrl_c_is_said_once(folder):
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    (folder / "long.jsonl").write_text((folder / "asked.jsonl").read_text() * 40)
    words = ["-m", "ballast.cli", "sample", "sample.yaml", "--nproc", "2", "data.train=long.jsonl"]
    running = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    while not [*folder.glob("groups/part-*")] and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=200)
    assert running.returncode == 130
    assert [line for line in said.splitlines() if not line.startswith("sampling:")] == ["interrupted"]
