"""Prepared rows on disk: what is found again is what would be made, by everything that it is made of."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
from datasets import Dataset

from ballast.data import PrepareOptions, cache, prepare
from data_rows import PLAIN_TEMPLATE, rows
from tiny import CHAT_TEMPLATE, char_tokenizer
from training_tools import dataset

MAX = PrepareOptions(max_length=24)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.PLACE, str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_ROWS", 8)
    return tmp_path / "cache" / "prepared"


def tokenizer(**options):
    return char_tokenizer(chat_template=CHAT_TEMPLATE, **options)


def made(data=None, options=MAX, tok=None, **more):
    return prepare(dataset(20) if data is None else data, tok or tokenizer(), options, **more)


def content(prepared):
    return prepared.dataset.to_list(), prepared.dataset.features, prepared.report


@pytest.mark.parametrize("kind", ["text", "prompt-completion", "messages", "chat-prompt-completion"])
@pytest.mark.parametrize("num_proc", [None, 2])
def test_rows_from_the_cache_are_those_that_are_prepared_without_one(kind, num_proc, place, monkeypatch):
    data, options = Dataset.from_list(rows(kind, 20)), PrepareOptions(max_length=30, num_proc=num_proc)
    first, second = made(data, options), made(data, options)
    monkeypatch.setenv(cache.PLACE, "off")
    anew = made(data, PrepareOptions(max_length=30))
    assert (first.cached, anew.cached) == (None, None)
    assert second.cached is not None
    assert second.cached.parent == place
    assert content(first) == content(second) == content(anew)


def test_batches_that_lose_all_rows_are_counted_too(place):
    untrained = [{"input_ids": [5, 6], "labels": [-100, -100]}] * 600 + [{"input_ids": [5, 6], "labels": [5, 6]}]
    for _ in range(2):
        found = made(Dataset.from_list(untrained))
        assert (found.report.rows_in, found.report.rows_out, found.report.dropped_no_trained_token) == (601, 1, 600)
        assert found.dataset.to_list() == [{**untrained[-1], "digest": found.dataset["digest"][0]}]


CHANGES = {
    "rows": {"data": dataset(21)},
    "order": {"data": dataset(20).select([1, 0, *range(2, 20)])},
    "a value": {"data": dataset(20).map(lambda row: {"completion": row["completion"].replace("x", "y")})},
    "length": {"options": PrepareOptions(max_length=23)},
    "end": {"options": PrepareOptions(max_length=24, truncation_mode="keep_end")},
    "loss": {"options": PrepareOptions(max_length=24, completion_only_loss=False)},
    "splitting": {"options": PrepareOptions(max_length=24, packing=True, packing_strategy="bfd_split")},
    "vocabulary": {"tok": tokenizer(characters="0123456789=+abcx")},
    "first token": {"tok": tokenizer(add_bos=True)},
    "template": {"tok": char_tokenizer(chat_template=PLAIN_TEMPLATE)},
    "columns": {"columns": ("weight",)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_one_of_what_rows_are_made_of_is_another_entry(change, place):
    made()
    assert made().cached
    assert not made(**CHANGES[change]).cached
    assert made().cached


@pytest.mark.parametrize(
    "options", [{"num_proc": 2}, {"seed": 3}, {"shuffle_dataset": True}, {"pad_token": "<pad>"}], ids=str
)
def test_what_changes_no_row_changes_no_entry(options, place):
    made()
    assert made(options=PrepareOptions(max_length=24, **options)).cached


def test_another_version_of_the_code_or_of_a_library_is_another_entry(place, monkeypatch):
    made()
    for name in ("VERSION", "DIGEST_VERSION", "__version__"):
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, "another")
            assert not made().cached
    monkeypatch.setattr(cache, "version", lambda name: "another")
    assert not made().cached


def flip(path):
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))


DAMAGE = {
    "byte": lambda entry: flip(entry / "rows.arrow"),
    "cut": lambda entry: (entry / "rows.arrow").write_bytes((entry / "rows.arrow").read_bytes()[:-64]),
    "empty": lambda entry: (entry / "rows.arrow").write_bytes(b""),
    "file gone": lambda entry: (entry / "rows.arrow").unlink(),
    "manifest gone": lambda entry: (entry / "manifest.json").unlink(),
    "manifest torn": lambda entry: (entry / "manifest.json").write_text('{"rows'),
    "manifest empty": lambda entry: (entry / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(damage, place):
    whole = content(made())
    (entry,) = [path for path in place.iterdir() if path.is_dir()]
    DAMAGE[damage](entry)
    with pytest.warns(UserWarning, match=f"{entry}: damaged since it was written; the rows are prepared anew"):
        again = made()
    assert again.cached is None
    assert content(again) == whole
    assert made().cached == entry


def test_what_a_killed_process_left_half_written_is_cleared_away(place):
    made()
    (entry,) = [path for path in place.iterdir() if path.is_dir()]
    shutil.rmtree(entry)
    (torn := Path(f"{entry}.part")).mkdir()
    (torn / "rows.arrow").write_bytes(b"torn")
    assert made().cached is None
    assert made().cached == entry
    assert not torn.exists()


def test_a_place_that_cannot_be_written_is_told_and_costs_the_cache_alone(place):
    place.parent.write_text("a file, not a folder")
    with pytest.warns(UserWarning, match=r"prepared rows cannot be kept there .*; set BALLAST_CACHE to another folder"):
        found = made()
    assert (len(found.dataset), found.cached) == (20, None)


def test_rows_that_cannot_be_prepared_leave_nothing_behind(place):
    broken = [*dataset(20).to_list(), {"prompt": "1+1=", "completion": None, "weight": 0.0}]
    with pytest.raises(Exception, match="train: row 21: 'completion' is missing"):
        made(Dataset.from_list(broken))
    assert [path for path in place.iterdir() if path.is_dir()] == []


def test_few_rows_and_rows_with_numbers_of_their_own_are_not_kept(place):
    made(dataset(7))
    made(numbers=range(5, 25))
    assert not place.exists()


def _prepare(results, start):
    start.wait()
    results.put(str(made().cached))


def test_of_several_processes_one_prepares_and_the_others_wait_for_it(place, monkeypatch):
    fill = cache._filled

    def slowly(*given):
        time.sleep(0.3)
        return fill(*given)

    monkeypatch.setattr(cache, "_filled", slowly)
    context = multiprocessing.get_context("fork")
    results, start = context.Queue(), context.Barrier(3)
    processes = [context.Process(target=_prepare, args=(results, start)) for _ in range(3)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    (entry,) = [str(path) for path in place.iterdir() if path.is_dir()]
    assert found == sorted(["None", entry, entry])
    assert json.loads(Path(entry, "manifest.json").read_text())
