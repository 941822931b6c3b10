"""How long the processes of a comparison stood idle, and how it would have been with other numbers of them.

    python benchmarks/idle.py runs/lab-quick --jobs 2

Reads when every run began and ended. What it cost is then laid out anew, by stages and by what each run needs, for
several numbers of processes: same runs, same seconds.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from ballast.compare import Part, Plan, load_plan
from ballast.compare.halving import Course, course
from ballast.compare.jobs import Job, JobContext
from ballast.compare.schedule import Schedule
from ballast.compare.summary import chosen_rates
from ballast.records.folder import Store
from ballast.records.runs import Run, read_comparison, read_record

STAGES = ("base", "score", "tuning", "report", "rl")


def spans(store: Store) -> list[tuple[float, float]]:
    """Return begin and end of every finished run, in seconds."""
    found = []
    for folder in store.run_folders():
        record = read_record(folder)
        if record is not None and record.finished is not None and record.started is not None:
            began, ended = (datetime.fromisoformat(text).timestamp() for text in (record.started, record.finished))
            found.append((began, ended))
    return found


class AsStored(JobContext):
    """The matrix of an output in which nothing counts as done."""

    def is_done(self, job: Job) -> bool:
        return False

    def drop_tuning_weights(self, job: Job) -> None:
        return


class Stored:
    """What was decided, from the records."""

    def __init__(self, plan: Plan, runs: Sequence[Run]) -> None:
        self._course, self.rate = course(plan, runs), chosen_rates(plan, runs).get

    def course(self) -> Course:
        return self._course


def schedule_of(store: Store) -> Schedule:
    plan = load_plan(store.root)
    return Schedule(AsStored(plan, store), Part(), Stored(plan, read_comparison(store)))


def by_needs(schedule: Schedule, workers: int, seconds: Callable[[Job], float]) -> float:
    """Return when the last run ends where each begins as soon as what it needs is there."""
    now, number, running = 0.0, 0, []
    while True:
        while len(running) < workers and (job := schedule.next()) is not None:
            heapq.heappush(running, (now + seconds(job), number := number + 1, job))
        if not running:
            return now
        now, _, job = heapq.heappop(running)
        schedule.settle(job, done=True)


def by_stages(schedule: Schedule, workers: int, seconds: Callable[[Job], float]) -> float:
    """Return when the last run ends where each stage waits for the end of the one before it."""
    jobs: list[Job] = []
    while (job := schedule.next()) is not None:
        jobs.append(job)
        schedule.settle(job, done=True)
    total = 0.0
    for stage in STAGES:
        free = [0.0] * workers
        for job in jobs:
            if stage == (job.kind if job.kind != "train" else job.cell.role):
                heapq.heapreplace(free, free[0] + seconds(job))
        total += max(free)
    return total


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--jobs", type=int, required=True, help="how many ran at a time")
    parser.add_argument("--shared", type=float, default=0.0, help="seconds of scoring and of measuring the base, each")
    options = parser.parse_args(words)
    store = Store(options.output)
    found = spans(store)
    took = max(end for _, end in found) - min(begin for begin, _ in found)
    busy = sum(end - begin for begin, end in found)
    print(f"{len(found)} runs, {busy:.0f} s of work; {took:.0f} s from the first to the last one's end")
    print(f"idle with {options.jobs}: {1 - busy / took / options.jobs:.1%}")
    context = JobContext(load_plan(store.root), store)

    def seconds(job: Job) -> float:
        return options.shared if job.shared else context.seconds(job) or 0.0

    print("| at a time | by stages | idle | by what each needs | idle | took |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for workers in (1, 2, 4, 8, 16, 32):
        old, new = (lay(schedule_of(store), workers, seconds) for lay in (by_stages, by_needs))
        work = by_needs(schedule_of(store), 1, seconds)
        idle = [1 - work / workers / one for one in (old, new)]
        print(f"| {workers} | {old:.0f} s | {idle[0]:.0%} | {new:.0f} s | {idle[1]:.0%} | {new / old:.2f}× |")


if __name__ == "__main__":
    main()
