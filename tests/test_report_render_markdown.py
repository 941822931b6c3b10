"""The Markdown report as GitHub's flavour reads it: whole tables, the page's figures, no text from data as markup."""

import json

import pytest
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

import report_records
from ballast.records.runs import read_run
from ballast.records.schema import PlanRecord
from ballast.records.summary import Summary
from ballast.report.build import build
from ballast.report.charts.tables import chart_tables
from ballast.report.render import html, markdown_text
from ballast.report.source import Source, load

NASTY = (
    "a | b",
    "`code` ``more`` ```",
    "</style><script>alert(1)</script>",
    "<!-- gone",
    "&lt;b&gt; & co",
    "\"quoted\" 'twice'",
    "[x](http://e.example) ![y](z) <http://e.example>",
    "\\| \\` end\\",
    "*bold* _lean_ ~~gone~~ $x$",
    "- item\n\n# head\n| a | b |\n|---|---|",
    "\u202eback",
)
KINDS = {
    *(f"{block}_{end}" for block in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")),
    *(f"{block}_{end}" for block in ("heading", "paragraph", "bullet_list", "list_item") for end in ("open", "close")),
    *(f"{block}_{end}" for block in ("strong", "blockquote") for end in ("open", "close")),
    *("inline", "text", "text_special", "fence", "softbreak"),
}
"""All that a report is made of: neither HTML nor links, images or code within lines."""


def parsed(text):
    """Tokens of tables and emphasis, with HTML seen as such where there is any."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def tables(tokens):
    """The tables as rows of cells of plain text."""
    found, row = [], None
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            row = []
        elif token.type in ("th_open", "td_open"):
            row.append("".join(child.content for child in tokens[place + 1].children))
        elif token.type == "tr_close":
            found[-1].append(row)
    return found


def shown(text):
    """A cell's text as a report shows it."""
    return " ".join(text.split()).replace("\u202e", "⟨U+202E⟩")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = report_records.comparison(tmp_path_factory.mktemp("markdown") / "lab", random=True)
    (folder / "tokens.json").write_text(json.dumps(report_records.tokens()))
    return build(load([folder]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Summary and plan of a small comparison, as text."""
    folder = tmp_path_factory.mktemp("plain")
    report_records.comparison(folder, then=None, seeds=1, rates=[1e-4], choose_by=None)
    return [(folder / name).read_text() for name in ("summary.json", "compare.json")]


def cell_text(cell):
    """A cell as Markdown shows it: what stands small below goes into brackets."""
    below = "; ".join(part for part in (cell.detail, cell.note) if part)
    return f"{cell.text} ({below})" if below else cell.text


def paragraphs(tokens):
    return ["".join(child.content for child in token.children) for token in tokens if token.type == "inline"]


def headings(tokens, tag):
    opened = [place for place, token in enumerate(tokens) if token.type == "heading_open" and token.tag == tag]
    return ["".join(child.content for child in tokens[place + 1].children) for place in opened]


def test_every_table_of_the_report_is_a_table_with_the_same_cells(report):
    found = tables(parsed(markdown_text(report)))
    expected = [table for section in report.sections for table in (*section.tables, *chart_tables(section))]
    assert len(found) == len(expected) >= 10
    for cells, table in zip(found, expected, strict=True):
        assert cells[0] == list(table.columns)
        assert cells[1:] == [[cell_text(cell).strip() for cell in row] for row in table.rows]


def test_headings_answer_and_notes_are_those_of_the_page(report):
    tokens, page = parsed(markdown_text(report)), html(report)
    assert headings(tokens, "h1") == [report.title]
    left_out = {section.title for section in report.sections} - set(headings(tokens, "h2"))
    assert left_out == {"Token weights"}, "charts alone"
    found = paragraphs(tokens)
    for sentence in report.answer:
        assert sentence in found
        assert sentence.partition(" ")[2][-40:] in page
    for section in report.sections:
        assert set(section.notes) <= set(found)


@pytest.mark.parametrize("nasty", NASTY)
def test_text_from_data_stays_text_in_tables_notes_and_code(nasty, plain, tmp_path):
    broken = tmp_path / "cells" / "broken"
    broken.mkdir(parents=True)
    mark = {"label": "eksft", "rate": 1e-4, "seed": 42, "role": "report"}
    failed = {"schema": 1, "status": "failed", "error": f"RuntimeError: {nasty}", "recipe": {}, "cell": mark}
    (broken / "run.json").write_text(json.dumps(failed))
    summary, plan = (
        text.replace('"prift-mass"', json.dumps(nasty)).replace('"lab:test"', json.dumps(nasty)) for text in plain
    )
    summary, plan = Summary.model_validate_json(summary), PlanRecord.model_validate_json(plan)
    report = build(Source((tmp_path,), summary, (read_run(broken),), None, plan))
    tokens = parsed(markdown_text(report))
    kinds = {child.type for token in tokens for child in token.children or ()} | {token.type for token in tokens}
    assert kinds <= KINDS
    found = tables(tokens)
    assert [len({len(row) for row in table}) for table in found] == [1] * len(found)
    assert shown(nasty) in {row[0] for table in found for row in table}, "a label"
    [fence] = [token for token in tokens if token.type == "fence"]
    again = YAML(typ="safe").load(fence.content)
    assert again["compare"]["objectives"][1]["name"] == nasty.replace("\u202e", "⟨U+202E⟩")
    assert any(f"failed: RuntimeError: {shown(nasty)}" in text for text in paragraphs(tokens))
    assert len(headings(tokens, "h1")) == 1
