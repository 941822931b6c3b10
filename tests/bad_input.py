"""What the suites of bad input share: a case, and what must become of it.

Each suite has a recipe that works (`Case.base`) and a table of cases that break it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from typer.testing import CliRunner

from ballast.cli import app

Change = Callable[[], object]


def write_rows(path: str | Path, rows: list) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_json(path: str, **changes) -> Change:
    return lambda: Path(path).write_text(json.dumps({**json.loads(Path(path).read_text()), **changes}))


@dataclass(frozen=True)
class Case:
    """Settings over a recipe that works, what is broken beforehand, and what the one line must say."""

    base: ClassVar[tuple[str, ...]] = ()
    verb: ClassVar[str] = "train"

    name: str
    expected: str
    settings: tuple[str, ...] = ()
    break_it: Change = lambda: None
    command: str = ""
    without: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        kept = [setting for setting in self.base if setting.split("=")[0] not in self.without]
        return [self.command or self.verb, *self.flags, *kept, *self.settings]


def refused(arguments: list[str]) -> list[str]:
    """Run the command line, which must refuse; return the lines on stderr."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    return done.stderr.splitlines()


def check_refused(case: Case, workspace: Path) -> None:
    """The case is refused in one line that says what it must, and leaves everything as it was."""
    case.break_it()
    before = _content(workspace)
    lines = refused(case.arguments())
    assert len(lines) == 1, lines
    assert case.expected in lines[0], lines[0]
    assert _content(workspace) == before


def _content(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "lock" not in path.name and "__pycache__" not in path.parts)
