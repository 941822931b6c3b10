"""Rows come from every kind of source, and a fault is named by file and line."""

from __future__ import annotations

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from ballast.data import load_rows
from ballast.errors import BallastError

ROWS = [{"prompt": "a", "completion": "b", "answer": 1}, {"prompt": "c", "completion": "d", "answer": 2}]


def _jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def sources(tmp_path):
    """One source of each kind, all holding ROWS."""
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=2))
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write((_jsonl(tmp_path / "rows.jsonl")).read_text())
    data = Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    _jsonl(tmp_path / "folder" / "part-0.jsonl", ROWS[:1])
    _jsonl(tmp_path / "folder" / "part-1.jsonl", ROWS[1:])
    return tmp_path


KINDS = ("rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet", "saved", "splits", "folder")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_rows(sources, kind):
    assert load_rows(str(sources / kind)).to_list() == ROWS
    assert load_rows(sources / kind, limit=1).to_list()[0] == ROWS[0]


def test_rows_and_data_sets_in_memory():
    assert load_rows(ROWS).to_list() == ROWS
    assert load_rows(Dataset.from_list(ROWS), limit=1).to_list() == ROWS[:1]


def test_splits_are_chosen_by_name(sources):
    assert load_rows(sources / "splits", split="test").num_rows == 1
    (sources / "both").mkdir()
    _jsonl(sources / "both" / "train.jsonl")
    _jsonl(sources / "both" / "test.jsonl", ROWS[:1])
    assert load_rows(sources / "both", split="test").num_rows == 1
    with pytest.raises(BallastError, match=r"several splits \(test, train\)"):
        load_rows(sources / "both")


def test_a_mixture_is_one_source_after_the_other(sources):
    mixed = load_rows([str(sources / "rows.jsonl"), str(sources / "rows.parquet")], limit=1)
    assert mixed.to_list() == [ROWS[0], ROWS[0]]


def test_a_mixture_keeps_common_columns_and_unites_messages(tmp_path):
    one = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": 1}]
    two = [{"messages": [{"role": "user", "content": "c", "name": "n"}, {"role": "assistant", "content": "d"}]}]
    mixed = load_rows([_jsonl(tmp_path / "one.jsonl", one), _jsonl(tmp_path / "two.jsonl", two)])
    assert mixed.column_names == ["messages"]
    assert [row["messages"][1]["content"] for row in mixed] == ["b", "d"]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "\xc3\xa9"}\n')
    assert load_rows(path)["text"][:] == ["a", "\u00e9"]


def test_a_key_that_comes_late_is_kept(tmp_path):
    rows = [{"text": "a"}, {"text": "b", "tag": "late"}]
    assert load_rows(_jsonl(tmp_path / "rows.jsonl", rows))["tag"][:] == [None, "late"]


def test_alpaca_rows_become_prompt_and_completion(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3", "id": 7},
        {"instruction": "Say hi.", "input": "", "output": "hi", "id": 8},
    ]
    loaded = load_rows(_jsonl(tmp_path / "a.jsonl", rows), columns="alpaca")
    assert loaded.to_list() == [
        {"prompt": "Add.\n\n1 2\n\n", "completion": "3", "id": 7},
        {"prompt": "Say hi.\n\n", "completion": "hi", "id": 8},
    ]


def test_sharegpt_rows_become_messages(tmp_path):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    loaded = load_rows(_jsonl(tmp_path / "s.jsonl", [{"conversations": turns, "system": "be"}]), columns="sharegpt")
    messages = [("system", "be"), ("user", "hi"), ("assistant", "ho")]
    assert loaded.to_list() == [{"messages": [{"role": role, "content": text} for role, text in messages]}]


