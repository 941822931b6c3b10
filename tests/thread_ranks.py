"""Ranks as threads of one process, which cost nothing to start; what they exchange is pickled as between processes."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ballast.errors import Lost
from ballast.ranks import Ranks

SECONDS = 60.0


class Meeting:
    """Where some threads exchange what they have; one that has gone ends the wait of the others."""

    def __init__(self, size: int) -> None:
        self.slots: list[bytes] = [b""] * size
        self.barrier = threading.Barrier(size, timeout=SECONDS)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = pickle.dumps(value)
        try:
            self.barrier.wait()
            found = [pickle.loads(slot) for slot in self.slots]
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise Lost("a thread has gone") from None
        return found


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    group: Any = None

    def gather(self, own: Any) -> list[Any]:
        return self.group.exchange(self.rank, own)

    def first(self, make: Callable[[], Any]) -> Any:
        return self.gather(make() if self.main else None)[0]


def together(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Return what `work` gives on every rank, or raise what one of them raised that no other one caused."""
    meeting = Meeting(size)
    ends: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            ends[rank] = work(ThreadRanks(rank, size, size, meeting))
        except BaseException as error:
            ends[rank] = error
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [end for end in ends if isinstance(end, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, Lost)):
        raise error
    return ends
