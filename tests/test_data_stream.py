"""Rows that are read as they are trained on: the same tokens, weights and errors as of rows in memory."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

import ballast
from ballast.data import PrepareOptions, load_rows, prepare, prepare_stream, read_chunks
from ballast.training.rows import rows_in
from data_rows import rows
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model
from training_tools import config, largest_difference, weights
from training_tools import objective as build
from training_tools import rows as sums

KINDS = ("text", "prompt-completion", "messages", "chat-prompt-completion")
OPTIONS = PrepareOptions(max_length=30)
COUNT = 600  # three chunks


def tokenizer():
    return char_tokenizer(chat_template=CHAT_TEMPLATE)


def stream(source, options=OPTIONS, *, buffer=0, columns=(), tok=None, **how):
    return prepare_stream(read_chunks(source, **how), tok or tokenizer(), options, buffer=buffer, columns=columns)


def table(source, options=OPTIONS, columns=(), **how):
    return prepare(load_rows(source, **how), tokenizer(), options, columns=columns)


def lines(path: Path, given) -> str:
    text = "".join(json.dumps(row) + "\n" for row in given).encode()
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)
    return str(path)


def parquet(path: Path, given) -> str:
    Dataset.from_list(given).to_parquet(str(path))
    return str(path)


def folder(path: Path, given) -> str:
    path.mkdir()
    lines(path / "a.jsonl", given[:400])
    parquet(path / "b.parquet", given[400:])
    return str(path)


def saved(path: Path, given) -> str:
    Dataset.from_list(given).save_to_disk(str(path))
    return str(path)


WRITERS = {"rows.jsonl": lines, "rows.jsonl.gz": lines, "rows.parquet": parquet, "folder": folder, "saved": saved}


def taken(made, count):
    return list(islice(made.dataset, count))


@pytest.mark.parametrize(
    ("kind", "name"), [*((kind, "rows.jsonl") for kind in KINDS), *((KINDS[1], name) for name in WRITERS)]
)
def test_streamed_rows_are_those_of_a_table(kind, name, tmp_path):
    source = WRITERS[name](tmp_path / name, rows(kind, COUNT))
    wanted, made = table(source), stream(source)
    assert taken(made, len(wanted.dataset)) == wanted.dataset.to_list()
    seen = made.seen()
    for count in ("rows_in", "rows_out", "tokens", "trained_tokens", "truncated", "dropped_no_trained_token"):
        assert getattr(seen, count) == getattr(wanted.report, count)
    assert [note for note in seen.notes if "stream" not in note] == list(wanted.report.notes)


def test_after_the_last_row_comes_the_first(tmp_path):
    source = lines(tmp_path / "rows.jsonl", rows("text", 300))
    made = stream(source)
    once = taken(made, 300)
    assert taken(made, 750) == once * 2 + once[:150]


def test_the_first_rows_are_told_as_such_and_all_of_few_as_all(tmp_path):
    few = stream(lines(tmp_path / "few.jsonl", rows("text", 20))).report
    assert few == table(str(tmp_path / "few.jsonl")).report
    many = stream(lines(tmp_path / "many.jsonl", rows("text", 1500))).report
    assert (many.rows_in, many.notes[-1][:30]) == (1024, "the first rows of a stream: ot")


def test_a_buffer_shuffles_every_row_once_a_pass_and_by_the_seed(tmp_path):
    source = lines(tmp_path / "rows.jsonl", [{"text": str(n)} for n in range(500)])
    plain = [row["digest"] for row in taken(stream(source), 500)]
    mixed = [
        [row["digest"] for row in taken(stream(source, PrepareOptions(seed=seed), buffer=50), 1000)]
        for seed in (1, 1, 2)
    ]
    assert mixed[0] == mixed[1] != mixed[2]
    # The buffer lets no row wait for good, nor come before it is read.
    assert mixed[0][:500] != plain
    assert set(mixed[0][:450]) <= set(plain)
    assert all(plain.index(digest) <= place + 50 for place, digest in enumerate(mixed[0][:450]))


def test_sources_take_turns_until_each_is_at_its_end(tmp_path):
    parts = [[{"text": f"{name} {n}"} for n in range(count)] for name, count in (("a", 700), ("b", 300))]
    files = [lines(tmp_path / f"{n}.jsonl", part) for n, part in enumerate(parts)]
    texts = [tokenizer().decode(row["input_ids"])[:-5] for row in taken(stream(files), 1000)]
    assert sorted(texts) == sorted(row["text"] for part in parts for row in part)
    assert texts[:256] + texts[256:512] == [row["text"] for part in parts for row in part[:256]]
    limited = [tokenizer().decode(row["input_ids"])[0] for row in taken(stream(files, limit=10), 40)]
    assert limited == [*"a" * 10, *"b" * 10] * 2


def test_columns_are_mapped_and_numbers_laid_out_as_in_a_table(tmp_path):
    given = [{"q": row["prompt"], "a": row["completion"], "weight": row["weight"]} for row in sums(40)]
    source = lines(tmp_path / "rows.jsonl", given)
    how = {"columns": {"prompt": "q", "completion": "a"}}
    wanted = prepare(load_rows(source, **how), tokenizer(), OPTIONS, columns=("weight",)).dataset
    made = prepare_stream(read_chunks(source, **how), tokenizer(), OPTIONS, columns=("weight",))
    assert repr(taken(made, 40)) == repr(wanted.to_list())  # NaN is not equal to itself


def test_tokenised_rows_are_streamed_with_their_labels(tmp_path):
    given = [{"input_ids": [4, 5, 6 + n % 9], "labels": [-100, 5, 6 + n % 9]} for n in range(300)]
    source = lines(tmp_path / "rows.jsonl", given)
    assert taken(stream(source), 300) == table(source).dataset.to_list()


def test_a_stream_of_datasets_is_read_as_it_comes(tmp_path):
    source = lines(tmp_path / "rows.jsonl", rows("messages", 300))
    theirs = load_dataset("json", data_files=source, streaming=True, split="train")
    assert taken(stream(theirs), 300) == table(source).dataset.to_list()


# -- training --


def trained(folder: Path, data, name="sft", resume=None, **settings):
    settings = {"per_device_train_batch_size": 4, "max_steps": 6, "train_sampling_strategy": "sequential", **settings}
    if not isinstance(data, Dataset):
        settings.pop("train_sampling_strategy")
    made = ballast.Trainer(
        tiny_model(),
        config(folder, **settings),
        train_dataset=data,
        processing_class=char_tokenizer(),
        objective=build(name),
    )
    made.train(resume)
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return lines(tmp_path_factory.mktemp("stream") / "rows.jsonl", sums(24))


# A live reference, columns of the data, a look ahead, and whole steps.
@pytest.mark.parametrize("name", ["sft", "prift-mass", "weighted-sft", "psft", "talr"])
def test_training_on_a_stream_is_training_on_the_rows(name, source, tmp_path):
    columns = tuple(build(name).columns.values())
    options = PrepareOptions.from_training_args(config(tmp_path), context=128)
    made = prepare_stream(read_chunks(source), char_tokenizer(), options, columns=columns)
    streamed = trained(tmp_path / "a", made, name)
    plain = trained(tmp_path / "b", load_rows(source), name)
    assert largest_difference(weights(streamed), weights(plain)) == 0
    assert (
        largest_difference(weights(plain), weights(trained(tmp_path / "c", load_rows(source), name, max_steps=1))) > 0
    )


@pytest.mark.parametrize("buffer", [0, 5])
def test_a_run_that_goes_on_midway_reads_the_same_rows(buffer, source, tmp_path):
    options = PrepareOptions.from_training_args(config(tmp_path), context=128)

    def made():
        return prepare_stream(read_chunks(source), char_tokenizer(), options, buffer=buffer)

    # 40 rows of 24: the checkpoint lies in the second pass.
    keep = {"save_strategy": "steps", "save_steps": 7, "max_steps": 10}
    whole = trained(tmp_path / "whole", made(), **keep)
    again = trained(tmp_path / "whole", made(), resume=str(tmp_path / "whole" / "checkpoint-7"), **keep)
    assert largest_difference(weights(whole), weights(again)) == 0


def test_a_batch_of_a_stream_is_named_by_file_and_line(source, tmp_path):
    options = PrepareOptions.from_training_args(config(tmp_path), context=128)
    made = prepare_stream(read_chunks(source), char_tokenizer(), options)
    run = trained(tmp_path, made, max_steps=1)
    assert rows_in(run.batches, made) == ", ".join(f"{source}: line {n}" for n in (1, 2, 3, 4))
    made.read.places.clear()
    assert rows_in(run.batches, made).count("a row with digest ") == 4


def test_prepared_rows_are_taken_as_they_stand(source, tmp_path, monkeypatch):
    options = PrepareOptions.from_training_args(config(tmp_path), context=128)
    made = prepare(load_rows(source), char_tokenizer(), options)
    plain = trained(tmp_path / "b", load_rows(source))
    with monkeypatch.context() as patch:
        patch.setattr(ballast.training.trainer, "prepare", None)
        run = ballast.Trainer(
            tiny_model(),
            config(tmp_path / "a", per_device_train_batch_size=4, max_steps=6, train_sampling_strategy="sequential"),
            train_dataset=made,
            eval_dataset=made,
            processing_class=char_tokenizer(),
        )
        run.train()
    assert run.prepare_reports["train"] is made.report
    assert largest_difference(weights(run), weights(plain)) == 0
    # Prepared with another length, they are rows of tokens.
    short = ballast.Trainer(
        tiny_model(), config(tmp_path / "c", max_length=8), train_dataset=made, processing_class=char_tokenizer()
    )
    assert max(map(len, short.train_dataset["input_ids"])) == 8


# -- what cannot be used --


REFUSED = {
    "packing": ({"packing": True}, "packing needs the lengths of all rows"),
    "shuffle_dataset": ({"shuffle_dataset": True}, "shuffle_dataset puts all rows in another order"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_need_all_rows_are_refused(case, source):
    options, message = REFUSED[case]
    with pytest.raises(ballast.BallastError, match=message):
        stream(source, PrepareOptions(**options))


SETTINGS = {
    "max_steps": -1,
    "packing": True,
    "shuffle_dataset": True,
    "train_sampling_strategy": "group_by_length",
    "dataloader_num_workers": 1,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_need_all_rows_are_refused_before_a_model_is_loaded(name, source, tmp_path):
    settings = {name: SETTINGS[name]}
    with pytest.raises(ballast.BallastError, match=rf"^training\.{name}: "):
        ballast.Trainer(
            "absent", config(tmp_path, **settings), train_dataset=stream(source), processing_class=tokenizer()
        )


def test_a_stream_prepared_otherwise_than_the_trainer_would_is_refused(source, tmp_path):
    with pytest.raises(ballast.BallastError, match="prepared with other max_length than the trainer has"):
        ballast.Trainer(
            tiny_model(),
            config(tmp_path, max_length=20),
            train_dataset=stream(source),
            processing_class=char_tokenizer(),
        )


LATE = {
    "missing": ({"prompt": "1+1=", "completion": None}, "line 900: 'completion' is missing"),
    "no text": ({"prompt": "1+1=", "completion": 3}, "line 900: 'completion' is a number, not text"),
    "another format": ({"text": "1+1=2"}, "line 900: 'prompt' is missing"),
    "no JSON": ("{", "line 900: invalid JSON at column 2"),
}


@pytest.mark.parametrize("case", LATE)
def test_a_late_row_that_fails_is_named_by_file_and_line(case, tmp_path):
    row, message = LATE[case]
    source = Path(lines(tmp_path / "rows.jsonl", ({"prompt": f"{n}+1=", "completion": "1"} for n in range(1600))))
    text = source.read_text().splitlines()
    text[899] = row if isinstance(row, str) else json.dumps(row)
    source.write_text("\n".join(text))
    with pytest.raises(ballast.BallastError) as said:
        stream(str(source))
    assert message in str(said.value)
    text[1450], text[899] = text[899], text[0]
    source.write_text("\n".join(text))
    made = stream(str(source))
    assert len(taken(made, 1280)) == 1280
    with pytest.raises(ballast.BallastError) as said:
        taken(made, 1600)
    assert str(said.value) == str(said.value).splitlines()[0]
    assert f"{source}: {message.replace('900', '1451')}" in str(said.value)


def test_late_rows_of_two_formats_at_once_are_refused(tmp_path):
    given = [
        *({"prompt": "1", "completion": "2"} for _ in range(1024)),
        {"prompt": "1", "completion": "2", "text": "3"},
    ]
    made = stream(lines(tmp_path / "rows.jsonl", given))
    with pytest.raises(ballast.BallastError, match="line 1025: two formats at once"):
        taken(made, 1100)


def test_a_late_chunk_of_another_format_is_refused(tmp_path):
    given = [*({"prompt": "1", "completion": "2"} for _ in range(1024)), *({"text": "3"} for _ in range(256))]
    made = stream(lines(tmp_path / "rows.jsonl", given))
    with pytest.raises(ballast.BallastError, match="line 1025: from here on the rows have another format"):
        taken(made, 1100)


def test_sources_that_cannot_be_read_in_pieces_are_refused(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(rows("text", 3)))
    with pytest.raises(ballast.BallastError, match="an array ends only with its file"):
        read_chunks(str(tmp_path / "rows.json"))
    with pytest.raises(ballast.BallastError, match="no such file"):
        read_chunks(str(tmp_path / "absent.jsonl"))
    (tmp_path / "blank.jsonl").write_text("\n")
    with pytest.raises(ballast.BallastError, match="train: no rows"):
        stream(str(tmp_path / "blank.jsonl"))
    with pytest.raises(ballast.BallastError, match="the first 1,024 rows of a stream: all 1,024 rows lose"):
        stream(
            lines(tmp_path / "long.jsonl", [{"prompt": "123=", "completion": "4"}] * 1100), PrepareOptions(max_length=3)
        )


def test_a_parquet_file_that_ends_early_says_where(tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(Dataset.from_list(rows("text", 2000)).data.table, path, row_group_size=500)
    with pq.ParquetFile(path) as file:
        place = file.metadata.row_group(3).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)
    made = stream(str(path))
    with pytest.raises(ballast.BallastError, match=rf"{path}: row \d+: no readable Parquet from here on"):
        taken(made, 2000)