def test_columns_are_renamed_reached_into_and_filled_in(tmp_path):
    rows = [{"Body": "b", "Q": 4, "truth": {"eq": "x=4"}, "text": "unused", "answer": "4"}]
    mapping = {"prompt": "{Body} {Q}? {{}}\n", "completion": "truth.eq", "result": "answer"}
    loaded = load_rows(_jsonl(tmp_path / "r.jsonl", rows), columns=mapping)
    assert loaded.to_list() == [
        {"prompt": "b 4? {}\n", "completion": "x=4", "result": "4", "Body": "b", "Q": 4, "truth": {"eq": "x=4"}}
    ]


def test_a_mapping_keeps_the_other_half_of_its_format():
    loaded = load_rows([{"q": "a", "completion": "b", "messages": "m"}], columns={"prompt": "q"})
    assert loaded.to_list() == [{"prompt": "a", "completion": "b"}]


def test_one_source_column_may_serve_twice():
    loaded = load_rows([{"q": "a", "answer": "b"}], columns={"prompt": "q", "completion": "answer", "answer": "answer"})
    assert loaded.to_list() == [{"prompt": "a", "completion": "b", "answer": "b"}]


def test_rows_of_no_training_format_are_only_read():
    rows = [{"question": "q", "options": {"A": "x"}, "answer_idx": "A"}]
    assert load_rows(rows).to_list() == rows


FILES = {
    "empty.jsonl": (b"", "the file is empty"),
    "blank.jsonl": (b"\n \n", "holds no row"),
    "broken.jsonl": (b'{"text": "a"}\n\n{"text": \n', "line 3: invalid JSON at column"),
    "cut.jsonl": (b'{"text": "a"}\n{"text": "b', "line 2: invalid JSON"),
    "array.jsonl": (b'{"text": "a"}\n["b"]\n', "line 2: a row must be an object.*an array"),
    "number.jsonl": (b"3\n", "line 1: a row must be an object.*a number"),
    "nothing.jsonl": (b"{}\n{}\n", "no fields"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', "line 2: not UTF-8"),
    "half.jsonl": (b'{"text": "a"}\n{"text": "\\ud800"}\n', "line 2: 'text'"),
    "type.jsonl": (b'{"text": 1}\n', "line 1: 'text' is a number, not text"),
    "missing.jsonl": (b'{"prompt": "a", "completion": "b"}\n\n{"prompt": "c"}\n', "line 3: 'completion' is missing"),
    "null.jsonl": (b'{"text": "a"}\n{"text": null}\n', "line 2: 'text' is missing"),
    "roles.jsonl": (b'{"messages": [{"content": "a"}]}\n', "line 1: 'messages': a message's 'role' is missing"),
    "content.jsonl": (b'{"messages": [{"role": "user", "content": 3}]}\n', "line 1: .*'content' is a number"),
    "none.jsonl": (b'{"messages": []}\n', "line 1: 'messages' is an empty list"),
    "string.jsonl": (b'{"messages": "hi"}\n', "line 1: 'messages' is text, not a list"),
    "picture.jsonl": (
        b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n',
        "line 1: .*vision rows are not supported",
    ),
    "halves.jsonl": (
        b'{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}\n',
        "line 1: 'prompt' is text but 'completion' is a list",
    ),
    "ids.jsonl": (b'{"input_ids": [1, 2], "labels": [1]}\n', "line 1: 'labels' has 1 entries for 2 token ids"),
    "float.jsonl": (b'{"input_ids": [1.5]}\n', "line 1: 'input_ids' is not a list of integers"),
    "label.jsonl": (b'{"input_ids": [1, 2], "labels": [-1, 2]}\n', "line 1: 'labels' holds -1"),
    "broken.json": (b'[{"text": "a"},\n {"text": }]', "line 2: invalid JSON"),
    "scalar.json": (b'"text"', "must hold an array"),
    "empty.json": (b"[]", "the array is empty"),
    "member.json": (b'[{"text": "a"}, 3]', "row 2: a row must be an object"),
    "bad.parquet": (b"PAR1 no", "no readable Parquet file"),
    "bad.jsonl.gz": (b"plain", "damaged gzip file"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 9)[:-9], "damaged gzip file"),
    "rows.csv": (b"a,b\n", "unknown kind of file"),
}


