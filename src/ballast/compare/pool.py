"""Jobs done one after the other in this process, or by several processes.

A process is asked in lines of JSON. The first line on its stdin says what is compared, every further one is a job; each
is answered by one line on stdout, the first one when everything is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import IO, Any, Protocol

from ballast.compare.jobs import Job, JobContext
from ballast.compare.plan import Plan
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.records.folder import Store
from ballast.records.write import unwritable_as_error

# The working directory is no place to import from, unless this process has it on its path too.
SERVE = "import sys; sys.path = [entry for entry in sys.path if entry]; from ballast.compare.pool import serve; serve()"
PROGRAM = ("-c", SERVE)
"""What a process runs."""


class Watcher(Protocol):
    """Follows what happens to each job."""

    def began(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...

    def failed(self, job: Job, error: str) -> None: ...


class Serial:
    """One after the other, in this process."""

    def __init__(self, context: JobContext) -> None:
        self.context = context

    def each(self, jobs: Sequence[Job], watcher: Watcher) -> None:
        """Do all jobs; one that breaks off is recorded and does not stop the others.

        Raises:
            BallastError: input that cannot be used, which would stop every other run too.
        """
        for job in jobs:
            watcher.began(job)
            try:
                self.context.run(job)
            except BallastError as error:
                raise BallastError(f"{job.name}: {error}") from error
            except Exception as error:
                watcher.failed(job, self.context.fail(job, error))
            else:
                watcher.ended(job)


class ProcessDiedError(RuntimeError):
    """A process ended in the midst of its job: killed, or out of memory."""


class Processes:
    """Several at a time, each in a process that stays for the next job."""

    def __init__(self, context: JobContext, count: int, threads: int | None) -> None:
        self.context, self.count, self.threads = context, count, threads
        self._idle: Queue[_Process | None] = Queue()
        self._all: list[_Process] = []
        self._lock, self._closed = Lock(), False
        for _ in range(count):
            self._idle.put(None)

    def each(self, jobs: Sequence[Job], watcher: Watcher) -> None:
        """As `Serial.each`."""
        with ThreadPoolExecutor(self.count) as pool:
            futures: list[Future[None]] = []
            try:
                futures += [pool.submit(self._one, job, watcher) for job in jobs]
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                self.close()
                raise

    def _one(self, job: Job, watcher: Watcher) -> None:
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
                    f"{self.context.store.jobs_log}, or take --jobs 1, which starts none"
                )
            watcher.began(job)
            reply = process.ask(job)
            if reply is None and self._closed:
                # Ended from here: neither done nor broken off, so it leaves no record.
                return
            if reply is None:
                code, process = process.code(), None
                log = self.context.store.jobs_log
                error = ProcessDiedError(f"its process ended with exit code {code}; out of memory? {log} may say more")
                watcher.failed(job, self.context.fail(job, error))
            elif "unusable" in reply:
                raise BallastError(f"{job.name}: {reply['unusable']}")
            elif "failed" in reply:
                watcher.failed(job, reply["failed"])
            else:
                watcher.ended(job)
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
            process = _Process(self.context, self.threads)
            self._all.append(process)
            return process

    def close(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.close()


class _Process:
    """One process that does jobs as it is asked; it ends when this process does."""

    def __init__(self, context: JobContext, threads: int | None) -> None:
        with unwritable_as_error(context.store.jobs_log):
            log = context.store.jobs_log.open("ab")
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
        asked = {
            "recipe": context.plan.recipe.resolved(),
            "root": str(context.store.root),
            "steps": context.steps,
            "threads": threads,
        }
        self._send(json.dumps(asked))
        self._ready = False

    def wait(self) -> bool:
        """Return whether the process has imported what it needs, when it has: a run's seconds begin there."""
        self._ready = self._ready or bool(self._read())
        return self._ready

    def ask(self, job: Job) -> dict[str, str] | None:
        """Return what came of a job, None where the process died."""
        self._send(job.model_dump_json())
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


@contextmanager
def runner(context: JobContext, count: int, threads: int | None) -> Iterator[Serial | Processes]:
    """Yield what does the jobs, `count` at a time."""
    if count == 1:
        yield Serial(context)
        return
    processes = Processes(context, count, threads)
    try:
        yield processes
    finally:
        processes.close()


def serve() -> None:
    """Be one of the processes: do jobs until stdin ends, which it does with the process that asks."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print is no answer.
    os.dup2(2, 1)
    lines: Queue[str] = Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    asked: dict[str, Any] = json.loads(lines.get())
    context = JobContext(Plan(Recipe.model_validate(asked["recipe"])), Store(Path(asked["root"])), asked["steps"])
    configure_process(asked["threads"])
    reply: dict[str, str] = {}
    while True:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
        reply = _answer(context, Job.model_validate_json(lines.get()))


def configure_process(threads: int | None) -> None:
    """Turn off progress bars and notices, and threads that a small model only waits for."""
    import datasets
    import torch
    import transformers

    import ballast.training  # noqa: F401  # what every run needs, before any is timed
    from ballast.pipeline import quiet

    quiet()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)


def _listen(lines: Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    # Whoever asked is gone: what is half done would otherwise be finished beside the next run of it.
    os._exit(1)


def _answer(context: JobContext, job: Job) -> dict[str, str]:
    try:
        try:
            context.run(job)
        except BallastError:
            raise
        except Exception as error:
            return {"failed": context.fail(job, error)}
    except BallastError as error:
        return {"unusable": str(error)}
    return {}
