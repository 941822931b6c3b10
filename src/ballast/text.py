"""Text from data as text: nothing in it acts on a page, a terminal or the direction of what stands beside it."""

from __future__ import annotations

import unicodedata

INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of characters that show nothing themselves, and may change how others are shown."""


def inert(text: object, *, keep: str = "") -> str:
    """Return text with its invisible characters spelt out, such as ``⟨U+202E⟩``, but for those in `keep`.

    Right-to-left overrides reorder what follows them, lone surrogates cannot be written, escape codes move a
    terminal's cursor: spelt out, they are seen for what they are.
    """
    return "".join(c if c in keep or not _hidden(c) else f"⟨U+{ord(c):04X}⟩" for c in str(text))


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in INVISIBLE
