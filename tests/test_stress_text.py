"""Hostile text stays text: in the terminal, on pages, in file names and errors."""

import io
import json
import re
import unicodedata

import pytest

from ballast.compare import view
from ballast.errors import BallastError
from ballast.files import file_name
from ballast.pipeline.evaluate import table
from ballast.records.summary import Summary
from ballast.report import tokens, write_report
from ballast.report.render import tokens_html
from ballast.terminal import InertConsole
from report_records import comparison, tokens_record
from report_records import run as recorded
from stress import LAB, refusal, run

HOSTILE = {
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "escape": "\x1b[2J\x1b]0;title\x07\x9b31m",
    "bidi": "a\u202eb\u2066c",
    "surrogate": "a\ud800b",
    "zero": "a\0b",
    "template": "{{ 7*7 }}{% for x in y %}",
    "markup": "[bold red]x[/bold red][/x][link=http://e.example]y",
    "emoji": ":smile:",
    "path": "../../etc/passwd",
    "long": "x" * 20_000,
}
HIDDEN = ("Cc", "Cf", "Cs")
each = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def shown(*parts):
    """Return what a console writes to a file."""
    target = io.StringIO()
    console = InertConsole(file=target, markup=False, emoji=False, soft_wrap=True)
    for part in parts:
        console.print(part)
    return target.getvalue()


def check_inert(written):
    assert not [c for c in written if c != "\n" and unicodedata.category(c) in HIDDEN]
    written.encode()


@each
def test_lines_and_tables_of_the_terminal(text):
    from rich.table import Table
    from rich.text import Text

    cells = Table(text[:60])
    cells.add_row(text[:60])
    written = shown(text, Text(text), cells)
    check_inert(written)
    if text.isprintable() and len(text) < 70:
        assert written.count(text) == 4


@each
def test_tokens_in_the_terminal_and_on_their_page(text):
    record = tokens_record([["1", "+", text[:500], "2", text[:50]]]) if "\ud800" not in text else tokens_record()
    parts = []
    tokens.terminal(record, say=parts.append)
    check_inert(shown(*parts))
    page = tokens_html(record)
    check_inert(page)
    assert "<script>alert" not in page
    assert "<img" not in page


@each
def test_labels_of_a_comparison_in_the_terminal(text, tmp_path):
    made = comparison(tmp_path / "out", seeds=1, tuning_seeds=1)
    summary = (made / "summary.json").read_text().replace('"sft"', json.dumps(text[:300]))
    if "\ud800" in text:
        return
    parts = []
    view.show(Summary.model_validate_json(summary), say=parts.append)
    check_inert(shown(*parts))


@each
def test_report(text, tmp_path):
    recorded(tmp_path / "run", label="sft")
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"sft"', json.dumps(text[:300])))
    try:
        page, markdown = write_report([tmp_path / "run"])
    except BallastError:
        return
    # A fenced block of code, the recipe, shows what is in it.
    for written in (page.read_text(), "".join(markdown.read_text().split("```")[::2])):
        check_inert(written)
        assert not re.search(r"(?<!\\)<(script|img)", written)


@each
def test_file_names(text):
    name = file_name(text)
    assert "/" not in name
    assert "\\" not in name
    assert name not in ("", ".", "..")


@each
def test_errors_of_the_command_line(text, tmp_path):
    said = refusal(run("train", *LAB, f"objective={json.dumps(text[:200])}", f"output={tmp_path}/out"))
    check_inert(said)


def test_table_of_measurements_takes_names_as_they_are():
    assert "[bold]" in shown(table([])) + shown("[bold]")
