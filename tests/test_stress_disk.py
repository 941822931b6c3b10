"""A disk that is full or read only, and two processes on one output: one line, nothing half done taken for whole."""

import json
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from ballast import loop, models
from ballast.errors import BallastError
from ballast.pipeline import inspect
from ballast.pipeline import run as pipeline_run
from ballast.pipeline.run_folder import alone
from stress import LAB, RL, STEPS, VERIFIER, before, fill, refusal, run, small_disk


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as place:
        yield place


COMPARE = (
    "compare={objectives: [sft], rates: [1e-3], seeds: 1}",
    "evaluation.tasks=[{name: text, kind: nll, data: 'lab:forgetting', limit: 2}]",
    STEPS.replace("steps, save_steps: 1", "'no'"),
)
GROUPS = f"groups={{verifier: '{VERIFIER}', own: 2, max_new_tokens: 4, file: DISK/out}}"
CASES = {
    "score": (("score", *LAB, "objective=prift-mass", "reference.cache=DISK/out"), models, "load_model", 1),
    "sample": (("sample", *LAB, "objective=gft", GROUPS), models, "load_model", 1),
    "checkpoint": (("train", *LAB, "objective=sft", STEPS, "output=DISK/out"), loop.CheckedLoop, "_save_checkpoint", 2),
    "model": (("train", *LAB, "objective=sft", STEPS, "output=DISK/out"), pipeline_run, "save_final", 1),
    "record": (("train", *LAB, "objective=sft", STEPS, "output=DISK/out"), pipeline_run, "write_record", 1),
    "rl": (("rl", *LAB, RL, "output=DISK/out"), pipeline_run, "save_final", 1),
    "compare": (("compare", *LAB, *COMPARE, "output=DISK/out", "--jobs", "1"), pipeline_run, "save_final", 1),
    "tokens": (("inspect", *LAB, "--objective", "sft", "--record", "DISK/out.json"), inspect, "load_models", 1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(name, disk, monkeypatch):
    words, owner, function, call = CASES[name]
    words = [word.replace("DISK", str(disk)) for word in words]
    with monkeypatch.context() as patch:
        before(patch, owner, function, lambda: fill(disk), call=call)
        said = refusal(run(*words))
    assert str(disk / "out") in said
    assert "No space left" in said or "cannot be written" in said
    (disk / "filler").unlink()
    began = list((disk / "out").glob("checkpoint-*"))
    again = run(*words, *(["--resume"] if began else []))
    assert again.exit_code == 0, (again.output, again.exception)
    assert not list(disk.rglob("*.tmp"))
    for record in disk.rglob("run.json"):
        assert json.loads(record.read_text())["status"] == "finished"


def test_a_report_on_a_full_disk_is_one_line(disk):
    done = run("train", *LAB, "objective=sft", STEPS.replace("steps, save_steps: 1", "'no'"), f"output={disk}/out")
    assert done.exit_code == 0, done.output
    fill(disk)
    assert f"{disk}/out" in refusal(run("report", f"{disk}/out"))
    assert not list(disk.rglob("report.*"))


def read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


@pytest.mark.parametrize(
    ("name", "when"), [("score", "from the start"), ("score", "midway"), ("record", "from the start")]
)
def test_a_read_only_folder_is_one_line(name, when, disk, monkeypatch):
    words, owner, function, call = CASES[name]
    if when == "midway":
        before(monkeypatch, owner, function, lambda: read_only(disk), call=call)
    else:
        read_only(disk)
    said = refusal(run(*(word.replace("DISK", str(disk)) for word in words)))
    assert str(disk / "out") in said


def test_a_second_process_on_an_output_is_refused(tmp_path, monkeypatch):
    """Both found the folder empty; the second comes to its first step later."""
    output = tmp_path / "out"
    output.mkdir()
    with FileLock(output / ".lock"):
        said = refusal(run("train", *LAB, "objective=sft", STEPS, f"output={output}"))
    assert said.startswith(f"{output}: another process is training into this folder")
    assert [path.name for path in output.iterdir()] in ([], [".lock"])


def test_a_run_does_not_write_over_one_that_came_in_between(tmp_path):
    with alone(tmp_path / "out", resume=False):
        Path(tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(BallastError, match="another process has trained"), alone(tmp_path / "out", resume=False):
        pass
    with alone(tmp_path / "out", resume=True):
        pass
