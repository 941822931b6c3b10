"""Values arrive as they stand in a row, from every kind of source, and what nobody reads does not stop a run."""

from __future__ import annotations

import datetime
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from ballast.data import PrepareOptions, load_rows, prepare
from ballast.errors import BallastError
from data_rows import call, chat, tool, trained_text, wide_tokenizer
from tiny import tiny_model

# Two rows that Arrow would give each other's keys, in another order, with whole numbers as fractions.
CALLS = [
    {
        "messages": [
            chat("user", "Level?"),
            chat("assistant", "", tool_calls=[call("level", station="north", deep={"b": 1, "a": [1, 2.5]})]),
            chat("tool", "1.2 m"),
            chat("assistant", "1.2."),
        ],
        "tools": [tool("level", station={"type": "string"})],
    },
    {
        "messages": [
            chat("user", "Boat?"),
            chat("assistant", "", tool_calls=[call("book", hour=9, deep={"a": [3, "x"], "b": 1.5})]),
            chat("tool", "ok"),
            chat("assistant", "Booked."),
        ],
        "tools": [tool("book", hour={"type": "integer", "minimum": 0}, who={"enum": ["a", 1]})],
        "chat_template_kwargs": {"mood": "calm"},
    },
]
EXACT = {
    "other keys": [{"a": 1}, {"b": 2}],
    "other order": [{"a": 1, "b": 2}, {"b": 1, "a": 2}],
    "null": [{"a": None}, {"a": 1}],
    "no key": [{}, {"a": 1}],
    "fractions": [1, 2.5],
    "truth": [True, 1],
    "two types": [1, "a"],
    "text and numbers": ["12", 12],
    "lists": [[1, "a"], []],
    "lists of lists": [[[1], [2.5]], [["a"]]],
    "objects in lists": [[{"a": 1}], [{"b": [1, {"c": None}]}]],
    "65 bits": [2**64, 1],
    "unsigned": [2**64 - 1, 2**63],
    "digits": [{"a": 0.1 + 0.2}, {"b": 1e-300}],
    "half a pair": ["\ud800", "a"],
    "separators": ["a\u2028b\u0085c", "d"],
}


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _sources(rows, folder):
    """One source of each kind that keeps values as they are, all holding these two rows."""
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    (folder / "parts").mkdir()
    one, two = (_jsonl(folder / "parts" / f"part-{i}.jsonl", [row]) for i, row in enumerate(rows))
    jsonl = _jsonl(folder / "rows.jsonl", rows)
    return {
        "jsonl": jsonl,
        "json": folder / "rows.json",
        "folder": folder / "parts",
        "mixture": [one, two],
        "memory": rows,
        "loaded": load_rows(jsonl),
        "memory and file": [rows[:1], two],
    }


