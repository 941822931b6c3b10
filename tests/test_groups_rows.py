"""Rejection sampling: which answers become rows, and what training on them is."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.errors import BallastError
from ballast.groups import Group, Member
from ballast.groups.rows import rejection_rows, write_rows

RAW = [{"prompt": "1+1=", "completion": "2", "answer": "2", "source": "a"}, {"prompt": "2+2=", "completion": "4!"}]


def answer(text, reward, origin="own", ended=True):
    return Member((1, 2), 1, origin, reward, text, ended)


def group(row, *members):
    return Group(row, (answer(RAW[row]["completion"], 0.0, "expert"), *members))


def completions(*groups, most=10, raw=RAW):
    return [row["completion"] for row in rejection_rows(raw, groups, most).rows]


def test_right_and_distinct_own_answers_before_the_experts():
    found = rejection_rows(
        RAW,
        [
            group(0, answer("two", 1), answer("3", 0), answer("so 2", 1), answer("two", 1), answer("half", 0.5)),
            group(1, answer("5", 0.0), answer("four", 1, ended=False), answer("4", 1, "teacher")),
        ],
        10,
    )
    assert [row["completion"] for row in found.rows] == ["two", "so 2", "2", "4!"]
    assert found.rows[0] == {**RAW[0], "completion": "two"}
    assert (found.prompts, found.own) == (1, 2)
    # The expert's row is the row itself, whatever it was judged.
    assert [found.rows[2], found.rows[3]] == RAW


def test_at_most_so_many_and_neither_empty_nor_the_experts_own_text():
    members = [answer(text, 1) for text in ("", "2", "a", "b", "a", "c")]
    assert completions(group(0, *members), most=2) == ["a", "b", "2"]
    assert completions(group(0, *members)) == ["a", "b", "c", "2"]


def test_without_expert_there_are_own_answers_alone():
    assert completions(Group(0, (answer("2", 1), answer("3", 0)))) == ["2"]


def test_answers_to_messages_are_messages():
    raw = [{"prompt": [{"role": "user", "content": "1+1"}], "completion": [{"role": "assistant", "content": "2"}]}]
    found = completions(Group(0, (answer("2", 1, "expert"), answer("2", 1), answer("two", 1))), raw=raw)
    assert found == [[{"role": "assistant", "content": "two"}], raw[0]["completion"]]


def test_no_rows_are_no_file(tmp_path):
    with pytest.raises(BallastError, match="no own answer is right and there are no experts'"):
        write_rows(tmp_path / "rows.jsonl", [])
    assert not list(tmp_path.iterdir())


SAMPLE = ("model=lab", "data={train: 'lab:train', limit: 6}", "groups.max_new_tokens=24", "groups.own=3")
VERIFIER = "groups.verifier=ballast.lab.arithmetic:verify"
TRAIN = (
    "model=lab",
    "objective=sft",
    "training={max_steps: 2, per_device_train_batch_size: 3, logging_steps: 1, learning_rate: 1e-3, "
    "gradient_checkpointing: false, report_to: none, save_strategy: 'no', shuffle_dataset: false}",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unkind.py").write_text("def nothing(completion, row):\n    return 0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run(*words, code=0):
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == code, (done.output, done.exception)
    return " ".join(done.output.split())


def test_the_command_writes_rows_that_train_reads(folder):
    said = run("sample", *SAMPLE, VERIFIER, "groups.file=groups", "rows=rows.jsonl", "rows.most=2")
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert f"rows.jsonl: {len(rows)} rows, {len(rows) - 6} of them right own answers" in said
    assert 6 < len(rows) <= 18
    from ballast.lab.arithmetic import split, verify

    experts = split("train")[:6]
    assert [row for row in rows if row in experts] == experts
    assert all(verify(row["completion"], row) == 1 for row in rows if row not in experts)
    assert max(sum(row["prompt"] == one["prompt"] for row in rows) for one in experts) <= 3
    run("train", *TRAIN, "data.train=rows.jsonl", "output=out")
    # The groups are there: nothing is sampled again, and the rows are the same.
    run("sample", *SAMPLE, VERIFIER, "groups.file=groups", "rows={file: again.jsonl, most: 2}")
    assert Path("again.jsonl").read_bytes() == Path("rows.jsonl").read_bytes()


def test_with_nothing_right_training_on_the_rows_is_sft(folder):
    run("sample", *SAMPLE, "groups.verifier=unkind:nothing", "groups.file=groups", "rows=rows.jsonl")
    run("train", *TRAIN, "data.train=rows.jsonl", "output=rows")
    run("train", *TRAIN, "data={train: 'lab:train', limit: 6}", "output=plain")
    assert Path("rows/model.safetensors").read_bytes() == Path("plain/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rows=there.jsonl",), "rows.file: there.jsonl: is there already and would be overwritten"),
        (("rows=folder",), "rows.file: folder: is a folder; name a file"),
        (("rows=there.jsonl/rows.jsonl",), "rows.file: there.jsonl: is a file; name a folder"),
        (
            ("rows=new.jsonl", "objective=irft", "reference=round", "groups.verifier=null"),
            "rows: needs groups.verifier: without one no answer is right",
        ),
        (("rows.most=3",), "rows.file: is required and missing"),
        (("rows={file: new.jsonl, most: 0}",), "rows.most: should be greater than or equal to 1; got 0"),
        (("rows={file: new.jsonl, mots: 3}",), "rows.mots: unknown key; did you mean 'most'?"),
    ],
)
def test_places_and_options_that_are_refused_before_anything_is_sampled(folder, words, message):
    Path("there.jsonl").write_text("{}\n")
    Path("folder").mkdir()
    said = run("sample", *SAMPLE, VERIFIER, "groups.file=groups", *words, code=2)
    assert message in said
    assert "Traceback" not in said
    assert Path("there.jsonl").read_text() == "{}\n"
    assert not Path("groups").exists()
