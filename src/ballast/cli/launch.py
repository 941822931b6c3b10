"""Several processes for one command: --nproc starts them as torchrun and `accelerate launch` do."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ballast import ranks
from ballast.cli.base import place
from ballast.errors import BallastError
from ballast.terminal import print_error

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

NProc = Annotated[
    int | None,
    typer.Option("--nproc", min=1, help="Start this many processes, one a GPU, that share the work.", show_default="1"),
]
LaunchConfig = Annotated[
    Path | None,
    place("--launch-config", "Start them as this file of `accelerate config` says (FSDP, DeepSpeed, several nodes)."),
]

OPTIONS = ("--nproc", "--launch-config")
PROGRAM = "ballast.cli"
STARTS_ONE = ("NO", "MULTI_CPU")
"""Kinds of run that `accelerate launch` starts one process for, whatever their number."""
STARTS_MANY = ("MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU", "FSDP", "DEEPSPEED")
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""What an accelerate configuration sets in the environment to have the weights split as they are loaded."""
SECONDS_TO_SAVE = "120"
"""What a rank has to save a last checkpoint after SIGTERM; TORCHELASTIC_SHUTDOWN_TIMEOUT sets another."""


def share(nproc: int | None, config: Path | None, *, trains: bool = False) -> None:
    """Start the processes that are asked for and end as they end; else go on, as a rank where there are several.

    Args:
        nproc: of ``--nproc``.
        config: of ``--launch-config``.
        trains: whether weights may lie split over the ranks; else each rank has all of them.

    Raises:
        BallastError: the processes cannot be started, or there are more than devices.
        Exit: the processes have ended.
    """
    if ranks.started() > 1:
        if nproc is not None or config is not None:
            raise BallastError(
                f"--nproc, --launch-config: {ranks.started()} processes were started already, and each would start "
                "more; leave the options out, or the launcher"
            )
        if not trains:
            for name in SHARDING:
                os.environ.pop(name, None)
        ranks.take_device()
    elif config is not None:
        raise typer.Exit(_ended(_by_accelerate, nproc, config))
    elif nproc is not None and nproc > 1:
        raise typer.Exit(_ended(_by_torchrun, nproc))


def own_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line without the options that start processes.

    >>> own_arguments(["train", "--nproc", "2", "a.yaml", "--launch-config=b.yaml"])
    ['train', 'a.yaml']
    """
    kept, given = [], iter(arguments)
    for word in given:
        if word in OPTIONS:
            next(given, None)
        elif not word.startswith(tuple(f"{option}=" for option in OPTIONS)):
            kept.append(word)
    return kept


def _by_torchrun(nproc: int) -> None:
    import torch
    from torch.distributed import run

    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif not ranks.on_cpu() and nproc > (devices := torch.accelerator.device_count()):
        raise BallastError(
            f"--nproc {nproc}: this machine has {devices} {'device' if devices == 1 else 'devices'}, so that some "
            f"processes would have none; --nproc {devices} is the most, or set ACCELERATE_USE_CPU=true"
        )
    # torchrun's own choice is one thread, on any number of cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    words = ["--standalone", f"--nproc-per-node={nproc}", "-m", PROGRAM, *own_arguments(sys.argv[1:])]
    run.run(run.get_args_parser().parse_args(words))


def _by_accelerate(nproc: int | None, config: Path) -> None:
    from accelerate.commands import launch

    _check_config(config, nproc)
    words = ["--config_file", str(config), *([] if nproc is None else [f"--num_processes={nproc}"])]
    words += ["-m", PROGRAM, *own_arguments(sys.argv[1:])]
    try:
        args = launch.launch_command_parser().parse_args(words)
        launch.launch_command(args)
    except (ValueError, ImportError, ConnectionError) as error:
        raise BallastError(f"--launch-config: {config}: {' '.join(str(error).split())}") from error


def _check_config(config: Path, nproc: int | None) -> None:
    """Refuse a file that is no accelerate configuration, or starts one process."""
    from accelerate.commands.config.config_args import load_config_from_file

    where = f"--launch-config: {config}"
    if not config.is_file():
        raise BallastError(f"{where}: no such file; `accelerate config --config_file FILE` writes one")
    try:
        found = load_config_from_file(str(config))
        kind = str(getattr(found.distributed_type, "value", found.distributed_type))
    except Exception as error:  # of YAML, of enumerations, of unknown keys
        reason = " ".join(str(error).split())
        raise BallastError(f"{where}: cannot be read as a file of `accelerate config`: {reason}") from error
    if kind in STARTS_ONE:
        raise BallastError(
            f"{where}: distributed_type {kind} starts one process, whatever num_processes says; leave the file out, "
            "--nproc alone starts several"
        )
    if kind not in STARTS_MANY:
        raise BallastError(f"{where}: distributed_type {kind} is not supported; known: {', '.join(STARTS_MANY)}")
    if nproc is None and found.num_processes in (None, -1):
        raise BallastError(f"{where}: has no num_processes; say how many with --nproc")


def _ended(start: Any, *arguments: Any) -> int:
    """Start the processes and return the exit code that they end with."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("TORCHELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_SAVE)
    try:
        with _silent():
            start(*arguments)
    except ChildFailedError as failed:
        return _code(failed)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


@contextmanager
def _silent() -> Iterator[None]:
    """Leave out what the launcher logs: what goes wrong the ranks have said, or is said here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _code(failed: ChildFailedError) -> int:
    rank, failure = failed.get_first_failure()
    if failure.exitcode >= 0:
        return int(failure.exitcode)
    name = signal.Signals(-failure.exitcode).name
    print_error(
        f"rank {rank} was ended by {name}{' (the system is out of memory?)' if name == 'SIGKILL' else ''}, and the "
        "others with it; what was written is whole, and the same command goes on from there (train and rl with "
        "--resume)"
    )
    return 128 - int(failure.exitcode)
