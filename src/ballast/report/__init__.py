"""Reports: pure views of run records, as one HTML page and as Markdown; importing this loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ballast.protocols import Say

if TYPE_CHECKING:
    from ballast.records.tokens import TokensRecord

HTML, MARKDOWN = "report.html", "report.md"


def write_report(
    folders: Sequence[str | Path], *, output: str | Path | None = None, metric: str | None = None
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` on a comparison or on runs, and return their paths.

    Args:
        folders: a comparison's output, or one or several outputs of ``ballast train``, or a folder of such.
        output: where the two files go; the first folder by default.
        metric: see `ballast.report.build.build`.

    Raises:
        BallastError: there is nothing to report on, or a record cannot be used; nothing is written then.
    """
    from ballast.errors import BallastError
    from ballast.files import expanded, write_atomically
    from ballast.report.build import build
    from ballast.report.render import html, markdown_text
    from ballast.report.source import load

    paths = [Path(expanded(str(folder))) for folder in folders]
    place = paths[0] if output is None else Path(expanded(str(output)))
    if place.exists() and not place.is_dir():
        raise BallastError(f"--output {place}: is a file; name a folder for {HTML} and {MARKDOWN}")
    report = build(load(paths), metric=metric)
    page, text = html(report), markdown_text(report)
    try:
        write_atomically(place / HTML, page)
        write_atomically(place / MARKDOWN, text)
    except OSError as error:
        raise BallastError(f"{place}: cannot be written to ({error}); name another folder with --output") from error
    return place / HTML, place / MARKDOWN


def show_tokens(record: TokensRecord, *, page: Path | None = None, say: Say = print) -> None:
    """Print a record of `ballast inspect`, and write it as one HTML page where asked."""
    from ballast.files import write_atomically
    from ballast.records.write import unwritable_as_error
    from ballast.report.render import tokens_html
    from ballast.report.tokens import terminal

    terminal(record, say=say)
    if page is not None:
        with unwritable_as_error(page):
            write_atomically(page, tokens_html(record))
        say(f"{page}: written")


__all__ = ["HTML", "MARKDOWN", "show_tokens", "write_report"]
