"""A Ray cluster as the place where runs are done: how to join it, and how many have room on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from ballast.compare.actors import Actors
from ballast.compare.jobs import JobContext
from ballast.errors import BallastError
from ballast.options import Options
from ballast.protocols import Say
from ballast.records.write import unwritable_as_error

AUTO, LOCAL = "auto", "local"
ANSWERS = 5.0
"""Seconds in which a cluster is expected to answer."""


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text.startswith("ray://"):
        raise ValueError(
            "Ray's client has no runs of its own; start the command on a node of the cluster: --ray HOST:PORT"
        )
    if text not in (AUTO, LOCAL) and not (host and port.isdigit()):
        raise ValueError(f"{text!r} is no address; give HOST:PORT, {AUTO} or {LOCAL}, or none after the recipe")
    return text


class RayOptions(Options):
    """Where runs are done, and what each of them takes."""

    owner: ClassVar[str] = "--"

    ray: Annotated[str, AfterValidator(_address)] = AUTO
    """HOST:PORT of a cluster; `auto`: RAY_ADDRESS, else the one on this machine, else as `local`; `local`: one that is
    started on this machine and ends with the command."""
    gpus: float | None = Field(None, ge=0, le=1, json_schema_extra={"reason": "a run goes on one device"})
    """GPUs of each run, less than 1 to share one; 1 where the cluster has any, else 0."""
    cpus: int = Field(1, ge=1)
    """CPU cores of each run."""


def ray_options(ray: str | None, gpus: float | None, cpus: int | None) -> RayOptions | None:
    """Return the options that a command line gives, None without ``--ray``.

    Raises:
        BallastError: one is not allowed, or has no meaning without ``--ray``.
    """
    given = {name: value for name, value in (("ray", ray), ("gpus", gpus), ("cpus", cpus)) if value is not None}
    if given and ray is None:
        raise BallastError(
            f"--{next(iter(given))}: would be ignored without --ray; leave it out, or add --ray (--jobs N gives every "
            "run of one machine one of its GPUs)"
        )
    return RayOptions.from_dict(given) if given else None


@dataclass(frozen=True)
class Cluster:
    """A cluster that is connected, and what of it a comparison uses.

    Attributes:
        count: runs at a time.
        threads: of each; None leaves that to torch.
        cpus, gpus: what each takes.
    """

    count: int
    threads: int | None
    cpus: int
    gpus: float

    @contextmanager
    def runner(self, context: JobContext) -> Iterator[Actors]:
        """Yield what does the jobs; leaving the block ends it."""
        probe = context.store.root / f".seen-by-{socket.gethostname()}-{os.getpid()}.tmp"
        with unwritable_as_error(probe):
            probe.touch()
        takes = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        actors = Actors(context, self.count, self.threads, takes, probe=probe.name, has_room=self._has_room)
        try:
            yield actors
        finally:
            actors.close()
            probe.unlink(missing_ok=True)

    def _has_room(self) -> bool:
        return places(_nodes(), self.cpus, self.gpus) > 0


@contextmanager
def connected(options: RayOptions, jobs: int | None, threads: int | None, say: Say) -> Iterator[Cluster]:
    """Yield a cluster; leaving the block disconnects from it, and ends it where it was started for this.

    Args:
        jobs: runs at a time; None for as many as there is room for.

    Raises:
        BallastError: Ray is not installed, no cluster answers, or it has no place for a run.
    """
    _connect(options, say)
    import ray

    try:
        nodes = _nodes()
        gpus = options.gpus if options.gpus is not None else float(any(_has(node, "GPU") for node in nodes))
        count = _count(nodes, options.cpus, gpus, jobs)
        say(f"ray: {len(nodes)} nodes, {count} runs at a time, {_share(options.cpus, gpus)} each")
        yield Cluster(count, threads, options.cpus, gpus)
    finally:
        ray.shutdown()


def _connect(options: RayOptions, say: Say) -> None:
    # Nobody who runs a comparison asked for statistics to be sent.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise BallastError(
            "--ray: the package ray is not installed, so there is no cluster to do the runs; pip install "
            "'ballast-ft[ray]', or take --jobs N on this machine and --only I/N on several"
        ) from error
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS", AUTO) if options.ray == AUTO else options.ray
    try:
        _check_answers(address)
        try:
            ray.init(address=address, **settings)
        except ConnectionError as error:
            if address != AUTO or "running Ray instance" not in str(error):
                raise
            say("ray: no cluster runs here; one is started on this machine and ends with this command")
            ray.init(address=LOCAL, include_dashboard=False, **settings)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BallastError(
            f"--ray {address}: no cluster can be joined there ({reason}); start one with `ray start --head` and run "
            f"this on one of its nodes, or take --ray {LOCAL}"
        ) from error


def _check_answers(address: str) -> None:
    """Look for the cluster before Ray does, which waits for minutes."""
    if address not in (AUTO, LOCAL):
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), ANSWERS).close()


def _nodes() -> list[Mapping[str, Any]]:
    """Return the nodes that are alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _has(node: Mapping[str, Any], name: str) -> float:
    return float(node["Resources"].get(name, 0.0))


def places(nodes: Sequence[Mapping[str, Any]], cpus: int, gpus: float) -> int:
    """Return how many runs there is room for at a time.

    Args:
        nodes: as `ray.nodes` returns them.
        cpus, gpus: what each run takes.
    """
    return sum(min(int(_has(node, name) / of) for name, of in (("CPU", cpus), ("GPU", gpus)) if of) for node in nodes)


def _share(cpus: int, gpus: float) -> str:
    return f"{cpus} CPU" + (f" and {gpus:g} GPU" if gpus else "")


def _count(nodes: Sequence[Mapping[str, Any]], cpus: int, gpus: float, jobs: int | None) -> int:
    """Return how many runs go at a time."""
    room, each = places(nodes, cpus, gpus), _share(cpus, gpus)
    if room == 0:
        there = ", ".join(f"{sum(_has(node, name) for node in nodes):g} {name}" for name in ("CPU", "GPU"))
        raise BallastError(
            f"--gpus {gpus:g} --cpus {cpus}: no node of the cluster has {each}, so every run would wait for ever; it "
            f"has {there} on {len(nodes)} nodes: ask for less, or add nodes before the command"
        )
    if jobs is not None and jobs > room:
        raise BallastError(
            f"--jobs {jobs}: the cluster has room for {room} runs with {each} at a time, and the others would wait; "
            f"take --jobs {room} or leave it out"
        )
    return jobs or room
