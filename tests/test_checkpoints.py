"""Which checkpoints are taken for whole: every way of tearing one is seen without reading it through."""

from __future__ import annotations

import shutil

import pytest

from ballast import checkpoints
from training_tools import run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(folder, "sft", max_steps=4, save_strategy="steps", save_steps=2, optim="adamw_torch")
    return folder


@pytest.fixture
def output(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def cut(name, by=1):
    def tear(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-by])

    return tear


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


TORN = {
    "empty folder": (empty, "trainer_state.json is missing or cut"),
    "no state": (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing or cut"),
    "state cut": (cut("trainer_state.json", by=20), "trainer_state.json is missing or cut"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "weights cut": (cut("model.safetensors"), "model.safetensors is cut"),
    "weights empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is cut"),
    "weights cut in the header": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:40]),
        "model.safetensors is cut",
    ),
    "a byte too many": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b"x"),
        "model.safetensors is cut",
    ),
    "no optimiser": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer is missing"),
    "optimiser cut": (cut("optimizer.pt"), "optimizer.pt is cut"),
    "optimiser cut in half": (cut("optimizer.pt", by=9000), "optimizer.pt is cut"),
    "no schedule": (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "schedule cut": (cut("scheduler.pt", by=200), "scheduler.pt is cut"),
    "no random state": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "random state cut": (cut("rng_state.pth", by=100), "rng_state.pth is cut"),
    "configuration cut": (cut("config.json", by=3), "config.json is cut"),
    "own state cut": (
        lambda folder: (folder / "ballast-0.json").write_text('{"waiting": [[1, 2'),
        "ballast-0.json is cut",
    ),
}


@pytest.mark.parametrize("name", TORN)
def test_the_one_before_a_torn_checkpoint_is_the_last(output, name):
    assert checkpoints.last_whole(output) == checkpoints.Last(output / "checkpoint-4")
    tear, problem = TORN[name]
    tear(output / "checkpoint-4")
    last = checkpoints.last_whole(output)
    assert last.path == output / "checkpoint-2"
    (line,) = last.lines()
    assert problem in line
    assert line.startswith(str(output / "checkpoint-4"))
    assert line.endswith("going on from checkpoint-2 instead")


def test_no_whole_checkpoint(output):
    shutil.rmtree(output / "checkpoint-2")
    cut("optimizer.pt")(output / "checkpoint-4")
    last = checkpoints.last_whole(output)
    assert last.path is None
    assert last.lines() == [f"{output}/checkpoint-4: is not whole (optimizer.pt is cut); no other is there"]
    assert checkpoints.last_whole(output / "nowhere") == checkpoints.Last(None)


def test_weights_alone_are_enough_where_no_more_is_kept(output):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (output / "checkpoint-4" / name).unlink()
    assert checkpoints.last_whole(output, weights_only=True).path == output / "checkpoint-4"
    assert checkpoints.last_whole(output).path == output / "checkpoint-2"


def test_shards_are_all_there_and_names_are_numbers(output):
    folder = output / "checkpoint-4"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    assert checkpoints.what_is_wrong(folder) == "model-00002-of-00002.safetensors is missing"
    shutil.copytree(output / "checkpoint-2", output / "checkpoint-10")
    shutil.copytree(output / "checkpoint-2", output / "checkpoint-best")
    assert checkpoints.last_whole(output).path == output / "checkpoint-10"


def test_what_is_checked_is_not_unpickled(output, monkeypatch):
    for name in ("pickle.Unpickler", "pickle.load", "pickle.loads", "torch.load"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("unpickled"))
    assert checkpoints.what_is_wrong(output / "checkpoint-4") is None
