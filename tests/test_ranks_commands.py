"""The commands that split their work, on two processes: they leave what one process leaves, and one rank speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ranks_run
from ballast.pipeline.inputs import ready, silent
from ballast.reference import ReferenceCache
from ballast.reference.cache import read_manifest

HERE = Path(__file__).parent


def start(folder, *command, processes=1, **environment):
    """Run a command in a folder, as one process or as some that torchrun starts."""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *launcher, *command], cwd=folder, env=settings, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the commands left and gave on one process and on two."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks_run.workspace(folder)
    done = start(folder, str(HERE / "ranks_run.py"), "two", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(folder)
    ranks_run.run("one")
    monkeypatch.undo()
    return folder


def told(folder, name, rank=0):
    return json.loads((folder / f"{name}-rank{rank}.json").read_text())


def without_seconds(value):
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k not in ("seconds", "sampling", "scoring")}
    return [without_seconds(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("command", ["score", "sample", "revise", "evaluate", "readiness", "advise"])
def test_two_ranks_give_what_one_gives(both, command):
    one, two = (without_seconds(told(both, name)["found"][command]) for name in ("one", "two"))
    assert one == two
    assert one


@pytest.mark.parametrize("name", ["groups", "revised", "evaluated", "ready"])
def test_two_ranks_leave_the_bytes_that_one_leaves(both, name):
    left = [
        {
            str(file.relative_to(root)): file.read_bytes()
            for file in root.rglob("*")
            if file.name != ".lock" and file.is_file()
        }
        for root in (both / "one" / name, both / "two" / name)
    ]
    assert left[0] == left[1]
    assert left[0]
    assert (both / "one" / "rows.jsonl").read_bytes() == (both / "two" / "rows.jsonl").read_bytes()


def test_two_ranks_score_the_bytes_that_one_scores_into_a_shard_each(both, monkeypatch):
    monkeypatch.chdir(both)
    made = ready(ranks_run.recipe("shown.jsonl"), silent)
    caches = []
    for name in ("one", "two"):
        key, shards, _ = read_manifest(both / name / "cache")
        caches.append((ReferenceCache.open(both / name / "cache", key), shards))
    (alone, shard), (many, shards) = caches
    assert [len(shard), len(shards)] == [1, 2]
    assert sum(one.rows for one in shards) == len(alone) == len(many) == 90
    for digest in made.train.dataset["digest"]:
        one, two = alone.lookup(digest), many.lookup(digest)
        assert {name: one[name].tobytes() for name in key.fields} == {name: two[name].tobytes() for name in key.fields}


def test_one_rank_speaks_and_hashes_for_all(both):
    alone, first, second = told(both, "one"), told(both, "two"), told(both, "two", 1)
    assert second["said"] == []
    assert second["hashed"] == 0
    assert first["hashed"] == alone["hashed"] > 0
    assert len(first["said"]) == len(alone["said"])
    assert second["found"]["sample"] == second["found"]["revise"] == {}
    assert second["found"]["advise"] is None
