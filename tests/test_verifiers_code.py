import gzip
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ballast.errors import BallastError
from ballast.evaluation.kinds import KINDS
from ballast.evaluation.tasks import Task
from ballast.verifiers import code, sandbox
from ballast.verifiers.code import CodeLimits, assemble, check_limits, run_program, run_programs
from verifier_attacks import ATTACKS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX resource limits")
needs_bubblewrap = pytest.mark.skipif(
    not hasattr(os, "fork") or sandbox.bubblewrap() is None,
    reason="bubblewrap is not installed, or may not make namespaces here",
)
SANDBOXES = [pytest.param("bwrap", marks=needs_bubblewrap), "rlimits"]

LIMITS = CodeLimits(seconds=3, memory_bytes=256 * 2**20)
ROW = {
    "prompt": "import math\n\n\ndef area(r):\n    '''Area of a circle.'''\n",
    "test": "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 1e-3\n",
    "entry_point": "area",
}


@pytest.fixture(params=SANDBOXES)
def kind(request, monkeypatch):
    """What programs run in."""
    if request.param == "rlimits":
        monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    return request.param


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
def test_how_programs_end(program, status, detail, kind):
    result = run(program)
    assert (result.status, result.sandbox) == (status, kind)
    assert detail in result.detail
    assert result.passed == (status == "passed")


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)", "x = 9**9**9"])
def test_endless_programs_are_stopped(program, kind):
    start = time.monotonic()
    assert run(program, CodeLimits(seconds=0.5)).status == "timeout"
    assert time.monotonic() - start < 15


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_nothing_that_a_program_started_outlives_it(kind):
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
def test_killing_the_runner_gains_nothing(kind):
    marker = f"ballast-orphan-{os.getpid()}"
    program = (
        "import ctypes, os, time\n"
        f"ctypes.CDLL(None).prctl(15, {marker[-15:].encode()!r})\n"
        "os.kill(os.getppid(), 9)\ntime.sleep(120)"
    )
    assert run(program).status == "killed"
    deadline = time.monotonic() + 10
    while (left := running_as(marker[-15:])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_program_passes_but_by_its_tests(attack, kind):
    result = run(ATTACKS[attack])
    assert not result.passed
    result.detail.encode()  # goes into a file


def test_a_program_that_closes_the_way_back_fails_and_one_that_forks_is_judged_once(kind):
    assert run("import os\nos.closerange(3, 64)").status == "failed"
    assert run("import os\nif os.fork() == 0:\n    os._exit(0)\nos.wait()").passed
    assert run("import os\nos.fork()\nassert len('wrong') == 2").status == "failed"


@needs_bubblewrap
@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment of this user's")
@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)", "refused"),
        ("import socket\nsocket.create_connection(('192.0.2.1', 80), 2)", "unreachable"),
        ("import sys\nopen(sys.prefix + '/ballast-new', 'w')", "Read-only file system"),
        ("import sys\nopen(sys.prefix + '/pyvenv.cfg', 'a')", "Read-only file system"),
        ("import os\nos.kill({pid}, 0)", "No such process"),
        ("import os\nraise KeyError([one for one in os.listdir('/proc') if one == '{pid}'])", "KeyError: []"),
        ("import os\nraise KeyError(os.listdir('/run'))", "KeyError: []"),
    ],
)
def test_in_bubblewrap_a_program_reaches_neither_network_nor_files_nor_processes(program, detail):
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = run(program.format(port=server.getsockname()[1], pid=os.getpid()))
    assert (result.status, result.sandbox) == ("failed", "bwrap")
    assert detail in result.detail


def test_without_a_working_bubblewrap_limits_are_what_there_is(tmp_path, monkeypatch):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.bubblewrap.cache_clear()
    try:
        assert sandbox.sandbox() == "rlimits"
        assert run("x = 1").sandbox == "rlimits"
    finally:
        sandbox.bubblewrap.cache_clear()


def test_a_refused_limit_is_an_error_not_a_wrong_answer(kind):
    """A hard limit below ours; the superuser may raise it as long as the capability is there."""
    source = f"""
        import ctypes, resource
        from ballast.errors import BallastError
        from ballast.verifiers import sandbox
        from ballast.verifiers.code import CodeLimits, check_limits, run_program
        if {kind == "rlimits"}:
            sandbox.bubblewrap = lambda: None
        else:
            assert sandbox.bubblewrap()
        ctypes.CDLL(None).prctl(24, 24, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        for refused in (lambda: check_limits(CodeLimits()), lambda: run_program("x = 1", allow_code_execution=True)):
            try:
                print("passed", refused())
            except BallastError as error:
                print(error)
        print(run_program("x = 1", CodeLimits(file_bytes=4096), allow_code_execution=True).status)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    for line in lines[:2]:
        assert "RLIMIT_FSIZE cannot be set to 1048576 where the hard limit is 4096" in line
        assert "so every answer would fail" in line
    assert lines[2] == "passed"


def test_limits_too_narrow_for_any_program_are_refused(kind):
    check_limits(LIMITS)
    with pytest.raises(BallastError, match=r"typing' does not pass within 3 s and 8 MiB \(failed"):
        check_limits(CodeLimits(seconds=3, memory_bytes=8 * 2**20))


def test_limits_are_tried_when_rows_are_checked(monkeypatch):
    seen = []
    monkeypatch.setattr(code, "check_limits", seen.append)
    task = Task("code", "code", [ROW], allow_code_execution=True, code_seconds=3, code_memory_mb=256)
    KINDS["code"].check(task, [ROW])
    assert seen == [LIMITS]


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


def test_the_result_says_what_a_program_ran_in(monkeypatch):
    monkeypatch.setattr(code, "sandbox", lambda: "bwrap")
    assert run("x = 1").sandbox == "bwrap"
