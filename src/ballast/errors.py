"""The one exception type that ballast raises for input it cannot use."""


class BallastError(ValueError):
    """Input that cannot be used: one line that names the place, what would have happened, and the remedy."""


def suggest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or the list of known names when none is near."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
