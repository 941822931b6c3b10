"""Jobs done by actors of a Ray cluster, which is connected."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ballast
from ballast.compare import remote
from ballast.compare.jobs import Job, JobContext
from ballast.compare.pool import ProcessDiedError, Watcher, died, passed_on
from ballast.compare.schedule import Jobs
from ballast.compare.worker import Reply, order
from ballast.errors import BallastError

RETRIES = 1
"""How often a run whose worker died is done again; then it counts as failed."""
PATIENCE = 60.0
"""Seconds in which a file that another node wrote must be seen: file systems of networks keep what they looked up."""
PATIENCE_FOR_PROBE = 10.0
ENDS = 5.0
"""Seconds in which an actor that is told to end does so."""
LOOKS = 10.0
"""Seconds between two looks at whether there is still a place for a run."""


class Actors:
    """Several jobs at a time, each by an actor that stays for the next one; one that dies costs its job alone.

    Args:
        count: how many at a time.
        threads: of each; None leaves that to torch.
        takes: what each takes of the cluster, as Ray calls it.
        probe: name of a file in the output, by which nodes find out whether they see it.
        has_room: tells whether the cluster still has a place for a run.
    """

    def __init__(
        self,
        context: JobContext,
        count: int,
        threads: int | None,
        takes: Mapping[str, float],
        *,
        probe: str,
        has_room: Callable[[], bool],
    ) -> None:
        self.context, self.count, self.takes, self.has_room = context, count, takes, has_room
        self._asked = json.dumps(
            {
                "folder": os.getcwd(),
                "path": _path(),
                "source": remote.source_digest(Path(ballast.__file__).parent),
                "output": str(context.store.root),
                "probe": probe,
                "patience": PATIENCE_FOR_PROBE,
                "gpus": takes["num_gpus"],
                "log": str(context.store.jobs_log),
                "order": order(context, threads),
            }
        )
        # By what they are to return: actors, and the job that each does.
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, Job]] = {}
        self._idle: list[Any] = []
        self._lost: Counter[str] = Counter()
        self._said = False

    def each(self, jobs: Jobs, watcher: Watcher) -> None:
        """As `Runner.each`."""
        try:
            while len(jobs) or self._running:
                while self._idle and (job := jobs.next()) is not None:
                    self._ask(self._idle.pop(0), job, watcher)
                self._start(len(jobs))
                for ref in self._over(watcher):
                    if ref in self._starting:
                        self._welcome(self._starting.pop(ref), ref)
                    else:
                        self._take(ref, jobs, watcher)
        finally:
            self.close()

    def close(self) -> None:
        """End all actors."""
        import ray

        for actor in [*self._starting.values(), *self._idle, *(actor for actor, _ in self._running.values())]:
            ray.kill(actor)
        if left := [*self._starting, *self._running]:
            # What is half done must not go on being written beside the next run of it.
            ray.wait(left, num_returns=len(left), timeout=ENDS)
        self._starting, self._idle, self._running = {}, [], {}

    def _start(self, wanted: int) -> None:
        """Have as many actors as there are jobs, up to so many at a time."""
        import ray

        ray.cloudpickle.register_pickle_by_value(remote)
        worker = ray.remote(remote.RemoteWorker)
        there = len(self._starting) + len(self._idle)
        for _ in range(min(self.count - len(self._running), wanted) - there):
            actor: Any = worker.options(**self.takes, scheduling_strategy="SPREAD").remote()
            self._starting[actor.prepare.remote(self._asked)] = actor

    def _ask(self, actor: Any, job: Job, watcher: Watcher) -> None:
        watcher.began(job)
        self._running[actor.run.remote(job.order)] = actor, job

    def _over(self, watcher: Watcher) -> list[Any]:
        """Wait for something to be over."""
        import ray

        over, _ = ray.wait([*self._starting, *self._running], timeout=LOOKS)
        if not over and not self._running:
            if not self.has_room():
                raise BallastError(
                    "ray: no node is left that has what a run takes, so nothing can go on; bring the nodes back and "
                    "run the same command again, which does what is missing"
                )
            if not self._said:
                watcher.said("ray: waits for workers: they load libraries, or other work has their place")
                self._said = True
        return list(over)

    def _welcome(self, actor: Any, ref: Any) -> None:
        """Take an actor that is ready for jobs."""
        import ray

        try:
            found = json.loads(ray.get(ref))
        except _lost_errors() as error:
            ray.kill(actor)
            self._lost[""] += 1
            if self._lost[""] > RETRIES:
                raise BallastError(
                    f"ray: workers end before their first run ({_reason(error)}); look into Ray's logs on the node"
                ) from error
            return
        if found["problem"] is not None:
            ray.kill(actor)
            raise BallastError(f"ray: node {found['host']} {found['problem']}")
        self._idle.append(actor)

    def _take(self, ref: Any, jobs: Jobs, watcher: Watcher) -> None:
        """See what came of a job."""
        import ray

        actor, job = self._running.pop(ref)
        try:
            reply = Reply.model_validate_json(ray.get(ref))
        except _lost_errors() as error:
            # It may only be out of reach, and would go on writing.
            ray.kill(actor)
            self._lost[job.name] += 1
            if self._lost[job.name] <= RETRIES:
                watcher.again(job, f"its worker died ({_reason(error)})")
                jobs.again(job)
                return
            times = self._lost[job.name]
            reply = died(self.context, job, ProcessDiedError(f"its worker died {times} times; {_reason(error)}"))
        else:
            self._idle.append(actor)
            if reply == Reply(said=reply.said):
                self._check_seen(job)
        jobs.settle(job, done=passed_on(reply, job, watcher))

    def _check_seen(self, job: Job) -> None:
        """Wait until what a node wrote is seen here.

        Raises:
            BallastError: it is not.
        """
        until = time.monotonic() + PATIENCE
        while job.kind != "score" and not self.context.is_done(job):
            if time.monotonic() > until:
                raise BallastError(
                    f"{job.folder(self.context.store)}: was done by a node, but is not seen here, so the results would "
                    "be lost; choose an output on storage that all nodes share"
                )
            time.sleep(0.5)


def _lost_errors() -> tuple[type[Exception], ...]:
    """Return what Ray raises for an actor that died or cannot be reached."""
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.OutOfMemoryError,
        exceptions.NodeDiedError,
        exceptions.WorkerCrashedError,
    )


def _reason(error: Exception) -> str:
    """Return the first line of what Ray says of an actor's end that tells why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"\w+: |The actor died unexpectedly", line)]
    return " ".join((told or lines or [type(error).__name__])[0].split())[:200]


def _path() -> list[str]:
    """Return where this process imports from, as far as that is no installed library: a node has its own ones."""
    entries = [str(Path(entry or ".").resolve()) for entry in sys.path]
    return [entry for entry in entries if Path(entry).is_dir() and not _is_installed(Path(entry))]


def _is_installed(entry: Path) -> bool:
    return bool({"site-packages", "dist-packages", "lib-dynload"} & set(entry.parts)) or (entry / "os.py").is_file()
