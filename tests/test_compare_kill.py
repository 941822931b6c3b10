"""A comparison that is killed at random moments ends with the records of one that was left alone."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from compare_tools import THEN, matrix, records_of, run_quietly, write_inputs

HEAVY = ("ballast.compare", "ballast.pipeline", "ballast.training", "ballast.rl.compat", "ballast.evaluation.kinds")


def work(folder: Path, output: Path, changes: dict) -> None:
    """What the killed process does."""
    import torch

    torch.set_num_threads(1)
    run_quietly(matrix(folder, output, **changes))


@pytest.fixture(scope="module")
def fresh():
    """Return what starts a function in a process of its own, without importing everything again each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*HEAVY, "compare_tools"])

    def start(*arguments):
        process = context.Process(target=work, args=arguments)
        process.start()
        return process

    return start


def killed(fresh, moments, folder, output, changes):
    """Start the comparison, kill it after so many seconds of its work, again and again; return how often it lived."""
    lived = 0
    for moment in moments:
        process = fresh(folder, output, changes)
        began = time.monotonic()
        while not (output / "compare.json").exists() and process.is_alive() and time.monotonic() - began < 300:
            time.sleep(0.01)
        process.join(moment)
        lived += process.exitcode is not None
        process.kill()
        process.join()
    return lived


def check(fresh, tmp_path, moments_of, changes):
    write_inputs(tmp_path)
    alone = fresh(tmp_path, tmp_path / "alone", changes)
    began = time.monotonic()
    alone.join()
    assert alone.exitcode == 0
    took = time.monotonic() - began
    lived = killed(fresh, moments_of(took), tmp_path, tmp_path / "killed", changes)
    last = fresh(tmp_path, tmp_path / "killed", changes)
    last.join()
    assert last.exitcode == 0
    assert records_of(tmp_path / "killed") == records_of(tmp_path / "alone")
    return lived


def test_killed_twice(fresh, tmp_path):
    """Once early, once late."""
    rng = random.Random(time.time_ns())
    changes = {"objectives": ["sft"], "seeds": 1, "then": THEN}
    moments = [rng.uniform(0.05, 0.3), rng.uniform(0.05, 0.5)]
    print("shares of an undisturbed run:", moments)
    check(fresh, tmp_path, lambda took: [share * took for share in moments], changes)


@pytest.mark.slow
def test_killed_ten_times(fresh, tmp_path):
    rng = random.Random(time.time_ns())
    changes = {"then": THEN}
    moments = [rng.uniform(0.02, 0.25) for _ in range(10)]
    print("shares of an undisturbed run:", moments)
    lived = check(fresh, tmp_path, lambda took: [share * took for share in moments], changes)
    assert lived < 5, "most kills came too late to kill anything"
