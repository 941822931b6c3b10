"""Verifiers in a process of their own, killed and replaced when they overrun their time or take it down.

A verifier is somebody's code on a model's text: it may loop for ever, leave through `os._exit`, crash the interpreter
or eat the machine's memory, and an alarm reaches it in the main thread only, between two operations of the
interpreter. Here it runs under the wall clock of whoever asks, from any thread, and whatever it does costs one answer.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import secrets
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ballast.errors import BallastError

PROGRAM = Path(__file__).with_name("_worker_process.py")
START_SECONDS = 120.0
"""Time a worker has to start: importing a computer algebra system on a busy machine is slow."""

REPLY_BYTES = 2**16
NOT_OURS = "the verifier wrote into the pipe of its verdicts"

T = TypeVar("T")


class VerifierTimeout(Exception):
    """A verdict took longer than its wall clock allows."""


class VerifierUnavailable(BallastError):
    """A verifier has never started in its worker process, so that every answer would score 0."""


class VerifierWorker:
    """One worker process for one verifier, started on first use; safe to call from several threads, one at a time.

    Args:
        target: ``package.module:function``, imported by the worker in this process's working directory and with its
            `sys.path`, as they are when the worker starts.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._place: tuple[str, ...] = ()
        self._has_run = False

    def judge(self, completion: str, row: Mapping[str, Any], seconds: float) -> float:
        """Return what the verifier says of `completion`, the answer to `row`, as a float.

        Raises:
            VerifierTimeout: after `seconds`; the worker is killed, the next call starts a new one.
            VerifierUnavailable: if the verifier cannot be imported by the worker, and never could.
            RuntimeError: if it raised, returned no number, or its process ended.
        """
        return float(self._reply(completion, row, seconds, reads=False)["score"])

    def read(self, completion: str, row: Mapping[str, Any], seconds: float) -> str | None:
        """Return the answer that the function reads off `completion`, None where there is none; raises as `judge`."""
        found: str | None = self._reply(completion, row, seconds, reads=True)["text"]
        return found

    def _reply(self, completion: str, row: Mapping[str, Any], seconds: float, *, reads: bool) -> dict[str, Any]:
        # Pickled, since rows hold dates, bytes, tuples and images, which JSON would change or refuse. What is loaded is
        # what this process wrote into its own pipe; the worker's replies are JSON, so nothing of its making is loaded.
        request = pickle.dumps((completion, dict(row), seconds, reads))
        # A reply names its question by a number that the verifier does not know: one of the verifier's own making, or
        # one too many, must not be taken for the verdict on another answer.
        number = secrets.randbits(63)
        with self._lock:
            process = self._running()
            asked = struct.pack("<QQ", len(request), number) + request
            reply = self._guarded(lambda: self._ask(process, asked, seconds))
            if reply is None:
                raise RuntimeError(f"the verifier's process {self._end(process)} while judging")
            if reply.get("last") or reply.get("number") != number:
                self._stop()
            if reply.get("number") != number:
                raise RuntimeError(NOT_OURS)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def close(self) -> None:
        """End the worker process."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        place = (_working_directory(), *sys.path)
        if self._process is not None and self._process.poll() is None and self._place == place:
            return self._process
        self._stop()
        try:
            process = self._process = self._start()
        except OSError as error:
            raise self._not_started(str(error)) from error
        self._place = place
        ready = self._guarded(lambda: self._read(process, time.monotonic() + START_SECONDS, START_SECONDS))
        if ready is None or "error" in ready:
            reason = f"its process {self._end(process)}" if ready is None else ready["error"]
            self._stop()
            raise self._not_started(reason)
        self._has_run = True
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        path = [place for place in sys.path if isinstance(place, str)]  # the import system skips anything else
        # -I keeps the program's folder, whose modules have common names, off the worker's path. A session of its own
        # lets what the verifier started be killed with it, and keeps the terminal's interrupt away.
        process = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM), json.dumps({"target": self.target, "path": path})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _not_started(self, reason: str) -> Exception:
        kind = RuntimeError if self._has_run else VerifierUnavailable
        return kind(f"verifier {self.target!r} does not start in its worker process: {reason}")

    def _guarded(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except BaseException:  # interrupted or late: a reply still to come must not answer the next question
            self._stop()
            raise

    def _ask(self, process: subprocess.Popen[bytes], request: bytes, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        try:
            self._write(process, request, deadline, seconds)
        except BrokenPipeError:
            return None
        return self._read(process, deadline, seconds)

    def _write(self, process: subprocess.Popen[bytes], request: bytes, deadline: float, seconds: float) -> None:
        # A stopped worker reads nothing, and a long request fills the pipe: waiting to write has to end too.
        assert process.stdin is not None
        left = memoryview(request)
        while left:
            try:
                left = left[os.write(process.stdin.fileno(), left) :]
            except BlockingIOError:
                _wait(process.stdin, selectors.EVENT_WRITE, deadline, seconds)

    def _read(self, process: subprocess.Popen[bytes], deadline: float, seconds: float) -> dict[str, Any] | None:
        assert process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            _wait(process.stdout, selectors.EVENT_READ, deadline, seconds)
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                return None
            line += part
            if len(line) > REPLY_BYTES:
                raise RuntimeError(NOT_OURS)
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise RuntimeError(NOT_OURS) from error
        return reply if isinstance(reply, dict) else {}

    def _end(self, process: subprocess.Popen[bytes]) -> str:
        """Stop what is left of a process that closed its pipe, and say how it ended."""
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = None
        self._stop()
        if code is None:
            return "closed its pipe"
        if code >= 0:
            return f"left with exit code {code}"
        return f"was ended by {next((one.name for one in signal.Signals if one == -code), f'signal {-code}')}"

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _wait(pipe: Any, event: int, deadline: float, seconds: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, event)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise VerifierTimeout(f"no verdict within {seconds:g} s")


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


_workers: dict[str, VerifierWorker] = {}
_workers_lock = threading.Lock()


def _renew() -> None:
    # A forked child shares the parent's pipes and may have inherited a held lock: it starts workers of its own.
    global _workers, _workers_lock
    _workers, _workers_lock = {}, threading.Lock()


def judge(target: str, completion: str, row: Mapping[str, Any], seconds: float) -> float:
    """Judge through this process's shared worker for `target`; see `VerifierWorker.judge`."""
    return _worker(target).judge(completion, row, seconds)


def read(target: str, completion: str, row: Mapping[str, Any], seconds: float) -> str | None:
    """Read an answer off through this process's shared worker for `target`; see `VerifierWorker.read`."""
    return _worker(target).read(completion, row, seconds)


def _worker(target: str) -> VerifierWorker:
    with _workers_lock:
        return _workers.setdefault(target, VerifierWorker(target))


def close() -> None:
    """End this process's shared workers."""
    for worker in list(_workers.values()):
        worker.close()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
