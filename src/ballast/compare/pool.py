"""Works done one after the other here, or by several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import IO, Any, Protocol

from ballast.compare.jobs import Bench, Work
from ballast.errors import BallastError
from ballast.records.folder import writing

PROGRAM = ("-m", "ballast.compare.worker")
"""What a process runs."""


class Watcher(Protocol):
    """Is told what happens to each piece of work."""

    def began(self, work: Work) -> None: ...

    def ended(self, work: Work) -> None: ...

    def failed(self, work: Work, error: str) -> None: ...


class Here:
    """One after the other, in this process."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def each(self, works: Sequence[Work], watcher: Watcher) -> None:
        """Do all works; one that breaks off is recorded and does not stop the others.

        Raises:
            BallastError: input that cannot be used, which would stop every other run too.
        """
        for work in works:
            watcher.began(work)
            try:
                self.bench.run(work)
            except BallastError as error:
                raise BallastError(f"{work.name}: {error}") from error
            except Exception as error:
                watcher.failed(work, self.bench.fail(work, error))
            else:
                watcher.ended(work)


class ProcessDiedError(RuntimeError):
    """A process ended in the midst of its work: killed, or out of memory."""


class Processes:
    """Several at a time, each in a process that stays for the next work."""

    def __init__(self, bench: Bench, count: int, threads: int | None) -> None:
        self.bench, self.count, self.threads = bench, count, threads
        self._idle: Queue[_Process | None] = Queue()
        self._all: list[_Process] = []
        self._lock, self._closed = Lock(), False
        for _ in range(count):
            self._idle.put(None)

    def each(self, works: Sequence[Work], watcher: Watcher) -> None:
        """As `Here.each`."""
        with ThreadPoolExecutor(self.count) as pool:
            futures: list[Future[None]] = []
            try:
                futures += [pool.submit(self._one, work, watcher) for work in works]
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                self.close()
                raise

    def _one(self, work: Work, watcher: Watcher) -> None:
        process = self._idle.get()
        try:
            process = process or self._start()
            if process is None:
                return
            ready = process.wait()
            if self._closed:
                return
            if not ready:
                raise BallastError(
                    f"--jobs {self.count}: a process ended with exit code {process.code()} before its first run; see "
                    f"{self.bench.store.jobs_log}, or take --jobs 1, which starts none"
                )
            watcher.began(work)
            reply = process.ask(work)
            if reply is None and self._closed:
                # Ended from here: neither done nor broken off, so it leaves no record.
                return
            if reply is None:
                code = process.code()
                process = None
                log = self.bench.store.jobs_log
                error = ProcessDiedError(f"its process ended with exit code {code}; out of memory? {log} may say more")
                watcher.failed(work, self.bench.fail(work, error))
            elif "unusable" in reply:
                raise BallastError(f"{work.name}: {reply['unusable']}")
            elif "failed" in reply:
                watcher.failed(work, reply["failed"])
            else:
                watcher.ended(work)
        except BaseException:
            self.close()
            raise
        finally:
            self._idle.put(process)

    def _start(self) -> _Process | None:
        """Return a new process, None where all of them are to end."""
        with self._lock:
            if self._closed:
                return None
            process = _Process(self.bench, self.threads)
            self._all.append(process)
            return process

    def close(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.close()


class _Process:
    """One process that does works as it is asked; it ends when this process does."""

    def __init__(self, bench: Bench, threads: int | None) -> None:
        with writing(bench.store.jobs_log):
            log = bench.store.jobs_log.open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, *PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": _path()},
                text=True,
                # The terminal's interrupt is for whoever asks, who then ends this process.
                start_new_session=True,
            )
        context = {
            "recipe": bench.plan.recipe.resolved(),
            "root": str(bench.store.root),
            "steps": bench.steps,
            "threads": threads,
        }
        self._send(context)
        self._ready = False

    def wait(self) -> bool:
        """Return whether the process has imported what it needs, when it has: a run's seconds begin there."""
        self._ready = self._ready or bool(self._read())
        return self._ready

    def ask(self, work: Work) -> dict[str, Any] | None:
        """Return what came of a piece of work, None where the process died."""
        self._send(work.to_dict())
        line = self._read()
        return json.loads(line) if line.endswith("\n") else None

    def code(self) -> int:
        """Return the exit code of a process that answers no more."""
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            return self.close()

    def close(self) -> int:
        """End the process and return its exit code."""
        self._process.kill()
        return self._process.wait()

    def _send(self, value: Any) -> None:
        pipe = self._pipe(self._process.stdin)
        try:
            pipe.write(json.dumps(value) + "\n")
            pipe.flush()
        except BrokenPipeError:  # it died; the answer that never comes says so
            pass

    def _read(self) -> str:
        return self._pipe(self._process.stdout).readline()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def _path() -> str:
    """Return the search path of this process, so that verifiers and objectives of one's own are found there too."""
    return os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)


@contextmanager
def runner(bench: Bench, jobs: int, threads: int | None) -> Iterator[Here | Processes]:
    """Yield what does the works."""
    if jobs == 1:
        yield Here(bench)
        return
    processes = Processes(bench, jobs, threads)
    try:
        yield processes
    finally:
        processes.close()
