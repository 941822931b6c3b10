"""A server that is started for a model: how, until when, and that it never outlives whoever started it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ballast.engines import vllm
from ballast.engines.options import VllmEngine
from ballast.errors import BallastError

PROGRAM = str(Path(__file__).with_name("fake_vllm.py"))
COMMAND = (sys.executable, PROGRAM)


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(*pids):
    """Wait for processes to end."""
    until = time.monotonic() + 30
    while any(map(lives, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(lives, pids))


def seen(folder):
    return json.loads((folder / "served.json").read_text())


def options(**changes):
    return VllmEngine(**{"command": COMMAND, "start_seconds": 60.0, **changes})


def test_a_server_is_started_on_the_folder_and_ends_with_the_block(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    given = options(arguments=["--max-model-len", "64"], environment={"VLLM_CPU_KVCACHE_SPACE": "1"})
    with vllm.opened(given, str(tmp_path), "bfloat16") as engine:
        found = seen(tmp_path)
        assert lives(found["pid"])
        assert lives(found["child"])
        assert engine.version == "1.2"
        assert engine.model.startswith("ballast-")
    assert gone(found["pid"], found["child"])
    told = found["arguments"]
    assert told[0] == str(tmp_path)
    named = dict(zip(told[1::2], told[2::2], strict=True))
    assert named["--host"] == "127.0.0.1"
    assert named["--served-model-name"] == engine.model
    assert named["--dtype"] == "bfloat16"
    assert named["--generation-config"] == "vllm"
    assert named["--max-model-len"] == "64"
    assert found["environment"]["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "PYTHONPATH" not in found["environment"]


def test_an_error_in_the_block_ends_it_too_and_a_dtype_of_the_recipe_counts(tmp_path):
    with pytest.raises(KeyboardInterrupt), vllm.opened(options(dtype="float16"), str(tmp_path), "float32"):
        raise KeyboardInterrupt
    found = seen(tmp_path)
    assert gone(found["pid"], found["child"])
    assert found["arguments"][found["arguments"].index("--dtype") + 1] == "float16"


STARTS = """
import sys, time
from ballast.engines import vllm
from ballast.engines.options import VllmEngine
with vllm.opened(VllmEngine(command=sys.argv[1:3]), sys.argv[3], "float32"):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_when_ballast_is_killed(tmp_path, how):
    arguments = [sys.executable, "-c", STARTS, *COMMAND, str(tmp_path)]
    places = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=places)
    assert process.stdout.readline() == "ready\n"
    found = seen(tmp_path)
    assert lives(found["child"])
    os.kill(process.pid, how)
    process.wait()
    assert gone(found["pid"], found["child"])
    assert not list(tmp_path.glob("ballast-engine-*"))


def test_a_server_that_ends_says_its_code_and_last_line(tmp_path):
    words = r"the server ended with exit code 3 \(no kernel image is available\); the same command by hand"
    with (
        pytest.raises(BallastError, match=words),
        vllm.opened(options(command=(*COMMAND, "--die")), str(tmp_path), "auto"),
    ):
        raise AssertionError
    assert gone(seen(tmp_path)["child"])


def test_a_server_that_dies_midway_is_told_from_one_that_is_away(tmp_path):
    def ask_the_dead():
        with vllm.opened(options(retries=0), str(tmp_path), "float32") as engine:
            os.kill(seen(tmp_path)["pid"], signal.SIGKILL)
            assert gone(seen(tmp_path)["pid"])
            engine.client.get("/models", vllm.Version)

    with pytest.raises(BallastError, match=r"the server ended with exit code 137 .*cannot be reached"):
        ask_the_dead()
    assert gone(seen(tmp_path)["child"])


def test_a_server_that_does_not_start_in_time_is_ended(tmp_path):
    # It takes the folder for a program's, and never listens.
    slow = options(command=(sys.executable, "-c", "import time; time.sleep(600)"), start_seconds=0.6)
    words = r"has not started within 0.6 seconds .*raise engine.start_seconds"
    with pytest.raises(BallastError, match=words), vllm.opened(slow, str(tmp_path), "float32"):
        raise AssertionError


def test_a_program_that_is_not_there_is_named_with_what_to_do():
    words = r"engine.command: there is no program 'no-such-vllm' here.*/path/to/env/bin/vllm"
    with pytest.raises(BallastError, match=words), vllm.opened(options(command=["no-such-vllm"]), ".", "float32"):
        raise AssertionError