KINDS = ("jsonl", "json", "folder", "mixture", "memory", "loaded", "memory and file")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXACT)
def test_values_come_back_as_they_stand(name, kind, tmp_path):
    rows = [{"question": "q", "value": value} for value in EXACT[name]]
    found = list(load_rows(_sources(rows, tmp_path)[kind]))
    # As text, since 1 == 1.0 == True, and the order of keys is no difference to Python.
    assert [json.dumps(row["value"]) for row in found] == [json.dumps(value) for value in EXACT[name]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_sees_tools_and_calls_as_they_stand(kind, tmp_path):
    tok = wide_tokenizer()
    texts = trained_text(prepare(load_rows(_sources(CALLS, tmp_path)[kind]), tok, PrepareOptions()), tok)
    for text, row in zip(texts, CALLS, strict=True):
        assert f"[tools {json.dumps(row['tools'])}]" in text
        assert f"[call {json.dumps(row['messages'][1]['tool_calls'][0]['function'])}]" in text
    assert ["[mood calm]" in text for text in texts] == [False, True]


def test_columns_made_of_others_are_exact_too(tmp_path):
    rows = [{"m": CALLS[i]["messages"], "t": {"x": CALLS[i]["tools"]}, "answer": (1, 2.5)[i]} for i in range(2)]
    loaded = load_rows(_jsonl(tmp_path / "rows.jsonl", rows), columns={"messages": "m", "tools": "t.x"})
    assert json.dumps([row["tools"] for row in loaded]) == json.dumps([row["tools"] for row in CALLS])
    assert json.dumps([row["answer"] for row in loaded]) == "[1, 2.5]"
    kept = [{"text": "a", "id": 2**70}, {"text": "b", "id": 0.783798589}]
    assert [row["id"] for row in load_rows(kept, columns={"answer": "text"})] == [2**70, 0.783798589]


def test_null_is_kept_where_a_file_says_so(tmp_path):
    schema = tool("level", station={"type": "string", "default": None})
    row = {**CALLS[0], "tools": [schema]}
    tok = wide_tokenizer()
    prepared = prepare(load_rows(_jsonl(tmp_path / "rows.jsonl", [row])), tok, PrepareOptions())
    assert '"default": null' in trained_text(prepared, tok)[0]
    assert not any("null" in note for note in prepared.report.notes)


# Without what a table cannot hold at all: lists of two types.
TABLE = [
    {
        "messages": [chat("user", "Level?"), chat("assistant", "", tool_calls=[call("level", station="north")])],
        "tools": [tool("level", station={"type": "string"})],
        "chat_template_kwargs": None,
    },
    {
        "messages": [chat("user", "Boat?"), chat("assistant", "", tool_calls=[call("book", hour=9)])],
        "tools": [tool("book", hour={"type": "integer", "minimum": 0})],
        "chat_template_kwargs": {"mood": "calm"},
    },
]


@pytest.mark.parametrize("kind", ["memory", "parquet", "disk", "two parquets", "given to the trainer"])
def test_nulls_that_a_table_adds_are_left_out(kind, tmp_path):
    data = Dataset.from_list(TABLE)
    assert data[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"station": "north", "hour": None}
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "two").mkdir()
    for i in range(2):
        data.select([i]).to_parquet(tmp_path / "two" / f"part-{i}.parquet")
    sources = {
        "memory": data,
        "parquet": tmp_path / "rows.parquet",
        "disk": tmp_path / "saved",
        "two parquets": tmp_path / "two",
    }
    rows = load_rows(sources[kind]) if kind in sources else data
    tok = wide_tokenizer()
    prepared = prepare(rows, tok, PrepareOptions())
    for text, row in zip(trained_text(prepared, tok), TABLE, strict=True):
        assert f"[tools {json.dumps(row['tools'])}]" in text
        assert f"[call {json.dumps(row['messages'][1]['tool_calls'][0]['function'])}]" in text
    assert ["[mood" in text for text in trained_text(prepared, tok)] == [False, True]
    assert [note for note in prepared.report.notes if "keys that are null are left out of" in note]


def test_json_columns_of_other_data_sets_are_read_exactly():
    weights = [0.783798589, 0.9]  # the first of these is read wrongly by datasets itself
    rows = [{**CALLS[i], "tools": [{**CALLS[i]["tools"][0], "weight": weights[i]}]} for i in range(2)]
    data = Dataset.from_list(rows, on_mixed_types="use_json")
    assert "Json" in str(data.features)
    loaded = load_rows(data)
    assert [row["tools"][0]["weight"] for row in loaded] == weights
    assert [row["messages"][1] for row in loaded] == [row["messages"][1] for row in CALLS]


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_rows_that_were_saved_come_back_exactly(kind, tmp_path):
    loaded = load_rows(CALLS)
    path = tmp_path / {"disk": "saved", "parquet": "rows.parquet"}[kind]
    loaded.save_to_disk(path) if kind == "disk" else loaded.to_parquet(path)
    assert json.dumps(list(load_rows(path))) == json.dumps(list(loaded))


