"""Jobs done one after the other in this process, or by several processes.

A process is asked in lines of JSON: see `ballast.compare.worker`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import IO, Protocol

from ballast.compare.jobs import Job, JobContext
from ballast.compare.schedule import Jobs
from ballast.compare.worker import Reply, order
from ballast.errors import BallastError
from ballast.records.write import unwritable_as_error

# The working directory is no place to import from, unless this process has it on its path too.
SERVE = (
    "import sys; sys.path = [entry for entry in sys.path if entry]; from ballast.compare.worker import serve; serve()"
)
PROGRAM = ("-c", SERVE)
"""What a process runs."""
GPUS = "CUDA_VISIBLE_DEVICES"
"""Environment variable that names the GPUs a process sees."""


class Watcher(Protocol):
    """Follows what happens to each job."""

    def began(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...

    def failed(self, job: Job, error: str) -> None: ...

    def again(self, job: Job, why: str) -> None: ...

    def said(self, line: object) -> None: ...


class Runner(Protocol):
    """Does jobs, somewhere."""

    def each(self, jobs: Jobs, watcher: Watcher) -> None:
        """Do all jobs; one that breaks off is recorded and does not stop the others.

        Raises:
            BallastError: input that cannot be used, which would stop every other run too.
        """


def passed_on(reply: Reply, job: Job, watcher: Watcher) -> bool:
    """Tell the watcher what came of a job, and return whether it is done.

    Raises:
        BallastError: the input of all is wrong.
    """
    for line in reply.said:
        watcher.said(line)
    if reply.unusable is not None:
        raise BallastError(job.line(reply.unusable))
    if reply.failed is not None:
        watcher.failed(job, reply.failed)
        return False
    watcher.ended(job)
    return True


class Place(Protocol):
    """Where jobs are done."""

    @property
    def count(self) -> int:
        """Return how many go at a time."""

    def runner(self, context: JobContext) -> AbstractContextManager[Runner]:
        """Yield what does the jobs; leaving the block ends it."""


@dataclass(frozen=True)
class Machine:
    """This machine.

    Attributes:
        count: runs at a time.
        threads: of each; None leaves that to torch.
    """

    count: int
    threads: int | None

    @contextmanager
    def runner(self, context: JobContext) -> Iterator[Runner]:
        """Yield what does the jobs; leaving the block ends it."""
        gpus = visible_gpus()
        # One run goes on one device: in this process it would see all of them.
        if self.count == 1 and len(gpus) <= 1:
            yield Serial(context)
            return
        processes = Processes(context, self.count, self.threads, gpus)
        try:
            yield processes
        finally:
            processes.close()


class Serial:
    """One after the other, in this process."""

    def __init__(self, context: JobContext) -> None:
        self.context = context

    def each(self, jobs: Jobs, watcher: Watcher) -> None:
        """As `Runner.each`."""
        while (job := jobs.next()) is not None:
            jobs.settle(job, done=self._one(job, watcher))

    def _one(self, job: Job, watcher: Watcher) -> bool:
        watcher.began(job)
        try:
            self.context.run(job, watcher.said)
        except BallastError as error:
            raise BallastError(job.line(error)) from error
        except Exception as error:
            if job.shared:
                raise
            watcher.failed(job, self.context.fail(job, error))
            return False
        watcher.ended(job)
        return True


class ProcessDiedError(RuntimeError):
    """A process ended in the midst of its job: killed, or out of memory."""


class Processes:
    """Several at a time, each in a process that stays for the next job.

    Args:
        threads: of each process; None leaves that to torch.
        gpus: names of the GPUs, of which every process sees one.
    """

    def __init__(self, context: JobContext, count: int, threads: int | None, gpus: Sequence[str] = ()) -> None:
        self.context, self.count, self.threads, self.gpus = context, count, threads, gpus
        self._idle: Queue[tuple[int, _Process | None]] = Queue()
        self._all: list[_Process] = []
        self._lock, self._closed = Lock(), False
        for place in range(count):
            self._idle.put((place, None))

    def each(self, jobs: Jobs, watcher: Watcher) -> None:
        """As `Runner.each`."""
        running: dict[Future[bool], Job] = {}
        with ThreadPoolExecutor(self.count) as pool:
            try:
                while True:
                    while len(running) < self.count and (job := jobs.next()) is not None:
                        running[pool.submit(self._one, job, watcher)] = job
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        jobs.settle(running.pop(future), done=future.result())
            except BaseException:
                self.close()
                raise

    def _one(self, job: Job, watcher: Watcher) -> bool:
        place, process = self._idle.get()
        try:
            process = process or self._start(place)
            if process is None:
                return False
            ready = process.wait()
            if self._closed:
                return False
            if not ready:
                raise BallastError(
                    f"--jobs {self.count}: a process ended with exit code {process.code()} before its first run; see "
                    f"{self.context.store.jobs_log}, or take --jobs 1, which starts none"
                )
            watcher.began(job)
            reply = process.ask(job)
            if reply is None and self._closed:
                # Ended from here: neither done nor broken off, so it leaves no record.
                return False
            if reply is None:
                code, process = process.code(), None
                log = self.context.store.jobs_log
                error = ProcessDiedError(f"its process ended with exit code {code}; out of memory? {log} may say more")
                reply = died(self.context, job, error)
            return passed_on(reply, job, watcher)
        except BaseException:
            self.close()
            raise
        finally:
            self._idle.put((place, process))

    def _start(self, place: int) -> _Process | None:
        """Return a new process, None where all of them are to end."""
        with self._lock:
            if self._closed:
                return None
            sees = {GPUS: self.gpus[place % len(self.gpus)]} if self.gpus else {}
            process = _Process(self.context, self.threads, sees)
            self._all.append(process)
            return process

    def close(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.close()


def died(context: JobContext, job: Job, error: ProcessDiedError) -> Reply:
    """Keep a record of a job whose process died; without what all runs share there is nothing to go on with."""
    return Reply(unusable=str(error)) if job.shared else Reply(failed=context.fail(job, error))


class _Process:
    """One process that does jobs as it is asked; it ends when this process does."""

    def __init__(self, context: JobContext, threads: int | None, sees: Mapping[str, str]) -> None:
        with unwritable_as_error(context.store.jobs_log):
            log = context.store.jobs_log.open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, *PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **sees, "PYTHONPATH": _path()},
                text=True,
                # The terminal's interrupt is for whoever asks, who then ends this process.
                start_new_session=True,
            )
        self._send(order(context, threads))
        self._ready = False

    def wait(self) -> bool:
        """Return whether the process has imported what it needs, when it has: a run's seconds begin there."""
        self._ready = self._ready or bool(self._read())
        return self._ready

    def ask(self, job: Job) -> Reply | None:
        """Return what came of a job, None where the process died."""
        self._send(job.order)
        line = self._read()
        return Reply.model_validate_json(line) if line.endswith("\n") else None

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

    def _send(self, line: str) -> None:
        pipe = self._pipe(self._process.stdin)
        try:
            pipe.write(line + "\n")
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
    """Return the search path of this process, so that the user's verifiers and objectives are found there too."""
    return os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them; none is touched."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(GPUS, "").split(",") if name.strip()]
    return (named or [str(place) for place in range(count)])[:count]
