"""A report as one HTML page or as Markdown, and a record of tokens as a page: pure functions of what they show.

The page has neither script nor font nor image of its own, and a policy that forbids the browser to load any: it is the
same in an archive, in a mail and off line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from ballast import __version__
from ballast.records.folder import BASE
from ballast.records.tokens import TokensRecord
from ballast.report import tokens
from ballast.report.charts import svg
from ballast.report.charts.data import Report, Section
from ballast.report.charts.shapes import styles_of
from ballast.report.charts.tables import chart_tables
from ballast.report.text import markdown
from ballast.text import inert


def html(report: Report) -> str:
    """Return the report as one self-contained page."""
    return _page("report.html.j2").render(
        report=report,
        answer=[_lead_and_rest(sentence) for sentence in report.answer],
        styles=styles_of(report.labels),
        views=tokens.views(report.tokens) if report.tokens else (),
    )


def _lead_and_rest(sentence: str) -> tuple[str, str]:
    """Return the words up to the first comma or colon, which are set in bold, and the rest."""
    lead = re.match(r"[^,:]*[,:]", sentence)
    end = 0 if lead is None else lead.end()
    return inert(sentence[:end]), inert(sentence[end:])


def tokens_html(record: TokensRecord) -> str:
    """Return a record of `ballast inspect` as one self-contained page, one table for each objective."""
    return _page("tokens.html.j2").render(
        record=record,
        views=tokens.views(record),
        histograms=tokens.histograms(record),
        styles=styles_of(tokens.labels(record)),
    )


def markdown_text(report: Report) -> str:
    """Return the report as Markdown: the answer, the tables, short curves as tables."""
    sections = [section for section in report.sections if _has_text(section)]
    text = _environment(False).get_template("report.md.j2").render(report=report, sections=sections)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _has_text(section: Section) -> bool:
    return bool(section.tables or section.notes or section.code or chart_tables(section))


def _page(name: str) -> Template:
    return _environment(True).get_template(name)


@cache
def _environment(escapes: bool) -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=escapes,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., object]] = {
        "inert": inert,
        "inert_lines": lambda text: inert(text, keep="\n"),
        "md": markdown,
        "breakable": _breakable,
        "fenced": _fenced,
        "chart_tables": chart_tables,
    }
    environment.filters |= filters
    environment.globals |= {
        "version": __version__,
        "style": Markup(_template("style.css")),
        "draw": svg.draw,
        "label_key": svg.label_key,
        "labels_in": svg.labels_in,
        "stage_key": svg.stage_key,
        "stages_in": svg.stages_in,
        "base": BASE,
        "meaning": tokens.MEANING,
        "columns": tokens.COLUMNS,
    }
    return environment


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
