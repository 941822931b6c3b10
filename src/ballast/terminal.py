"""What goes to a terminal, of several ranks from one: text from data is shown as it stands, and nothing in it acts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ballast.ranks import speaks
from ballast.text import inert


class InertConsole(Console):
    """A console without markup, in whose text control characters, overrides of direction and the like are spelt out."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does; its own control codes are segments of another kind."""
        for segment in super().render(renderable, options):
            plain = segment.control or (segment.text.isascii() and segment.text.isprintable())
            yield segment if plain else segment._replace(text=inert(segment.text, keep="\n"))


def console(*, stderr: bool = False, markup: bool = False) -> Console:
    """Return a console on which lines of a log stay whole: what reads it goes by lines.

    Args:
        markup: read rich's markup; only where all text is ballast's own.
    """
    shown = sys.stderr if stderr else sys.stdout
    quiet = not speaks()
    return InertConsole(stderr=stderr, soft_wrap=not shown.isatty(), markup=markup, emoji=False, quiet=quiet)


def print_text(text: object) -> None:
    """Print text whose lines are the only thing in it that acts."""
    if speaks():
        print(inert(text, keep="\n"))


def print_error(text: object) -> None:
    """Print such text on stderr, of any rank."""
    print(inert(text, keep="\n"), file=sys.stderr, flush=True)


def print_yaml(text: str) -> None:
    """Print what another program may read: changed on a terminal alone."""
    if speaks():
        print(inert(text, keep="\n") if sys.stdout.isatty() else text, end="")


def print_json(value: Any) -> None:
    """Print JSON; it has escapes of its own."""
    if speaks():
        print(json.dumps(value, indent=2))
