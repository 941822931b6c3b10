"""A worker process that compares mathematical answers, killed and replaced when it overruns its time.

math-verify guards itself with a signal alarm, which works in the main thread only and elsewhere turns every answer into
a silent 0; switched off, a power tower can run for ever. So it runs in a process of its own, under the wall clock of
whoever asks, from any thread.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path

WORKER = Path(__file__).with_name("_math_process.py")
START_SECONDS = 120.0
"""Time the worker has to start: importing a computer algebra system on a busy machine is slow."""


class VerifierTimeout(Exception):
    """A comparison took longer than its wall clock allows."""


class MathWorker:
    """One worker process, started on first use; safe to call from several threads, one comparison at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, completion: str, answer: str, seconds: float) -> float:
        """Return 1.0 if the last answer in `completion` equals `answer`, else 0.0.

        Raises:
            VerifierTimeout: after `seconds`; the worker is killed, the next call starts a new one.
            RuntimeError: if the comparison raised, or the worker died (out of memory).
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            request = json.dumps({"completion": completion, "answer": answer, "seconds": seconds}).encode() + b"\n"
            try:
                process.stdin.write(request)
                process.stdin.flush()
                reply = self._read(process, seconds)
            except BrokenPipeError:
                reply = None
            except BaseException:  # interrupted: a reply still to come must not answer the next question
                self._stop()
                raise
            if reply is None:
                self._stop()
                raise RuntimeError("the worker process died while comparing (out of memory?)")
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return float(reply["score"])

    def close(self) -> None:
        """End the worker process."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            # -I keeps the folder of the script, whose modules have common names, off the worker's path.
            command = [sys.executable, "-I", str(WORKER), json.dumps(sys.path)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
            try:
                ready = self._read(self._process, START_SECONDS)
            except BaseException:
                self._stop()
                raise
            if ready is None:
                self._stop()
                raise RuntimeError("the math-verify worker does not start: is math-verify installed?")
        return self._process

    def _read(self, process: subprocess.Popen[bytes], seconds: float) -> dict | None:
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise VerifierTimeout(f"no verdict within {seconds:g} s")
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    return None
                line += part
        return json.loads(line)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


_worker = MathWorker()


def _renew() -> None:
    # A forked child shares the parent's pipe and may have inherited a held lock: it starts a worker of its own.
    global _worker
    _worker = MathWorker()


def compare(completion: str, answer: str, seconds: float) -> float:
    """Compare through this process's shared worker; see `MathWorker.compare`."""
    return _worker.compare(completion, answer, seconds)


def close() -> None:
    """End this process's shared worker, if there is one."""
    _worker.close()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
