"""A comparison that is killed at random moments ends with the records of one that was left alone."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compare_tools import HEAVY, THEN, matrix, one_rate, preload, records_of, run_quietly, write_inputs

STAGES = ("scoring", "base", "tuning", "report", "rl", "summary")
"""What a comparison does, in its order."""


def work(folder: Path, output: Path, log: Path, changes: dict, moment: tuple[str, float] | None) -> None:
    """What the killed process does: it notes begin and end of every stage.

    A moment is a stage and the seconds after its begin at which the system ends the process, as a kill does: no handler
    runs. They are seconds of its own work, so that it is the same moment however busy the machine is.
    """
    import torch

    from ballast.compare import run
    from ballast.compare.jobs import JobContext

    torch.set_num_threads(1)
    preload()
    armed = []

    def note(*what):
        with log.open("a") as file:
            file.write(json.dumps([*what, time.process_time()]) + "\n")

    def noted(stage_of, function):
        def wrapped(*arguments, **options):
            stage = stage_of(*arguments)
            note(stage, "begin")
            if moment is not None and moment[0] == stage and not armed:
                armed.append(stage)
                signal.setitimer(signal.ITIMER_PROF, max(moment[1], 1e-4))
            result = function(*arguments, **options)
            note(stage, "end")
            return result

        return wrapped

    stages = {"score": "scoring", "base": "base", "rl": "rl"}
    run.write_summary = noted(lambda *_: "summary", run.write_summary)
    JobContext.run = noted(lambda _, job, say: stages.get(job.kind, job.cell.role), JobContext.run)
    run_quietly(matrix(folder, output, **changes))


class Runs:
    """Runs of one comparison, each in a process of its own.

    They are forked from a process that has imported everything: imports take longer than all the rest.
    """

    def __init__(self, folder: Path, changes: dict) -> None:
        self.folder, self.changes = folder, changes
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([*HEAVY, "compare_tools"])
        write_inputs(folder)

    def whole(self, name: str) -> dict:
        """Run to the end and return how long a job took in each stage."""
        code, noted = self._run(name, None)
        assert code == 0
        took = {}
        for (stage, what, since), (_, _, until) in itertools.pairwise(noted):
            if what == "begin":
                took.setdefault(stage, until - since)
        return took

    def killed(self, name: str, moment: tuple[str, float]) -> str | None:
        """Return the stage that a run was killed in, None where it was over before or stood between two."""
        code, noted = self._run(name, moment)
        assert code in (0, -signal.SIGPROF)
        return noted[-1][0] if code and noted[-1][1] == "begin" else None

    def _run(self, name: str, moment: tuple[str, float] | None) -> tuple[int, list]:
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        process = self.context.Process(target=work, args=(self.folder, self.folder / name, log, self.changes, moment))
        process.start()
        process.join()
        return process.exitcode, [json.loads(line) for line in log.read_text().splitlines()]


def check(tmp_path, changes, stages):
    """Kill at a random moment of each of the stages, up to two jobs into those of many; return what was hit."""
    rng = random.Random(seed := time.time_ns())
    runs = Runs(tmp_path, changes)
    took = runs.whole("alone")
    landed = []
    for stage in stages:
        share = rng.uniform(0, 0.6 if stages.count(stage) == 1 else 2)
        landed.append(runs.killed("killed", (stage, share * took[stage])))
        print(f"seed {seed}: {share:.2f} of a job into {stage}: landed in {landed[-1]}")
    runs.whole("killed")
    assert records_of(tmp_path / "killed") == records_of(tmp_path / "alone")
    return landed


def test_killed_in_training_and_in_rl(tmp_path):
    changes = {"objectives": ["sft"], "rates": [1e-3], "choose_by": None, "seeds": 1, "then": THEN}
    assert check(tmp_path, changes, ["report", "rl"]) == ["report", "rl"]


@pytest.mark.slow
def test_killed_ten_times_and_in_every_stage(tmp_path):
    stages = ["scoring", "base", "tuning", "tuning", "report", "report", "rl", "rl", "rl", "summary"]
    landed = check(tmp_path, {"then": THEN, "random": True}, stages)
    assert set(landed) >= set(STAGES)


def children(pid):
    """Return the processes that a process started, as the system knows them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            found += [int(stat.parent.name)] if int(fields[1]) == pid and fields[0] != "Z" else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs a system that lists processes in files")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_with_several_processes(tmp_path, how):
    """Nothing lives on, nothing counts as failed, and the rest is done later."""
    write_inputs(tmp_path)
    (tmp_path / "recipe.yaml").write_text(one_rate(tmp_path, "out", then=THEN).to_yaml())
    run_quietly(one_rate(tmp_path, "alone", then=THEN))
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "ballast.cli", "compare", str(tmp_path / "recipe.yaml"), "--jobs", "2"],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list((tmp_path / "out" / "cells").glob("*/metrics.jsonl")):
        time.sleep(0.05)
    started = children(process.pid)
    os.kill(process.pid, how)
    _, said = process.communicate()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert how != signal.SIGINT or said.splitlines()[-1] == "interrupted"
    # Two that run, and one that judges answers, which looks after its parent now and then.
    assert len(started) >= 2
    until = time.monotonic() + 30
    while (alive := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive
    assert not list((tmp_path / "out").rglob("error.txt"))
    assert run_quietly(one_rate(tmp_path, "out", then=THEN), jobs=2)["complete"]
    assert records_of(tmp_path / "out") == records_of(tmp_path / "alone")
