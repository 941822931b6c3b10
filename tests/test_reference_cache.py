"""The cache's files: what is refused, what is recovered, and who may write."""

import json
import multiprocessing
import pickle
import threading

import numpy as np
import pytest

from ballast.errors import BallastError
from ballast.reference import ReferenceCache
from ballast.reference import cache as cache_module
from ballast.reference import shards as shards_module
from ballast.reference.writer import CacheWriter
from reference_rows import make_key

KEY = make_key()


def digest_of(number):
    return f"{number:032x}"


def values_of(number):
    """Return values that tell which row and which field they are."""
    base = number + np.arange(number % 5, dtype=np.float32) / 10
    return {name: base + 1000 * place for place, name in enumerate(KEY.fields)}


def fill(path, numbers, key=KEY, **options):
    with CacheWriter(path, key, **options) as writer:
        for digest in writer.missing([digest_of(n) for n in numbers]):
            writer.add(digest, values_of(int(digest, 16)))


def check(path, numbers):
    cache = ReferenceCache.open(path, KEY)
    for number in numbers:
        row = cache.lookup(digest_of(number))
        assert set(row) == set(KEY.fields)
        for name, expected in values_of(number).items():
            assert row[name].dtype == np.float32
            np.testing.assert_array_equal(row[name], expected)
    return cache


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "cache", range(20), shard_tokens=15)
    return tmp_path / "cache"


def test_values_come_back_by_digest_from_several_shards(folder):
    cache = check(folder, range(20))
    assert len(cache) == 20
    assert len(cache.shards) > 2
    assert cache.tokens == sum(n % 5 for n in range(20))
    assert digest_of(3) in cache
    assert cache.missing([digest_of(n) for n in (25, 3, 21, 25)]) == [digest_of(25), digest_of(21)]


def test_rows_are_found_whatever_the_order_of_their_digests(tmp_path):
    numbers = [n * 2_654_435_761 % 1009 for n in range(40)]
    fill(tmp_path / "cache", numbers, shard_tokens=15)
    cache = check(tmp_path / "cache", numbers)
    assert [n for n in range(1009) if digest_of(n) in cache] == sorted(numbers)
    assert "ab" not in cache


def test_an_open_cache_holds_few_bytes_for_each_row(tmp_path):
    import tracemalloc

    fill(tmp_path / "cache", range(4000), shard_tokens=10**6)
    tracemalloc.start()
    cache = ReferenceCache.open(tmp_path / "cache", KEY)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) == 4000
    assert held < 64 * 4000 + 50_000


def test_a_row_that_was_not_scored_is_an_error(folder):
    with pytest.raises(BallastError, match=r"no values for row 0{30}63.*ballast score"):
        ReferenceCache.open(folder, KEY).lookup(digest_of(99))


def test_more_rows_may_follow_and_old_shards_stay(folder):
    before = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    fill(folder, range(10, 30))
    check(folder, range(30))
    after = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    assert before.items() < after.items()


def test_pickles_as_its_path_and_notices_a_change(folder):
    cache = ReferenceCache.open(folder, KEY)
    state = pickle.dumps(cache)
    assert len(state) < 1000
    np.testing.assert_array_equal(pickle.loads(state).lookup(digest_of(4))["ref_mass"], values_of(4)["ref_mass"])
    fill(folder, range(40))
    with pytest.raises(BallastError, match="changed while it was in use"):
        pickle.loads(state)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"model": "c" * 32}, r"another model \(model aaaaaaaa… ≠ cccccccc…\)"),
        ({"dtype": "bfloat16"}, r"another compute dtype \(dtype float32 ≠ bfloat16\)"),
        ({"tokenizer": "d" * 32}, "another tokenizer or chat template"),
        ({"fields": ("ref_mass",)}, "other fields"),
        ({"scorer": 99}, "another version of the scorer"),
    ],
)
def test_another_key_is_refused_by_name_for_reading_and_writing(folder, component, message):
    for attempt in (ReferenceCache.open, fill_one):
        with pytest.raises(BallastError, match=message) as caught:
            attempt(folder, make_key(**component))
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
    check(folder, range(20))


def fill_one(path, key):
    fill(path, [99], key)


@pytest.mark.parametrize("place", [0, 5, 60, -40, -1])
def test_one_changed_byte_in_a_shard_is_refused(folder, place):
    path = folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    for attempt in (ReferenceCache.open, fill_one):
        with pytest.raises(BallastError, match=r"shard-00001.*not what was written"):
            attempt(folder, KEY)


@pytest.mark.parametrize(("cut", "word"), [(slice(0, -7), "truncated"), (slice(0, 0), "truncated")])
def test_a_truncated_shard_is_refused(folder, cut, word):
    path = folder / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(BallastError, match=rf"shard-00000.*{word}"):
        ReferenceCache.open(folder, KEY)


