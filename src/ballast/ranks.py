"""Processes that a launcher started for one command: which of them this is, its share of the work, what all have found.

A command that splits its work gives each rank every n-th item, such as a batch or a part, and puts the results together
in the order of the items. The items are those of one process, so the results are too, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from ballast.errors import BallastError, Lost

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""A rank may wait that long for the others; one that has ended is noticed at once."""
SECONDS_TO_CLAIM = 5.0


@dataclass(frozen=True)
class Ranks:
    """The ranks that share a command's work, and which of them this one is.

    Attributes:
        rank: 0 … size − 1.
        size: how many there are.
        here: how many of them are on this machine.
        group: what they talk through, None of one alone.
    """

    rank: int = 0
    size: int = 1
    here: int = 1
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether this rank writes what the command writes once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that are this rank's to work on: every n-th."""
        return items[self.rank :: self.size]

    def gather(self, own: T) -> list[T]:
        """Return what every rank gives, by rank; all ranks call it at the same point.

        Raises:
            Lost: another rank has ended.
        """
        if self.size == 1:
            return [own]
        from torch.distributed import all_gather_object

        found: list[Any] = [None] * self.size
        with _in_touch():
            all_gather_object(found, own, group=self.group)
        return found

    def merge(self, own: Sequence[T]) -> list[T]:
        """Return a result for each item, in their order, of those that every rank has for its share.

        Raises:
            Lost: another rank has ended.
        """
        return in_order(self.gather(list(own)))

    def first(self, make: Callable[[], T]) -> T:
        """Return what rank 0 makes; the others wait for it.

        Raises:
            Lost: another rank has ended.
        """
        if self.size == 1:
            return make()
        from torch.distributed import broadcast_object_list

        found: list[Any] = [make() if self.main else None]
        with _in_touch():
            broadcast_object_list(found, src=0, group=self.group)
        made: T = found[0]
        return made


ALONE = Ranks()
"""One process, which does everything."""


def in_order(shares: Sequence[Sequence[T]]) -> list[T]:
    """Return the results of all ranks' shares in the order of the items.

    >>> in_order([["a", "c"], ["b"]])
    ['a', 'b', 'c']
    """
    return [shares[place % len(shares)][place // len(shares)] for place in range(sum(map(len, shares)))]


def started() -> int:
    """Return how many processes were started together, by torchrun, `accelerate launch` or ``--nproc``."""
    return _number("WORLD_SIZE", 1)


def speaks() -> bool:
    """Return whether this process prints: rank 0 does, for all."""
    return started() == 1 or _number("RANK", 0) == 0


def join() -> Ranks:
    """Return the ranks of this command, in touch with each other; all call it at the same point.

    Raises:
        Lost: another rank has ended.
    """
    return ALONE if started() == 1 else _joined()


@cache
def _joined() -> Ranks:
    from torch import distributed

    with _in_touch():
        if distributed.is_initialized():  # by the trainer, for tensors on its devices
            group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        else:
            distributed.init_process_group("gloo", timeout=PATIENCE)
            group = distributed.group.WORLD
    return Ranks(distributed.get_rank(), distributed.get_world_size(), started_here(), group)


def leave() -> None:
    """Let go of the other ranks, where this one is in touch with them: gloo's threads can break the end of Python."""
    if started() > 1:
        from torch import distributed

        if distributed.is_initialized() and distributed.get_backend() == "gloo":
            distributed.destroy_process_group()
            _joined.cache_clear()


def take_device() -> None:
    """Make the accelerator of this rank's number the one that models go to; on a machine without one do nothing.

    Raises:
        BallastError: there are more processes on this machine than accelerators.
    """
    import torch

    here = _number("LOCAL_RANK", 0)
    if started() == 1 or not torch.accelerator.is_available() or on_cpu():
        return
    if here >= (devices := torch.accelerator.device_count()):
        raise BallastError(
            f"{started_here()} processes were started on a machine with {devices} "
            f"{'device' if devices == 1 else 'devices'}, so that some would have none: start {devices}, or set "
            "ACCELERATE_USE_CPU=true to leave the devices alone"
        )
    torch.accelerator.set_device_index(here)


def on_cpu() -> bool:
    """Return whether accelerate was told to leave accelerators alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on", "t")


def started_here() -> int:
    """Return how many of them run on this machine."""
    return _number("LOCAL_WORLD_SIZE", started())


def has_the_word() -> bool:
    """Return whether this rank is the first to say why the command ends: what all come upon is said once.

    It is settled in the launcher's store, which outlives every rank; where there is none, each says it.
    """
    if started() == 1:
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # as torch documents it

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=SECONDS_TO_CLAIM),
        )
        return bool(store.add(f"ballast/word/{attempt}", 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return True


SIGNS_OF_LOSS = ("closed by peer", "reset by peer", "broken pipe", "remote process", "timed out waiting", "watchdog")
"""What the errors of gloo and NCCL say where another rank is gone."""


def is_loss(error: RuntimeError) -> bool:
    """Return whether an error is that of a rank which was left waiting by one that has ended, anywhere in a library."""
    return started() > 1 and any(sign in str(error).lower() for sign in SIGNS_OF_LOSS)


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo: a connection that is closed
        raise Lost(f"another rank has ended: {error}") from error


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        return default
