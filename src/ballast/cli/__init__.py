"""The command line: thin commands over `ballast.pipeline`; importing it imports no torch."""

from __future__ import annotations

import sys

# Importing a module registers its commands; `ballast --help` lists them in this order.
from ballast.cli import objectives as _objectives

from ballast.cli import prepare as _prepare  # isort: skip
from ballast.cli import revise as _revise  # isort: skip
from ballast.cli import training as _training  # isort: skip
from ballast.cli import measure as _measure  # isort: skip
from ballast.cli import start as _start  # isort: skip
from ballast.cli import lab as _lab  # isort: skip
from ballast.cli.base import app

COMMANDS = (_objectives, _prepare, _revise, _training, _measure, _start, _lab)


def main() -> None:
    """Run the command line; modules in the working directory can be named in recipes (verifiers, objectives)."""
    if "" not in sys.path:
        sys.path.append("")
    app()