def _fails(message, source, **options):
    with pytest.raises(BallastError, match=message) as caught:
        load_rows(source, **options)
    assert "\n" not in str(caught.value), "an error is one line"
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_faulty_files_are_named_by_file_and_line(tmp_path, name):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert name in _fails(message, tmp_path / name)


def test_a_missing_file_names_its_neighbours(tmp_path):
    _jsonl(tmp_path / "train.jsonl")
    _fails("no such file; did you mean 'train.jsonl'", tmp_path / "trian.jsonl")
    _fails("the folder .* is not there either", tmp_path / "no" / "rows.jsonl")
    _fails("no such file or folder, and not to be had from the hub", "owner/there-is-no-such-thing")
    (tmp_path / "void").mkdir()
    _fails("holds no saved data set and no .jsonl", tmp_path / "void")


def test_missing_columns_come_with_the_nearest_name(tmp_path):
    path = _jsonl(tmp_path / "rows.jsonl", [{"question": "a", "answer": {"eq": "b"}}])
    _fails("rows.jsonl: no column 'qestion'; did you mean 'question'", path, columns={"prompt": "qestion"})
    _fails("no column 'body'", path, columns={"prompt": "{body}"})
    _fails("line 1: no 'eg' in 'answer.eg'; known: eq", path, columns={"prompt": "answer.eg"})
    _fails("line 1: 'answer' is dict, which a template cannot hold", path, columns={"prompt": "{answer}"})
    _fails("no valid template", path, columns={"prompt": "{question"})
    _fails("'prompt' must name a column, not 3", path, columns={"prompt": 3})
    _fails("columns='alpca' is unknown; did you mean 'alpaca'", path, columns="alpca")
    _fails("no column 'instruction'", path, columns="alpaca")
    _fails("no column 'conversations'", path, columns="sharegpt")


def test_alpaca_and_sharegpt_faults_name_the_row(tmp_path):
    turns = [{"from": "human", "value": "hi"}]
    rows = [{"conversations": turns}, {"conversations": [{"from": "gptt", "value": "ho"}]}]
    path = _jsonl(tmp_path / "s.jsonl", rows)
    _fails("line 2: unknown role 'gptt'; did you mean 'gpt'", path, columns="sharegpt")
    _fails("line 1: the role 'human' means nothing to a chat template; load the rows with columns='sharegpt'", path)
    _fails("line 1: .*empty", _jsonl(tmp_path / "e.jsonl", [{"conversations": []}]), columns="sharegpt")
    row = {"instruction": "a", "output": "b", "history": [["q", "a"]]}
    _fails("line 1: 'history' has no place", _jsonl(tmp_path / "a.jsonl", [row]), columns="alpaca")
    _fails("row 1: 'output' is int", [{"instruction": "a", "output": 3}], columns="alpaca")


def test_mixtures_that_do_not_fit_are_refused(tmp_path):
    pairs = _jsonl(tmp_path / "pairs.jsonl")
    texts = _jsonl(tmp_path / "texts.jsonl", [{"text": "a"}])
    assert "pairs.jsonl" in _fails("two formats.*texts.jsonl has text", [pairs, texts])
    _fails("list of data sources is empty", [])
    questions = _jsonl(tmp_path / "q.jsonl", [{"q": "a"}])
    _fails("without a common column", [questions, _jsonl(tmp_path / "r.jsonl", [{"r": "a"}])])


def test_arguments_that_mean_nothing_are_refused(sources):
    _fails("limit=0 leaves no row", sources / "rows.jsonl", limit=0)
    _fails("split='test' means nothing for a single file", sources / "rows.jsonl", split="test")
    _fails("has no splits", sources / "saved", split="test")
    _fails("no split 'tset'; did you mean 'test'", sources / "splits", split="tset")
    _fails("no file of split 'test'", sources / "folder", split="test")
    _fails("not int", 3)
