"""A report as one HTML page or as Markdown, and a record of tokens as a page: pure functions of what they show.

The page has neither script nor font nor image of its own, and a policy that forbids the browser to load any: it is the
same in an archive, in a mail and off line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from ballast import __version__
from ballast.report import marks, tokens, weights
from ballast.report.charts import svg
from ballast.report.charts.data import BASE, Report, Section
from ballast.report.charts.tables import plain_tables
from ballast.report.text import inert, markdown


def html(report: Report) -> str:
    """Return the report as one self-contained page."""
    return _page("report.html.j2").render(
        report=report,
        answer=[_led(sentence) for sentence in report.answer],
        styles=marks.styles_of(report.labels),
        views=tokens.views(report.tokens) if report.tokens else (),
        **_common(),
    )


def _led(sentence: str) -> tuple[str, str]:
    """Return the words that a sentence starts with, which are set off for the eye, and the rest."""
    found = re.match(r"[^,:]*[,:]", sentence)
    lead = "" if found is None else found[0]
    return inert(lead), inert(sentence[len(lead) :])


def tokens_html(record: Mapping[str, Any]) -> str:
    """Return a record of `ballast inspect` as one self-contained page, one table for each objective."""
    return _page("tokens.html.j2").render(
        record=record,
        views=tokens.views(record),
        histograms=weights.weights(record),
        styles=marks.styles_of(weights.labels(record)),
        **_common(),
    )


def markdown_text(report: Report) -> str:
    """Return the report as Markdown: the answer, the tables, short curves as tables."""
    shown = [section for section in report.sections if _says_something(section)]
    text = _environment(False).get_template("report.md.j2").render(report=report, sections=shown)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _says_something(section: Section) -> bool:
    return bool(section.tables or section.notes or section.code or plain_tables(section))


def _common() -> dict[str, Any]:
    return {
        "version": __version__,
        "style": Markup(_template("style.css")),
        "draw": svg.draw,
        "key": marks.key,
        "labels_in": svg.labels_in,
        "stages_in": svg.stages_in,
        "stage_key": marks.stage_key,
        "base": BASE,
        "meaning": tokens.MEANING,
        "heads": tokens.HEADS,
    }


def _page(name: str) -> Any:
    return _environment(True).get_template(name)


@cache
def _environment(escapes: bool) -> Environment:
    made = Environment(
        loader=FunctionLoader(_template),
        autoescape=escapes,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "inert": inert,
        "inert_lines": lambda text: inert(text, keep="\n"),
        "md": markdown,
        "breakable": _breakable,
        "fenced": _fenced,
        "plain_tables": plain_tables,
    }
    made.filters |= filters
    return made


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _breakable(text: object) -> Markup:
    """Return text for a page that may be broken behind underscores, as names of metrics are long."""
    return Markup("_<wbr>").join(escape(part) for part in inert(text).split("_"))


def _fenced(text: str) -> str:
    """Return a block of code whose fence is longer than any run of backticks in it."""
    plain = inert(text, keep="\n")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    return f"{fence}yaml\n{plain.rstrip()}\n{fence}"
