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
from data_rows import wide_tokenizer
from report_records import comparison, tokens_record
from report_records import run as recorded
from stress import LAB, refusal, run
from tiny import tiny_model

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
STEPS_ONE = ("training={max_steps: 1, report_to: none, save_strategy: 'no'}", "evaluation.base=false")
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


@each
def test_names_of_files_in_errors_of_the_command_line(text, tmp_path):
    for words in ((f"data.train=[{json.dumps('./' + text[:50])}]",), (f"output={json.dumps('~' + text[:50])}",)):
        check_inert(refusal(run("train", *LAB, "objective=sft", f"output={tmp_path}/out", *words)))


@pytest.fixture
def chats(tmp_path):
    """A folder with a model whose tokenizer has every printable character."""
    tokenizer = wide_tokenizer()
    tiny_model(vocab=len(tokenizer), context=512).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def rows_of(path, text):
    asked = {"prompt": text[:200], "completion": "ok", "answer": text[:20], text[:50]: text[:50]}
    path.write_text(json.dumps(asked) + "\n" + json.dumps({"prompt": "1", "completion": text[:200]}) + "\n")
    return (f"model={path.parent}/model", f"data.train={path}")


@each
def test_rows_from_file_to_terminal_and_page(text, chats):
    given = rows_of(chats / "rows.jsonl", text)
    objective = ("--objective", "sft", "--objective", "prift-mass")
    for words in (
        ("advise", *given, "objective=prift-mass"),
        ("inspect", *given, *objective, "--rows", "1,2", "--html", f"{chats}/p.html", "--record", f"{chats}/p.json"),
        ("evaluate", *given, f"evaluation.tasks=[{{data: {chats}/rows.jsonl, limit: 1, max_new_tokens: 2}}]"),
    ):
        done = run(*words)
        if done.exit_code:
            refusal(done)
        check_inert(done.output)
    if (chats / "p.html").exists():
        page = (chats / "p.html").read_text()
        check_inert(page)
        assert not re.search(r"<(script|img)", page)
    assert {path.name for path in chats.iterdir()} <= {"model", "rows.jsonl", "p.html", "p.json"}


SLOW = [pytest.param(column, marks=pytest.mark.slow) for column in ("prompt", "messages")]


@pytest.mark.parametrize("column", ["completion", "other", *SLOW])
def test_a_line_of_ten_megabytes(column, chats):
    """It is cut to the context, or refused by its place; what is said of it stays short."""
    long = "x<b>\u202e" * 1_500_000
    chat = {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "2"}]}
    plain = {"prompt": "1+1=", "completion": "2"}
    rows = [chat] if column == "messages" else [{**plain, column: long}, {**plain, "other": "x"}]
    path = chats / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert path.stat().st_size > 10_000_000
    done = run(
        "train", f"model={chats}/model", f"data.train={path}", "objective=sft", f"output={chats}/out", *STEPS_ONE
    )
    assert len(done.output) < 5000
    check_inert(done.output)
    if done.exit_code:
        refusal(done)
    else:
        assert (chats / "out" / "model.safetensors").exists()


def test_table_of_measurements_takes_names_as_they_are():
    assert "[bold]" in shown(table([])) + shown("[bold]")
