"""What a run of training says as it goes: one line at a time, also where nobody watches a bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ballast.progress import duration
from ballast.protocols import Say

MOST = 40
"""Lines of a run at most; metrics.jsonl has every entry of the log."""

Tell = Callable[[Mapping[str, Any], Any], None]
"""Called with a new entry of the log and the trainer's state."""


def step_lines(say: Say | None, names: Sequence[str], *, most: int = MOST) -> Tell:
    """Return what says ``step 12/64 · loss 0.41 · 3 min left`` of entries that have the first of these names.

    Args:
        say: None says nothing.
        names: metrics to show, as far as an entry has them.
        most: lines at most, evenly over the run.
    """
    began: tuple[float, int] | None = None
    last = -1

    def tell(line: Mapping[str, Any], state: Any) -> None:
        nonlocal began, last
        part = most * state.global_step // state.max_steps
        if say is None or line.get(names[0]) is None or part == last:
            return
        last, began = part, began or (time.monotonic(), state.global_step)
        values = [f"{name} {line[name]:.3g}" for name in names if line.get(name) is not None]
        say(" · ".join([f"step {state.global_step}/{state.max_steps}", *values, *_left(*began, state)]))

    return tell


def _left(moment: float, step: int, state: Any) -> list[str]:
    """Return the time that is left, at the pace since the first line."""
    done, left = state.global_step - step, state.max_steps - state.global_step
    if not done or not left:
        return []
    return [f"{duration((time.monotonic() - moment) / done * left)} left"]
