import gzip
import json
import os
import time
from pathlib import Path

import pytest

from ballast.errors import BallastError
from ballast.verifiers.code import CodeLimits, assemble, run_program, run_programs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX resource limits")

LIMITS = CodeLimits(seconds=3, memory_bytes=256 * 2**20)
ROW = {
    "prompt": "import math\n\n\ndef area(r):\n    '''Area of a circle.'''\n",
    "test": "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 1e-3\n",
    "entry_point": "area",
}


def run(program, limits=LIMITS):
    return run_program(program, limits, allow_code_execution=True)


def alive(marker):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += [entry.name] if marker.encode() in (entry / "cmdline").read_bytes() else []
            except OSError:
                continue
    return found


def running_as(name):
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue
        if lines[0] == f"Name:\t{name}" and not any(line.startswith("State:\tZ") for line in lines):
            found.append(status.parent.name)
    return found


@pytest.mark.parametrize("allowed", [False, None, "yes", 1])
def test_nothing_runs_unless_allowed(allowed, tmp_path):
    target = tmp_path / "written"
    with pytest.raises(BallastError, match="allow_code_execution=True"):
        run_program(f"open({str(target)!r}, 'w')", allow_code_execution=allowed)
    with pytest.raises(BallastError, match="2 programs written by the model would run"):
        run_programs(["", ""], allow_code_execution=allowed)
    assert not target.exists()


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("x = 1", "passed", ""),
        ("assert 1 == 2, 'unequal'", "failed", "AssertionError: unequal"),
        ("def broken(:", "failed", "SyntaxError"),
        ("import sys; sys.exit(0)", "failed", "SystemExit"),
        ("import os; os._exit(0)", "failed", "left before"),
        ("import os; os.abort()", "killed", "SIGABRT"),
        ("a = [0] * 10**9", "failed", "MemoryError"),
        ("open('f', 'wb').write(b'0' * 10**8)", "failed", "File too large"),
        ("print('x' * 10**6)", "passed", ""),
        ("import os; assert not any(k for k in os.environ if k != 'LC_CTYPE')", "passed", ""),
        ("import os; assert os.listdir('.') == []; open('f', 'w').write('1')", "passed", ""),
        ("assert input() == ''", "failed", "EOFError"),
        ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
    ],
)
def test_how_programs_end(program, status, detail):
    result = run(program)
    assert result.status == status
    assert detail in result.detail
    assert result.passed == (status == "passed")


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)", "x = 9**9**9"])
def test_endless_programs_are_stopped(program):
    start = time.monotonic()
    assert run(program, CodeLimits(seconds=0.5)).status == "timeout"
    assert time.monotonic() - start < 15


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_nothing_that_a_program_started_outlives_it(tmp_path):
    marker = f"ballast-leftover-{os.getpid()}"
    spawn = (
        "import os, sys, time\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        f"            os.execv({os.sys.executable!r}, ['python', '-c', 'import time; time.sleep(120)', {marker!r}])\n"
        "        time.sleep(120)\n"
        "time.sleep(0.5)\n"
    )
    assert run(spawn).passed
    assert alive(marker) == []
    assert run(spawn + "import time; time.sleep(60)", CodeLimits(seconds=1)).status == "timeout"
    assert alive(marker) == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_killing_the_runner_gains_nothing():
    marker = f"ballast-orphan-{os.getpid()}"
    program = (
        "import os, time\n"
        f"open('/proc/self/comm', 'w').write({marker[-15:]!r})\n"
        "os.kill(os.getppid(), 9)\ntime.sleep(120)"
    )
    assert run(program).status == "killed"
    deadline = time.monotonic() + 10
    while (left := running_as(marker[-15:])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_assembly():
    body = "    return math.pi * r * r\n"
    continued = assemble(ROW, body + "\n\ndef other():\n    syntax error here\n")
    assert "syntax error" not in continued
    whole = "def area(r):\n    return math.pi * r**2\n"
    for completion in (body, f"Sure:\n```python\n{whole}```\nDone.", whole):
        program = assemble(ROW, completion)
        assert program.startswith("import math")
        assert run(program).passed
    assert not run(assemble(ROW, "    return 3\n")).passed
    assert not run(assemble(ROW, "")).passed


def test_human_eval(real_data):
    with gzip.open(real_data / "data/code/HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file][::8]
    right = [assemble(row, row["canonical_solution"]) for row in rows]
    wrong = [assemble(row, "    return None\n") for row in rows[:4]]
    seen = []
    results = run_programs(
        right + wrong, allow_code_execution=True, progress=lambda done, total: seen.append((done, total))
    )
    assert [one.status for one in results[: len(right)]] == ["passed"] * len(right)
    assert not any(one.passed for one in results[len(right) :])
    assert seen[-1] == (len(right) + 4, len(right) + 4)
