"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ballast.ranks import speaks

SECONDS_BETWEEN_LINES = 10.0

Tell = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""


def duration(seconds: float) -> str:
    """Return a span of time in one unit: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def on_stderr(unit: str, *, show: bool = True, lines: bool = True) -> Iterator[Tell]:
    """Yield what is told how far something is; each thing that is done has a bar of its own.

    Args:
        unit: of what is counted, such as ``tokens``.
        show: False shows nothing.
        lines: print lines where stderr is no terminal.

    Of several ranks the first shows its own share.
    """
    show = show and speaks()
    if show and sys.stderr.isatty():
        with _bars(unit) as tell:
            yield tell
    elif show and lines:
        yield _lines(unit)
    else:
        yield lambda what, done, total: None


@contextmanager
def _bars(unit: str) -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    count = TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}")
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), count)
    bars: dict[str, TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as shown:

        def tell(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=total)
            shown.update(bars[what], completed=done)

        yield tell


def _lines(unit: str) -> Tell:
    began: dict[str, float] = {}
    last = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        # It is told of when part of it is done, so it began where what was before it was last told of.
        began.setdefault(what, last)
        if done < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last, rate = now, done / max(now - began[what], 1e-9)
        left = (total - done) / max(rate, 1e-9)
        line = f"{what}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return tell
