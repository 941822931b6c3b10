"""Verifiers in a worker process: whatever one does costs one answer."""

import datetime
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from ballast.errors import BallastError
from ballast.verifiers import worker
from ballast.verifiers.registry import MATH, check_rows, score_answers, verifier
from ballast.verifiers.worker import VerifierTimeout, VerifierUnavailable, VerifierWorker

SLOW = "$9^{9^{9^{9}}}$"
MODULE = """
import ctypes, datetime, os, signal, subprocess, sys, threading, time
from ballast.errors import BallastError
from ballast.evaluation import Verifier

print("printed on import")
hoard = []

def length(completion, row):
    return len(completion) / row.get("full", 4)

def wild(completion, row):
    if completion == "leave":
        os._exit(3)
    if completion == "exit":
        sys.exit("no")
    if completion == "crash":
        ctypes.string_at(0)
    if completion == "loop":
        while True:
            pass
    if completion == "interpreter":
        return 9 ** 9 ** 9
    if completion == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if completion == "sleep":
        time.sleep(60)
    if completion == "memory":
        kept = bytes(6 * 2**30)
    if completion == "hoard":
        while True:
            hoard.append(bytes(2**30))
    if completion == "some memory":
        return float(len(bytes(2**29)) == 2**29)
    if completion == "print":
        print('{"score": 0.5}', flush=True)
        os.write(1, b'{"score": 0.5}' + bytes([10]))
        sys.stdout.buffer.write(b"\\xff" * 100_000)
    if completion == "ask":
        return 1.0 if not sys.stdin.read() else 0.0
    if completion == "child":
        started = subprocess.Popen(["sleep", "60"])
        open(row["pid"], "w").write(str(started.pid))
        time.sleep(60)
    if completion == "fork":
        os.fork()
        return 0.25
    if completion == "timer":
        default = signal.getsignal(signal.SIGPROF) == signal.SIG_DFL
        return float(default and signal.getitimer(signal.ITIMER_PROF)[0] > 5)
    if completion == "close":
        os.closerange(3, 64)
    if completion in ("forge", "forge and wait", "forge garbage"):
        line = b"{}" if completion == "forge garbage" else b'{"score": 1.0}' + bytes([10])
        for fd in range(3, 16):
            try:
                os.write(fd, line)
            except OSError:
                pass
        time.sleep(0.3 if completion == "forge and wait" else 0)
        return 0.0
    if completion == "flood":
        while True:
            for fd in range(3, 16):
                try:
                    os.write(fd, b"x" * 4096)
                except OSError:
                    pass
    if completion == "leave an alarm":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        return 1.0
    if completion == "a second":
        time.sleep(1)
        return 1.0
    if completion == "unnamed signal":
        os.kill(os.getpid(), 40)
    if completion == "long error":
        raise ValueError("\x1b[2J" + "x" * 10**7)
    if completion == "raise":
        raise KeyError("gone")
    if completion == "exception without text":
        class Odd(Exception):
            __str__ = None
        raise Odd
    returned = {"none": None, "text": "1", "nan": float("nan"), "two": 2, "list": [1], "complex": 1j}
    returned |= {"inf": float("inf"), "huge": 10**400, "minus": -1, "bytes": b"1", "true": True, "false": False}
    return returned.get(completion, 1.0)

def where(completion, row):
    return float(os.getcwd() == row["cwd"] and sys.path == row["path"])

def kinds(completion, row):
    return float(isinstance(row["day"], datetime.date) and row["pair"] == (1, b"x") and completion == "é\\ud800")

def alarm(completion, row):
    def late(*_):
        raise TimeoutError("own alarm")
    signal.signal(signal.SIGALRM, late)
    signal.alarm(1)
    time.sleep(30)

def need_full(row):
    if "full" not in row:
        raise BallastError("no 'full'")

checked = Verifier("checked", length, need_full)
"""
NUMBER = iter(range(10**6))


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    worker.close()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module with the verifiers above; every test has its own, since modules are imported once."""
    name = f"verifiers_of_ones_own_{next(NUMBER)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_function_of_ones_own_judges(module, capfd):
    own = verifier(f"{module}:length")
    assert [own(text, {}) for text in ("", "ab", "abcd")] == [0, 0.5, 1]
    assert own("ab", {"full": 2}) == 1
    assert "printed" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("completion", "words"),
    [
        ("leave", "left with exit code 3"),
        ("exit", "SystemExit: no"),
        ("crash", "was ended by SIGSEGV"),
        ("memory", "MemoryError: it may take 4 GiB"),
        ("close", "left with exit code 1"),
        ("raise", "KeyError: 'gone' ("),
        ("exception without text", "Odd"),
        ("none", "TypeError"),
        ("text", "is no number"),
        ("nan", "scores lie in 0 … 1"),
        ("two", "scores lie in 0 … 1"),
        ("list", "TypeError"),
        ("complex", "TypeError"),
        ("inf", "scores lie in 0 … 1"),
        ("minus", "scores lie in 0 … 1"),
        ("huge", "OverflowError"),
        ("bytes", "is no number"),
        ("unnamed signal", "was ended by signal 40"),
        ("forge", "wrote into the pipe of its verdicts"),
        ("forge and wait", "wrote into the pipe of its verdicts"),
        ("forge garbage", "wrote into the pipe of its verdicts"),
        ("flood", "wrote into the pipe of its verdicts"),
        ("long error", "ValueError: \\x1b[2Jxxx"),
    ],
)
def test_what_goes_wrong_is_a_counted_0_and_the_next_answer_is_judged(module, completion, words):
    wild = verifier(f"{module}:wild", seconds=20)
    with pytest.warns(UserWarning, match=r"1 exceptions and 0 time-outs in 3"):
        scored = score_answers(wild, [("fine", {}), (completion, {}), ("fine", {})])
    assert scored.scores == (1, 0, 1)
    assert (scored.errors, scored.timeouts) == (1, 0)
    assert words in scored.first_error


def test_true_and_false_are_scores(module):
    wild = verifier(f"{module}:wild", seconds=20)
    assert [wild(text, {}) for text in ("true", "false")] == [1, 0]


def test_an_alarm_that_a_verifier_leaves_does_not_end_the_next_verdict(module):
    wild = verifier(f"{module}:wild", seconds=20)
    assert [wild(text, {}) for text in ("leave an alarm", "a second", "fine")] == [1, 1, 1]


@pytest.mark.parametrize(
    "completion", ["x" * 10**7, "\u2028", "a\u2028b\u2029c\x85d\x1c", "\ud800\udfff", "\x00", "\x1b[2J", "🙂" * 100]
)
def test_any_text_arrives_whole(module, completion):
    own = verifier(f"{module}:length", seconds=60)
    assert own(completion, {"full": len(completion)}) == 1
    assert own("ab", {}) == 0.5


def test_places_on_the_path_that_are_no_text_are_skipped(module, monkeypatch):
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *sys.path])
    assert verifier(f"{module}:length")("abcd", {}) == 1


def test_a_worker_that_the_system_refuses_stops_the_scoring(module, monkeypatch):
    own = verifier(f"{module}:length")

    def refuse(*_, **__):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(worker.subprocess, "Popen", refuse)
    with pytest.raises(VerifierUnavailable, match="does not start in its worker process: Cannot allocate memory"):
        score_answers(own, [("a", {})])


def test_memory_that_is_never_given_back_costs_one_answer(module):
    wild = verifier(f"{module}:wild", seconds=20)
    with pytest.warns(UserWarning, match=r"1 exceptions .*MemoryError"):
        assert score_answers(wild, [("hoard", {}), ("some memory", {})]).scores == (0, 1)


def test_an_error_names_the_line_of_the_verifier(module, tmp_path):
    line = MODULE.splitlines().index('        raise KeyError("gone")') + 1
    with pytest.raises(RuntimeError, match=rf"{module}.py, line {line}\)"):
        verifier(f"{module}:wild")("raise", {})


@pytest.mark.parametrize("completion", ["loop", "interpreter", "stop", "sleep"])
def test_what_does_not_end_is_a_counted_0_within_its_clock(module, completion):
    wild = verifier(f"{module}:wild", seconds=0.5)
    wild("fine", {})
    start = time.monotonic()
    with pytest.warns(UserWarning, match=r"0 exceptions and 1 time-outs in 1 .*no verdict within 0.5 s"):
        scored = score_answers(wild, [(completion, {})])
    assert time.monotonic() - start < 5
    assert (scored.scores, scored.timeouts) == ((0,), 1)
    assert verifier(f"{module}:wild", seconds=20)("fine", {}) == 1


def test_a_request_longer_than_the_pipe_does_not_hang_on_a_stopped_worker(module):
    own = VerifierWorker(f"{module}:length")
    try:
        assert own.judge("x" * 10**6, {"full": 10**6, "filler": b"y" * 10**7}, 20) == 1
        os.kill(own._process.pid, signal.SIGSTOP)
        with pytest.raises(VerifierTimeout):
            own.judge("x" * 10**6, {}, 0.5)
        assert own.judge("abcd", {}, 20) == 1
    finally:
        own.close()


@pytest.mark.parametrize(("completion", "score"), [("print", 1.0), ("ask", 1.0), ("fork", 0.25)])
def test_printing_reading_and_forking_do_not_disturb_the_verdicts(module, completion, score, capfd):
    wild = verifier(f"{module}:wild", seconds=20)
    assert [wild(completion, {}), wild("none of these", {}), wild(completion, {})] == [score, 1.0, score]
    assert capfd.readouterr().out == "printed on import\n"  # by this process's own import


def test_what_the_verifier_started_is_killed_with_it(module, tmp_path):
    wild = verifier(f"{module}:wild", seconds=1)
    wild("fine", {})
    with pytest.raises(VerifierTimeout):
        wild("child", {"pid": str(tmp_path / "pid")})
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


def test_the_worker_has_this_process_s_folder_and_path(module, tmp_path, monkeypatch):
    own = verifier(f"{module}:where")
    assert own("", {"cwd": os.getcwd(), "path": list(sys.path)}) == 1
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    monkeypatch.syspath_prepend(str(other))
    assert own("", {"cwd": str(other), "path": list(sys.path)}) == 1


def test_rows_and_texts_arrive_as_they_are(module):
    row = {"day": datetime.date(2024, 2, 29), "pair": (1, b"x")}
    assert verifier(f"{module}:kinds")("é\ud800", row) == 1


def test_an_alarm_of_the_verifier_s_own_works(module):
    with pytest.raises(RuntimeError, match="TimeoutError: own alarm"):
        verifier(f"{module}:alarm", seconds=20)("", {})


def test_a_verifier_object_checks_rows_here_and_judges_there(module):
    own = verifier(f"{module}:checked")
    with pytest.raises(BallastError, match="row 2: no 'full'"):
        check_rows(own, [{"full": 1}, {}])
    assert own("ab", {"full": 2}) == 1
    assert f"{module}:checked" in worker._workers


@pytest.mark.parametrize("name", ["exact", "expression", "last-number", "ballast.lab.arithmetic:verify"])
def test_ballast_s_own_verifiers_run_in_this_process(name, monkeypatch):
    monkeypatch.setattr(worker.subprocess, "Popen", None)
    verifier(name)("1", {"answer": "1", "start": 1, "operations": []} | dict.fromkeys(("question", "prompt"), "1"))
    assert not worker._workers or all(one._process is None for one in worker._workers.values())


def test_a_verifier_that_the_worker_cannot_import_stops_the_scoring(tmp_path, monkeypatch):
    """It would score every answer 0."""
    (tmp_path / "only_here.py").write_text("def judge(completion, row):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = verifier("only_here:judge")
    (tmp_path / "only_here.py").unlink()
    with pytest.raises(VerifierUnavailable, match=r"does not start in its worker process: ModuleNotFoundError"):
        score_answers(own, [("a", {})])
    assert issubclass(VerifierUnavailable, BallastError)


def test_a_verifier_that_does_not_start_again_is_a_counted_0(module, tmp_path):
    wild = verifier(f"{module}:wild")
    wild("fine", {})
    (tmp_path / f"{module}.py").unlink()
    with pytest.warns(UserWarning, match="2 exceptions"):
        assert score_answers(wild, [("leave", {}), ("fine", {})]).scores == (0, 0)


def test_a_signal_ends_what_outlives_the_parent_in_one_long_operation(module):
    assert verifier(f"{module}:wild")("timer", {}) == 1


def test_a_worker_ends_with_its_parent(module, tmp_path):
    code = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from ballast.evaluation import verifier
        from ballast.verifiers import worker
        import threading, os
        own = verifier("{module}:wild", seconds=60)
        own("fine", {{}})
        print(worker._workers["{module}:wild"]._process.pid, flush=True)
        threading.Thread(target=own, args=("sleep", {{}})).start()
        threading.Timer(0.3, os._exit, (0,)).start()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout.split()[-1])
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_math_overrun_is_killed_and_the_next_answer_is_judged():
    own = VerifierWorker(MATH)
    try:
        assert own.judge("1", {"answer": "1"}, 30) == 1
        first = own._process
        start = time.monotonic()
        caught = []

        def overrun():
            try:
                own.judge(SLOW, {"answer": "1"}, 0.5)
            except VerifierTimeout as error:
                caught.append(error)

        thread = threading.Thread(target=overrun)
        thread.start()
        thread.join(20)
        assert caught
        assert time.monotonic() - start < 15
        assert first.poll() is not None
        assert own.judge("the answer is 7", {"answer": "7"}, 30) == 1
        second = own._process
    finally:
        own.close()
    assert second.poll() is not None


def test_the_clock_of_math_can_be_set():
    verifier("math")("1", {"answer": "1"})
    with pytest.raises(VerifierTimeout, match=r"within 0.25 s"):
        verifier("math", seconds=0.25)(SLOW, {"answer": "1"})


def test_a_worker_that_died_is_replaced():
    own = VerifierWorker(MATH)
    try:
        own.judge("1", {"answer": "1"}, 30)
        own._process.kill()
        own._process.wait()
        assert own.judge("2", {"answer": "2"}, 30) == 1
    finally:
        own.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_a_process_has_workers_of_its_own():
    assert worker.judge(MATH, "1", {"answer": "1"}, 30) == 1
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if not worker._workers and worker.judge(MATH, "3", {"answer": "3"}, 30) == 1 else 2
            worker.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert worker.judge(MATH, "2", {"answer": "3"}, 30) == 0
