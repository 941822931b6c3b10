"""A server that is started for one model and stopped afterwards, whatever becomes of this process."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from ballast.engines.options import VllmEngine
from ballast.errors import BallastError

KEEPER = Path(__file__).with_name("_keeper.py")
HOST = "127.0.0.1"
PAUSE = 0.25
"""Seconds between two looks at whether a server has started."""
STOP_SECONDS = 30.0
"""Seconds that a server has to end by itself."""
TAIL = 300
"""Characters of a server's log that an error repeats."""


class Server:
    """A process that serves one model on a port of this machine.

    Attributes:
        model: the name that it serves the model under, new for each start: another server's on the same port is not
            mistaken for it.
        base_url: its address.
    """

    def __init__(self, options: VllmEngine, folder: str, dtype: str, log: Path) -> None:
        self.options, self.log, self.model = options, log, f"ballast-{secrets.token_hex(4)}"
        port = _free_port()
        self.base_url = f"http://{HOST}:{port}/v1"
        named = ("--host", HOST, "--port", str(port), "--served-model-name", self.model, "--dtype", dtype)
        # The model's generation defaults stay where they are: what is measured is the model.
        command = [*options.command, folder, *named, "--generation-config", "vllm", *options.arguments]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(KEEPER), str(STOP_SECONDS), str(log.parent), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(options),
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when it answers.

        Raises:
            BallastError: it ended, or did not start in time.
        """
        opener = build_opener(ProxyHandler({}))
        until = time.monotonic() + self.options.start_seconds
        while time.monotonic() < until:
            if problem := self.ended():
                raise BallastError(problem)
            try:
                with opener.open(f"{self.base_url}/models", timeout=10):
                    return
            except (URLError, OSError):
                time.sleep(PAUSE)
        raise BallastError(
            f"engine.command: the server has not started within {self.options.start_seconds:g} seconds "
            f"({self._tail()}); raise engine.start_seconds"
        )

    def ended(self, patience: float = 0.0) -> str | None:
        """Return what to say where the process has ended, None where it still runs after so many seconds."""
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        said = f"the server ended with exit code {code} ({self._tail()})"
        return f"engine.command: {said}; the same command by hand says more"

    def stop(self) -> None:
        """End it, and everything that it has started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS + 10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.exists() else []
        said = [" ".join(line.split()) for line in lines if line.strip()]
        return said[-1][-TAIL:] if said else "it said nothing"


@contextmanager
def served(options: VllmEngine, folder: str, dtype: str) -> Iterator[Server]:
    """Give a server that has been started, not yet one that answers; it is stopped at the end of the block.

    Raises:
        BallastError: there is no such command.
    """
    if problem := command_problem(options):
        raise BallastError(f"engine.command: {problem}")
    place = Path(tempfile.mkdtemp(prefix="ballast-engine-"))
    try:
        server = Server(options, folder, dtype, place / "server.log")
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def command_problem(options: VllmEngine) -> str | None:
    """Return why a server cannot be started, None where its program is there."""
    program = options.command[0]
    if shutil.which(program) is not None:
        return None
    return (
        f"there is no program {program!r} here, so nothing could be sampled; install vLLM in an environment of its own "
        "and name it, such as engine.command=[/path/to/env/bin/vllm, serve], or take engine=transformers"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _environment(options: VllmEngine) -> dict[str, str]:
    # Where ballast is imported from is no place for the other environment to import from.
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, **options.environment}
