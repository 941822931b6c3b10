"""What the verifier ``program`` takes, wherever a set of options names a verifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ballast.options import Where
from ballast.verifiers.program import TOLERANCE
from ballast.verifiers.registry import PROGRAM, Verifier, verifier


class Judging(Protocol):
    """Options that name a verifier."""

    @property
    def verifier(self) -> str | None: ...

    @property
    def tolerance(self) -> float: ...

    @property
    def allow_code_execution(self) -> bool: ...


def judge(options: Judging, seconds: float) -> Verifier:
    """Return the verifier that options name; raises as `ballast.verifiers.verifier` does."""
    return verifier(
        str(options.verifier),
        seconds=seconds,
        tolerance=options.tolerance,
        allow_code_execution=options.allow_code_execution,
    )


def conflicts(options: Judging) -> Iterator[tuple[Where, str]]:
    """Yield what is wrong with the options of verifier ``program``: no permission, or another verifier."""
    if options.verifier == PROGRAM:
        if not options.allow_code_execution:
            yield (
                ("allow_code_execution",),
                "verifier program runs what the model writes on this machine with your rights, and the limits around "
                "it are no sandbox; set it to true to run it, best inside a container",
            )
        return
    for name, default in (("tolerance", TOLERANCE), ("allow_code_execution", False)):
        if getattr(options, name) != default:
            yield (name,), "would be ignored: only verifier program reads it; leave it out, or take verifier: program"