def test_deleting_a_bad_shard_and_scoring_again_heals(folder):
    (folder / "shard-00001.safetensors").unlink()
    with pytest.raises(BallastError, match="missing"):
        ReferenceCache.open(folder, KEY)
    fill(folder, range(20))
    assert len(check(folder, range(20))) == 20


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: {**m, "rows": 21}, "edited"),
        (lambda m: {**m, "key": {**m["key"], "model": "c" * 32}}, "edited"),
        (lambda m: {**m, "shards": m["shards"][:1]}, "edited"),
        (lambda m: {**m, "version": 2}, "format version 2"),
        (lambda m: {"rows": 1}, "not the manifest"),
        (lambda m: [], "not the manifest"),
    ],
)
def test_an_edited_or_foreign_manifest_is_refused(folder, edit, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(BallastError, match=message):
        ReferenceCache.open(folder, KEY)


def test_a_manifest_of_another_cache_is_refused(folder, tmp_path):
    fill(tmp_path / "other", range(50, 60), make_key(model="c" * 32))
    (folder / "manifest.json").write_bytes((tmp_path / "other" / "manifest.json").read_bytes())
    with pytest.raises(BallastError, match="another model"):
        ReferenceCache.open(folder, KEY)


def test_a_shard_of_another_cache_is_refused(folder, tmp_path):
    fill(tmp_path / "other", range(50, 60), make_key(model="c" * 32))
    (folder / "shard-00099.safetensors").write_bytes((tmp_path / "other" / "shard-00000.safetensors").read_bytes())
    check(folder, range(20))
    with pytest.raises(BallastError, match=r"shard-00099.*shard of another cache"):
        fill_one(folder, KEY)


def test_without_its_manifest_good_shards_are_taken_up_and_damaged_ones_refused(folder):
    (folder / "manifest.json").unlink()
    fill(folder, range(20))
    check(folder, range(20))
    (folder / "manifest.json").unlink()
    path = folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(BallastError, match=r"shard-00001.*damaged"):
        fill(folder, range(20))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such folder"), ({}, "no manifest"), ({"manifest.json": "{"}, "not readable as JSON")],
)
def test_what_is_no_cache_is_refused(tmp_path, content, message):
    path = tmp_path / "here"
    if content is not None:
        path.mkdir()
        for name, text in content.items():
            (path / name).write_text(text)
    with pytest.raises(BallastError, match=message):
        ReferenceCache.open(path, KEY)


def test_a_folder_of_other_things_is_not_written_into(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BallastError, match=r"notes\.txt"):
        fill_one(tmp_path, KEY)
    with pytest.raises(BallastError, match="a file, but"):
        fill_one(tmp_path / "notes.txt", KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


class Killed(BaseException):
    """Stands for a process that ends here and does nothing more."""


def dying_write(monkeypatch, step):
    """Let the writing process die at the given step: three steps to each file."""
    steps = iter(range(10**6))
    write = shards_module.write_atomically

    def die(path, content):
        if next(steps) >= step:
            raise Killed
        if next(steps) >= step:
            path.with_name(path.name + ".1.tmp").write_bytes(content[: len(content) // 2])
            raise Killed
        write(path, content)
        if next(steps) >= step:
            raise Killed

    monkeypatch.setattr(shards_module, "write_atomically", die)
    monkeypatch.setattr(cache_module, "write_atomically", die)


@pytest.mark.parametrize("step", range(14))
def test_a_crash_between_any_two_writes_loses_no_finished_shard(tmp_path, monkeypatch, step):
    path = tmp_path / "cache"
    with monkeypatch.context() as patch:
        dying_write(patch, step)
        with pytest.raises(Killed):
            fill(path, range(20), shard_tokens=15)
    finished = len(list(path.glob("shard-*.safetensors")))
    assert finished == (step + 4) // 6
    with CacheWriter(path, KEY) as writer:
        missing = writer.missing([digest_of(n) for n in range(20)])
        scored = len(missing)
        for digest in missing:
            writer.add(digest, values_of(int(digest, 16)))
    assert (scored < 20) == (finished > 0)
    assert len(check(path, range(20))) == 20
    assert not list(path.glob("*.tmp"))


def test_an_interruption_keeps_what_was_scored(tmp_path):
    def interrupted():
        with CacheWriter(tmp_path / "cache", KEY) as writer:
            writer.add(digest_of(7), values_of(7))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    check(tmp_path / "cache", [7])


def test_a_second_writer_gives_up_when_told_to(folder):
    started, done = threading.Event(), threading.Event()

    def hold():
        with CacheWriter(folder, KEY):
            started.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    started.wait(10)
    try:
        with pytest.raises(BallastError, match=r"another process is still scoring .* after 0\.1 s"):
            fill(folder, [99], wait=0.1)
    finally:
        done.set()
        holder.join()


def write_some(path, numbers, barrier, queue):
    barrier.wait()
    with CacheWriter(path, KEY, shard_tokens=10) as writer:
        missing = writer.missing([digest_of(n) for n in numbers])
        for digest in missing:
            writer.add(digest, values_of(int(digest, 16)))
    queue.put(len(missing))


def test_two_writers_share_the_work(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    parts = (range(60), range(30, 90))
    processes = [context.Process(target=write_some, args=(tmp_path / "cache", part, barrier, queue)) for part in parts]
    for process in processes:
        process.start()
    counts = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert sum(counts) == 90
    assert len(check(tmp_path / "cache", range(90))) == 90
