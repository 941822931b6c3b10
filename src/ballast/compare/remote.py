"""What is sent to the nodes of a cluster; it finds out what is there before anything of ballast is imported."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def source_digest(package: Path) -> str:
    """Return a digest of a package's source: the same files with the same content give the same."""
    total = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        total.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()[:16]


class RemoteWorker:
    """A process on a node that does jobs as it is asked. It speaks JSON: no class of ballast is sent either way."""

    def prepare(self, text: str) -> str:
        """Get ready, and return JSON: the ``host``, and the ``problem`` where the node is not fit for runs.

        Args:
            text: JSON. ``folder``: where the command runs; ``path``: where it imports from; ``source``: digest of its
                ballast; ``output`` and ``probe``: the folder of the runs and a file in it, to be seen within
                ``patience`` seconds; ``gpus``: how many each run takes; ``log``: what libraries print goes there;
                ``order``: what is compared.
        """
        asked: dict[str, Any] = json.loads(text)
        return json.dumps({"host": socket.gethostname(), "problem": _problem(asked) or self._ready(asked)})

    def run(self, job: str) -> str:
        """Do a job, and return what came of it."""
        from ballast.compare.jobs import Job
        from ballast.compare.worker import attempt

        return attempt(self.context, Job.model_validate_json(job)).model_dump_json()

    def _ready(self, asked: dict[str, Any]) -> str | None:
        try:
            if not asked["gpus"]:
                # Without a share of its own it would see all of them.
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            from ballast.compare.worker import take_order

            log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for stream in (1, 2):
                os.dup2(log, stream)
            self.context = take_order(asked["order"])
        except Exception as error:
            return f"cannot begin ({type(error).__name__}: {' '.join(str(error).split())}); see {asked['log']}"
        return None


def _problem(asked: dict[str, Any]) -> str | None:
    """Return what keeps this node from doing runs, None where nothing does."""
    folder = Path(asked["folder"])
    if not folder.is_dir():
        return f"has no folder {folder}, where the command runs; start the command in a folder that all nodes share"
    os.chdir(folder)
    sys.path += [entry for entry in asked["path"] if entry not in sys.path and Path(entry).exists()]
    try:
        found = find_spec("ballast")
    except ValueError:
        found = None
    if found is None or found.origin is None:
        return "has no ballast; install there what is installed here"
    package = Path(found.origin).parent
    if source_digest(package) != asked["source"]:
        return f"has another version of ballast ({package}), so its runs would not compare; install the same one"
    return _output_problem(Path(asked["output"]), asked["probe"], asked["patience"])


def _output_problem(output: Path, probe: str, patience: float) -> str | None:
    until = time.monotonic() + patience
    # A network's file system may show a new file late.
    while not (output / probe).is_file():
        if time.monotonic() > until:
            return f"does not see the output {output}, so runs would be lost; choose one that all nodes share"
        time.sleep(min(0.2, patience))
    if not os.access(output, os.W_OK):
        return f"may not write into the output {output}; give it the right to, or choose another output"
    return None
