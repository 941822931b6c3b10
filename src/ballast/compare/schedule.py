"""Which job can begin: a row's runs wait for those that choose its rate, RL for its run, nothing for a whole stage.

Only the rungs of a halving wait for each other: who goes on is known when the last run of a rung is over.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Protocol

from ballast.compare.halving import Course
from ballast.compare.jobs import Job, JobContext, base_rl, measuring, scoring
from ballast.compare.plan import Part
from ballast.records.folder import TUNING
from ballast.records.schema import CellRecord


class Jobs(Protocol):
    """What hands out jobs, one at a time; a single thread asks and tells it."""

    def __len__(self) -> int:
        """Return how many are known that were not handed out."""

    def next(self) -> Job | None:
        """Return a job that can begin now; None where every one that is left waits for one that runs."""

    def settle(self, job: Job, *, done: bool) -> None:
        """Take note that a job is over: done, or broken off."""

    def again(self, job: Job) -> None:
        """Take back a job that nothing came of, to be handed out once more."""


class Choices(Protocol):
    """What is decided while runs end, from the records."""

    def course(self) -> Course:
        """Return how far the halving came."""

    def rate(self, label: str) -> float | None:
        """Return the rate of a row whose choosing runs are over, None where there is none to be had."""


class Schedule:
    """The jobs of a matrix that are not done yet, each as soon as what it needs is there.

    What others wait for comes first: what all runs share, then the runs that choose rates, then those that are
    reported, seed by seed so that what is there pairs up, then RL.

    Args:
        choices: what is asked when the runs of a rung, or those that choose a row's rate, are over.

    Raises:
        BallastError: here and in `settle`: a run that is there was done by another recipe.
    """

    def __init__(self, context: JobContext, part: Part, choices: Choices) -> None:
        self._context, self._plan, self._part, self._choices = context, context.plan, part, choices
        self._rows = {row.label: place for place, row in enumerate(self._plan.methods)}
        self._waiting: list[Job] = []
        self._rungs, self._rung = 0, set[Job]()
        self._choosing: dict[str, set[Job]] = {}
        self._scored: bool | None = None
        if part.takes_base(self._plan) and self._plan.recipe.evaluation.base:
            self._add(measuring(self._plan))
        self._climb()
        for seed in self._plan.seeds if self._plan.rl else ():
            if part.takes_base(self._plan, seed):
                self._add(base_rl(seed))

    def __len__(self) -> int:
        """Return how many are known that were not handed out."""
        return len(self._waiting)

    def next(self) -> Job | None:
        """Return a job that can begin now; None where every one that is left waits for one that runs."""
        if self._scored is None and any(map(self._reads_cache, self._waiting)):
            self._scored = False
            return scoring(self._plan)
        ready = (place for place, job in enumerate(self._waiting) if self._scored or not self._reads_cache(job))
        place = next(ready, None)
        return None if place is None else self._waiting.pop(place)

    def settle(self, job: Job, *, done: bool) -> None:
        """Take note that a job is over: done, or broken off."""
        if job.kind == "score":
            self._scored = done
        elif job.kind == "train" and job.cell.role == TUNING:
            # A process that is killed right after a run leaves its weights.
            self._context.drop_tuning_weights(job)
            self._chosen_by(job)
        elif job.kind == "train" and done and self._plan.followed(job.cell):
            self._add(Job(kind="rl", cell=job.cell))

    def again(self, job: Job) -> None:
        """Take back a job that nothing came of, to be handed out once more."""
        if job.kind == "score":
            self._scored = None
        else:
            insort(self._waiting, job, key=self._place)

    def _chosen_by(self, job: Job) -> None:
        """Go on where a run that chooses was the last that others waited for."""
        short = job.cell.steps is not None
        waited_for = self._rung if short else self._choosing[job.label]
        waited_for.discard(job)
        if waited_for:
            return
        if short:
            self._climb()
        else:
            self._report(job.label)

    def _climb(self) -> None:
        """Add the runs of the next rung; after the last, what chooses the rates of the rows that stayed.

        From the first rung, whatever is there: a run that broke off is done again, and may change who stays.
        """
        course = self._choices.course()
        if self._rungs < len(course.rungs):
            rung = self._taken(course.rungs[self._rungs].cells.values())
            self._rungs, self._rung = self._rungs + 1, set(rung)
            for job in rung:
                self._add(job)
        elif course.over:
            for label in course.labels:
                self._open(label, course)

    def _open(self, label: str, course: Course) -> None:
        """Add the runs that choose a row's rate; where none of them is to be done here, those that are reported."""
        choosing = self._taken(course.tuning(label))
        self._choosing[label] = set(choosing)
        if not choosing:
            self._report(label)
        for job in choosing:
            self._add(job)

    def _report(self, label: str) -> None:
        if (rate := self._choices.rate(label)) is not None:
            for job in self._taken(self._plan.report({label: rate})):
                self._add(job)

    def _taken(self, cells: Iterable[CellRecord]) -> list[Job]:
        return [Job(kind="train", cell=cell) for cell in cells if self._part.takes(self._plan, cell)]

    def _add(self, job: Job) -> None:
        if self._context.is_done(job):
            self.settle(job, done=True)
        else:
            insort(self._waiting, job, key=self._place)

    def _reads_cache(self, job: Job) -> bool:
        return job.kind == "train" and self._context.recipe(job).reference.cache is not None

    def _place(self, job: Job) -> tuple[int, ...]:
        """Return a job's place in the order."""
        if job.shared:
            return (0,)
        row, seed = self._rows.get(job.label, -1), job.cell.seed
        if job.cell.role == TUNING:
            return 1, row, seed, self._plan.method(job.label).rates.index(job.cell.rate or 0.0)
        return (3 if job.kind == "rl" else 2), seed, row