def test_trls_own_trainer_makes_the_same_tokens_of_them(tmp_path):
    from trl import SFTConfig, SFTTrainer

    rows = load_rows(CALLS).select_columns(["messages", "tools"])  # options in some rows only are an error there
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    model = tiny_model(vocab=len(wide_tokenizer()), context=512)
    theirs = SFTTrainer(model, args, train_dataset=rows, processing_class=wide_tokenizer()).train_dataset
    ours = prepare(rows, wide_tokenizer(), PrepareOptions(max_length=None)).dataset
    for column in ("input_ids", "labels"):
        assert ours[column][:] == theirs[column][:]


def test_rows_that_are_alike_stay_plain_columns():
    rows = [{"messages": [chat("user", "a"), chat("assistant", "b")], "n": 1, "x": [0.5]}] * 2
    loaded = load_rows(rows)
    assert loaded.to_list() == rows
    assert "Json" not in str(loaded.features)


# -- what a run never reads --

UNREAD = {
    "map": pa.array([[("k", 1)], [("z", 2)]], pa.map_(pa.string(), pa.int64())),
    "maps in lists": pa.array([[[(1, "k")]], []], pa.list_(pa.map_(pa.int64(), pa.string()))),
    "list view": pa.array([[1], [2, 3]], pa.list_view(pa.int64())),
    "uuid": pa.array([uuid.UUID(int=1).bytes, None], pa.uuid()),
    "small decimal": pa.array([1, None], pa.decimal32(5, 2)),
    "decimal": pa.array([1, None], pa.decimal128(5, 2)),
    "duration": pa.array([datetime.timedelta(days=1), None]),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "view": pa.array(["a", None], pa.string_view()),
    "bytes": pa.array([b"\xff", None]),
    "null": pa.nulls(2),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns", tz="UTC")),
}


@pytest.mark.parametrize("name", UNREAD)
def test_parquet_columns_of_any_type_that_nobody_reads(name, tmp_path):
    table = pa.table({"prompt": ["a? ", "c? "], "completion": ["b", "d"], "m": UNREAD[name]})
    pq.write_table(table, tmp_path / "rows.parquet")
    loaded = load_rows(tmp_path / "rows.parquet")
    assert len(list(loaded)) == 2
    assert prepare(loaded, wide_tokenizer(), PrepareOptions()).report.rows_out == 2
    assert len(load_rows(tmp_path / "rows.parquet", columns={"answer": "completion"})) == 2


def test_a_map_is_read_as_an_object(tmp_path):
    pq.write_table(pa.table({"question": ["a", "b"], "m": UNREAD["map"]}), tmp_path / "rows.parquet")
    assert [row["m"] for row in load_rows(tmp_path / "rows.parquet")] == [{"k": 1}, {"z": 2}]


