"""Progress of a scoring run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0


class ScoringProgress:
    """Counts rows and tokens, and shows tokens per second and the time left, on stderr.

    Args:
        rows: rows to score.
        tokens: tokens in those rows, which is what the work is proportional to.
        show: False shows nothing.
    """

    def __init__(self, rows: int, tokens: int, show: bool = True) -> None:
        self.rows, self.tokens = rows, tokens
        self.rows_done = self.tokens_done = 0
        self._show = show
        self._bar: Progress | None = None
        self._task: TaskID
        self._start = self._last = time.monotonic()

    def __enter__(self) -> ScoringProgress:
        self._start = self._last = time.monotonic()
        if self._show and sys.stderr.isatty():
            self._bar = _rich_bar()
            self._bar.start()
            self._task = self._bar.add_task("scoring", total=self.tokens, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._show and self.rows and kind is None:
            self._line()

    @property
    def rate(self) -> float:
        """Tokens per second since the start."""
        return self.tokens_done / max(time.monotonic() - self._start, 1e-9)

    def advance(self, rows: int, tokens: int) -> None:
        """Count a batch and show it."""
        self.rows_done += rows
        self.tokens_done += tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=self.tokens_done, rate=f"{self.rate:,.0f} tokens/s")
        elif self._show and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        left = (self.tokens - self.tokens_done) / max(self.rate, 1e-9)
        print(
            f"scored {self.rows_done:,}/{self.rows:,} rows, {self.tokens_done:,} tokens, {self.rate:,.0f} tokens/s, "
            f"{left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def _rich_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
