"""Text from data as text: nothing in it acts on a page, a terminal or the direction of the text beside it."""

from __future__ import annotations

import re

from ballast.text import inert

MARKDOWN = re.compile(
    r"""[\\`*{}\[\]<>|~$&]      # markup anywhere
    |(?<![^\W_])_|_(?![^\W_])  # emphasis, but not within a word
    |^(?:[#=]|[+-](?=[\s+-]|$)|\d+(?=[.)](?:\s|$)))  # what starts a heading or a list
    |:(?=//)|(?<=\bwww)\.      # addresses that would become links
    """,
    re.VERBOSE | re.IGNORECASE,
)


def one_line(text: object) -> str:
    """Return inert text in one line: breaks and runs of white space become a space."""
    return inert(" ".join(str(text).split()))


def markdown(text: object) -> str:
    """Return text that Markdown shows as it is: no markup, no link, no table cell of its own."""
    return MARKDOWN.sub(_escaped, one_line(text))


def _escaped(markup: re.Match[str]) -> str:
    # A backslash goes before punctuation only; the number of a list gets a word joiner behind it.
    text = markup[0]
    return f"{text}\u2060" if text.isdigit() else f"\\{text}"