def test_a_damaged_column_is_left_out_with_a_word(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pa.table({"broken": ["x" * 50, "y" * 50], "prompt": ["a", "c"], "completion": ["b", "d"]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    raw = bytearray(path.read_bytes())
    raw[start : start + 40] = b"\xff" * 40
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match=r"rows.parquet: column 'broken' cannot be read and is left out"):
        loaded = load_rows(path)
    assert loaded.to_list() == [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def test_pictures_and_sounds_that_nobody_reads_are_not_decoded():
    from datasets import Audio, Features, Image, Value

    features = Features({"prompt": Value("string"), "picture": Image(), "sound": Audio()})
    broken = {"bytes": b"no picture", "path": None}
    data = Dataset.from_list([{"prompt": "a", "picture": broken, "sound": broken}]).cast(features)
    assert next(iter(load_rows(data)))["prompt"] == "a"


DIGITS = "9" * 5000


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize("value", [DIGITS, "-" + DIGITS, "1e999", "NaN", '{"a": [' + DIGITS + "]}", '"\\ud800"'])
def test_json_columns_with_any_value_that_nobody_reads(value, ending, tmp_path):
    lines = [f'{{"text": "a{n}", "n": {one}}}' for n, one in enumerate(("1", value, '"two"', "[3]", '{"four": 4}'))]
    path = tmp_path / f"rows.{ending}"
    path.write_text("\n".join(lines) if ending == "jsonl" else f"[{','.join(lines)}]")
    loaded = load_rows(path)
    assert len(list(loaded)) == 5
    assert prepare(loaded, wide_tokenizer(), PrepareOptions()).report.rows_out == 5


def test_names_that_are_no_text_are_left_out(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "\\ud800": 1, "b\\u0000c": 2}\n')
    assert load_rows(tmp_path / "rows.jsonl").to_list() == [{"text": "a"}]


def test_names_within_a_value_keep_their_zero_bytes():
    rows = [{"text": "a", "other": {"b\0c": 1}}]
    assert load_rows(rows).to_list() == rows


def test_what_is_read_is_still_checked_row_by_row(tmp_path):
    rows = [{"text": "a"}, {"text": 3}]
    with pytest.raises(BallastError, match=r"line 2: 'text' is a number, not text"):
        load_rows(_jsonl(tmp_path / "rows.jsonl", rows))
    for column, value in {"text": "\ud800", "prompt": "a\ud800"}.items():
        row = {column: value, **({"completion": "b"} if column == "prompt" else {})}
        with pytest.raises(BallastError, match=f"line 1: '{column}' holds half a surrogate pair at character"):
            load_rows(_jsonl(tmp_path / "rows.jsonl", [row]))
    with pytest.raises(BallastError, match=r"line 1: 'input_ids' holds 2147483648, which is no token id"):
        load_rows(_jsonl(tmp_path / "rows.jsonl", [{"input_ids": [1, 2**31]}]))


# -- mixtures --


def test_a_mixture_keeps_the_tools_that_only_some_sources_have(tmp_path):
    plain = {"messages": [chat("user", "Hi"), chat("assistant", "Ho")], "id": 7}
    mixed = load_rows([_jsonl(tmp_path / "a.jsonl", [plain]), _jsonl(tmp_path / "b.jsonl", CALLS)])
    assert set(mixed.column_names) == {"messages", "tools", "chat_template_kwargs"}
    tok = wide_tokenizer()
    texts = trained_text(prepare(mixed, tok, PrepareOptions()), tok)
    assert ["[tools" in text for text in texts] == [False, True, True]


def test_a_mixture_of_labels_and_none_is_refused():
    with pytest.raises(BallastError, match="only some sources have 'labels': of the others every token"):
        load_rows([[{"input_ids": [4, 5], "labels": [-100, 5]}], [{"input_ids": [4, 5]}]])


def test_a_mixture_keeps_numbers_here_and_text_there():
    rows = [{"prompt": "a", "completion": "b", "answer": answer} for answer in (1, "one")]
    assert [row["answer"] for row in load_rows([rows[:1], rows[1:]])] == [1, "one"]


# -- the cases that were handed in --


@pytest.fixture
def cases(real_data):
    folder = real_data / "cases"
    if not folder.is_dir():
        pytest.skip(f"{folder}: no cases")
    return folder


def test_the_cases_arrive(cases):
    tok = wide_tokenizer()
    for name in ("tool-calls.jsonl", "tools-column.jsonl"):
        rows = [json.loads(line) for line in (cases / name).read_text().splitlines()]
        texts = trained_text(prepare(load_rows(cases / name), tok, PrepareOptions(max_length=None)), tok)
        for text, row in zip(texts, rows, strict=True):
            assert f"[tools {json.dumps(row['tools'])}]" in text
            assert "null" not in text
    content = trained_text(prepare(load_rows(cases / "content-list.jsonl"), tok, PrepareOptions()), tok)
    assert content == ["<user>Hi<assistant>Hello.<eos>"]
    unused = prepare(load_rows(cases / "unused-map-column.parquet"), tok, PrepareOptions())
    assert unused.report.rows_out == 2
