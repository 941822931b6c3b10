"""What a comparison shows while it runs: a live table on a terminal, a line for every run elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING

from ballast.compare.jobs import Job
from ballast.protocols import Say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Slot = tuple[str, str]
"""A row's label, and what is counted of it: ``short``, ``tuning``, ``runs`` or ``rl``."""

HEADINGS = {"short": "short runs", "tuning": "choose rate", "runs": "runs", "rl": "RL"}
BEGINS = {"base": "base: is being measured", "score": "reference: is being scored"}
NOUNS = {"short": "short runs", "tuning": "tuning", "runs": "runs", "rl": "RL"}


def slot_of(job: Job) -> Slot:
    """Return where a job is counted."""
    if job.kind == "rl":
        return job.label, "rl"
    if job.cell.role == "tuning":
        return job.label, "tuning" if job.cell.steps is None else "short"
    return job.label, "runs"


class Board:
    """Counts what is done of each row, and estimates the time left from how long jobs took.

    Args:
        totals: jobs of every row and kind.
        done: those of them that an earlier process did.
        took: the seconds that some of those took; they count until this process has timed the like.
        say: what prints lines.
        score: returns a line on what a job scored.
        jobs: how many run at a time.
    """

    def __init__(
        self,
        totals: Mapping[Slot, int],
        done: Mapping[Slot, int],
        *,
        took: Mapping[Slot, Sequence[float]] | None = None,
        say: Say,
        score: Callable[[Job], str],
        jobs: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.totals = dict(totals)
        self.done = {slot: done.get(slot, 0) for slot in totals}
        self.broken: dict[Slot, int] = {}
        self.rates: dict[str, float] = {}
        self.seconds: dict[Slot, list[float]] = {}
        self._earlier = {slot: list(values) for slot, values in (took or {}).items() if values}
        self.running: dict[Job, float] = {}
        self.last: dict[str, str] = {}
        self._say, self._score, self._jobs, self._clock = say, score, jobs, clock
        self._lock = RLock()
        self._live = False
        self._began = clock()

    def began(self, job: Job) -> None:
        """A job begins."""
        with self._lock:
            self.running[job] = self._clock()
        if job.shared:
            self.said(BEGINS[job.kind])

    def ended(self, job: Job) -> None:
        """A job is done."""
        if job.shared:
            with self._lock:
                self._close(job)
            return
        score = self._score(job)
        with self._lock:
            took = self._close(job)
            self.done[slot_of(job)] += 1
            self.seconds.setdefault(slot_of(job), []).append(took)
            self.last[job.label] = score
            self._print(f"{job.name}: {score} ({took:.0f} s; {self.left_text()})")

    def failed(self, job: Job, error: str) -> None:
        """A job broke off."""
        with self._lock:
            self._close(job)
            follows = (job.label, "rl")
            lost = [slot_of(job), *([follows] if slot_of(job)[1] == "runs" and follows in self.totals else [])]
            for slot in lost:
                self.broken[slot] = self.broken.get(slot, 0) + 1
            self.last[job.label] = f"failed: {error}"
            self._print(f"{job.name}: failed: {error}")

    def again(self, job: Job, why: str) -> None:
        """Nothing came of a job, which is to begin once more."""
        with self._lock:
            self._close(job)
            self.last[job.label] = f"is done again: {why}"
            self._print(f"{job.name}: is done again: {why}")

    def said(self, line: object) -> None:
        """There is something to say of what all runs share."""
        if self._live:
            # The table is drawn around it, under a lock of its own, and `view` asks for the one here.
            self._say(line)
            return
        with self._lock:
            self._say(line)

    def chose(self, label: str, rate: float, why: str) -> None:
        """A row has its rate."""
        with self._lock:
            self.rates[label] = rate
            self._print(f"{label}: learning rate {rate:g}, {why}" if why else "")

    def dropped(self, label: str, why: str) -> None:
        """A row is reported no more."""
        with self._lock:
            self.last[label] = why
            self._print(f"{label}: {why}")

    def replan(self, totals: Mapping[Slot, int]) -> None:
        """Fewer jobs are left to do than there might have been."""
        with self._lock:
            self.totals = dict(totals)
            self.done = {slot: min(self.done.get(slot, 0), number) for slot, number in totals.items()}

    def left(self) -> float | None:
        """Return an estimate of the seconds left, None before anything was timed.

        A row's own mean where it has one, else that of the same kind of job, else that of all jobs.
        """
        with self._lock:
            if not self._times():
                return None
            runs = [(job, began) for job, began in self.running.items() if not job.shared]
            since = [(slot_of(job), self._clock() - began) for job, began in runs]
            running = [max(self._expected(slot) - spent, 0.0) for slot, spent in since]
            waiting = Counter({slot: self._open(slot) for slot in self.totals}) - Counter(slot for slot, _ in since)
            left = sum(running) + sum(self._expected(slot) * number for slot, number in waiting.items())
            # A job is not shared: the last ones leave processes idle.
            longest = max([*running, *map(self._expected, waiting)], default=0.0)
        return max(left / self._jobs, longest)

    def left_text(self) -> str:
        """Return the time left in words, and what of it is a guess."""
        left = self.left()
        if left is None:
            return "time left unknown"
        with self._lock:
            timed = {kind for _, kind in self._times()}
            untimed = {kind for (row, kind) in self.totals if self._open((row, kind)) and kind not in timed}
        guess = " and ".join(noun for kind, noun in NOUNS.items() if kind in untimed)
        return f"about {_clock_text(left)} left{f' ({guess} untimed)' if guess else ''}"

    def _times(self) -> dict[Slot, list[float]]:
        return {**self._earlier, **self.seconds}

    def _expected(self, slot: Slot) -> float:
        times = self._times()
        same = [value for (_, kind), values in times.items() if kind == slot[1] for value in values]
        found = times.get(slot) or same or [value for values in times.values() for value in values]
        return sum(found) / len(found)

    def _open(self, slot: Slot) -> int:
        return max(self.totals[slot] - self.done[slot] - self.broken.get(slot, 0), 0)

    def _close(self, job: Job) -> float:
        return self._clock() - self.running.pop(job, self._clock())

    def _print(self, text: str) -> None:
        """Print a line, where no table shows what it says; an error may look like markup."""
        from rich.text import Text

        if self._live or not text:
            return
        done = sum(self.done.values()) + sum(self.broken.values())
        self._say(Text(f"{done}/{sum(self.totals.values())} {text}"))

    @contextmanager
    def shown(self, console: Console | None) -> Iterator[None]:
        """Show the table while the block runs, where the console is a terminal."""
        if console is None or not console.is_terminal:
            yield
            return
        from rich.live import Live

        # It asks for the view under its own lock, so it must not be called under the lock here.
        with Live(get_renderable=self.view, console=console, refresh_per_second=2, transient=True):
            self._live = True
            try:
                yield
            finally:
                self._live = False

    def view(self) -> RenderableType:
        """Return the table as it stands."""
        from rich.box import SIMPLE
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            kinds = [kind for kind in HEADINGS if any(slot[1] == kind for slot in self.totals)]
            table = Table("", *(HEADINGS[kind] for kind in kinds), "rate", "last", box=SIMPLE, pad_edge=False)
            for label in dict.fromkeys(label for label, _ in self.totals):
                counts = [self._count((label, kind)) for kind in kinds]
                rate = f"{self.rates[label]:g}" if label in self.rates else ""
                table.add_row(label, *counts, rate, Text(self.last.get(label, ""), overflow="ellipsis", no_wrap=True))
            total = sum(self.totals.values())
            done = sum(self.done.values()) + sum(self.broken.values())
            now = "; ".join(f"{job.name} ({self._clock() - since:.0f} s)" for job, since in self.running.items())
            elapsed = _clock_text(self._clock() - self._began)
            lines = Table.grid()
            lines.add_row(ProgressBar(total=total, completed=done, width=60))
            lines.add_row(Text(f"{done} of {total} runs, {elapsed} so far, {self.left_text()}"))
            lines.add_row(Text(f"now: {now}" if now else "", overflow="ellipsis", no_wrap=True))
            return Group(table, lines)

    def _count(self, slot: Slot) -> str:
        if slot not in self.totals:
            return ""
        broken = f" ({self.broken[slot]} failed)" if slot in self.broken else ""
        return f"{self.done[slot]}/{self.totals[slot]}{broken}"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
