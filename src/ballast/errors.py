"""The exceptions: input that cannot be used, training that diverged, a run that is stopped, a rank that has ended."""


class BallastError(ValueError):
    """Input that cannot be used: one line that names the place, what would have happened, and the remedy."""


class Diverged(ArithmeticError):
    """Training that came to a loss or a gradient that is no finite number: one line that names the step and its rows.

    Not the input's fault alone, so that a comparison counts the run as failed and goes on with the others.

    Attributes:
        code: exit code of the command.
    """

    code = 1


class Interrupted(KeyboardInterrupt):
    """A run that was stopped from outside: one line that says how to go on, and the exit code of the command."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.code = code


class Lost(Exception):
    """Another rank of this command has ended; it, or whatever started the ranks, says why.

    Attributes:
        code: exit code of this rank.
    """

    code = 1


def suggest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return ``"; did you mean 'x'?"``: names that begin so, else the nearest; all that are known if none is near."""
    from difflib import get_close_matches

    begins = sorted(one for one in known if len(name) > 2 and one.startswith(name))[:3]
    near = begins or get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; known: {', '.join(sorted(known))}"
