"""How a program is kept apart: by bubblewrap where it is installed and works, else by resource limits alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

RUNNER = Path(__file__).with_name("_code_runner.py")
HIDDEN = ("/run", "/tmp", "/var/tmp")
"""Folders that a program finds empty: others keep sockets and files there."""


@cache
def bubblewrap() -> str | None:
    """Return the path of a ``bwrap`` that makes a sandbox here, or None; tried once in a process.

    Being installed is not enough: containers and some distributions forbid user namespaces.
    """
    path = shutil.which("bwrap")
    if path is None:
        return None
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError, subprocess.SubprocessError):
        trial = [path, *_options(folder), "--", sys.executable, "-I", "-c", ""]
        if subprocess.run(trial, env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=30).returncode == 0:
            return path
    return None


def sandbox() -> str:
    """Return what programs run in: ``bwrap``, or ``rlimits`` where that is all there is."""
    return "bwrap" if bubblewrap() else "rlimits"


def command(folder: str) -> list[str]:
    """Return the command that starts the runner, with `folder` as the one place that may be written to."""
    path = bubblewrap()
    return [*([path, *_options(folder), "--"] if path else ()), sys.executable, "-I", str(RUNNER)]


def _options(folder: str) -> list[str]:
    """Return bubblewrap's options: no network, no processes but its own, every file outside `folder` read-only."""
    hidden = [place for place in HIDDEN if os.path.isdir(place)]
    python = sorted({sys.prefix, sys.base_prefix, str(RUNNER.parent)})
    shown = [place for place in python if place.startswith(tuple(f"{one}/" for one in hidden))]
    return [
        *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
        *(part for place in hidden for part in ("--tmpfs", place)),
        *(part for place in shown for part in ("--ro-bind", place, place)),
        *("--bind", folder, folder, "--chdir", folder),
    ]


def running_tasks() -> int:
    """Return how many threads this user runs on the machine, as the limit on processes counts them; 0 if unknown."""
    running = 0
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                    running += len(os.listdir(f"/proc/{entry}/task"))
    return running
