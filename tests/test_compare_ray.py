"""Runs of a comparison on a Ray cluster: how it is joined, what is refused, and that a worker's death costs one run."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.cli.base import _with_address
from ballast.compare import Plan, RayOptions, actors, cluster, ray_options, remote
from ballast.compare.actors import Actors
from ballast.compare.jobs import Job, JobContext, scoring
from ballast.errors import BallastError
from ballast.records.folder import Store
from ballast.records.runs import read_comparison, read_record
from compare_tools import THEN, Listed, matrix, one_rate, records_of, run_quietly, timeless, write_inputs

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray: pip install 'ballast-ft[ray]'")
HERE = Path(__file__).parent
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A busy machine must not let them starve, nor end them for what others take.
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}
STORE = 80 * 2**20
"""Bytes of a node's object store, the least that Ray takes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ray")
    write_inputs(path)
    return path


def said(action, *arguments, **options):
    """Return the one line that an action is refused with."""
    with pytest.raises(BallastError) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is asked for


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["r.yaml", "--ray"], ["r.yaml", "--ray", "auto"]),
        (["--ray", "r.yaml", "seed=1"], ["--ray", "auto", "r.yaml", "seed=1"]),
        (["--ray", "seed=1"], ["--ray", "auto", "seed=1"]),
        (["r.yaml", "--ray", "--gpus", "1"], ["r.yaml", "--ray", "auto", "--gpus", "1"]),
        (["--ray", "10.0.0.1:6379", "r.yaml"], ["--ray", "10.0.0.1:6379", "r.yaml"]),
        (["--ray=local", "r.yaml"], ["--ray=local", "r.yaml"]),
        (["r.yaml"], ["r.yaml"]),
    ],
)
def test_an_address_may_be_left_out(words, expected):
    assert _with_address(words) == expected


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (("10.0.0.1", None, None), "--ray: '10.0.0.1' is no address; give HOST:PORT, auto or local"),
        (("ray://head:10001", None, None), "--ray: Ray's client has no runs of its own"),
        (("auto", 2.0, None), "--gpus: should be less than or equal to 1: a run goes on one device; got 2.0"),
        (("auto", -1.0, None), "--gpus: should be greater than or equal to 0"),
        (("auto", None, 0), "--cpus: should be greater than or equal to 1; got 0"),
        ((None, 1.0, None), "--gpus: would be ignored without --ray"),
        ((None, None, 4), "--cpus: would be ignored without --ray"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(given, line):
    assert said(ray_options, *given).startswith(line)


def test_options_are_those_given():
    assert ray_options(None, None, None) is None
    assert ray_options("auto", None, None) == RayOptions()
    assert ray_options("[::1]:6379", 0.5, 2) == RayOptions(ray="[::1]:6379", gpus=0.5, cpus=2)


def node(**resources):
    return {"Alive": True, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "room"),
    [
        ([node(CPU=8.0, GPU=2.0), node(CPU=3.0)], 1, 1.0, 2),
        ([node(CPU=8.0, GPU=2.0), node(CPU=3.0)], 1, 0.0, 11),
        ([node(CPU=8.0, GPU=2.0), node(CPU=3.0)], 2, 0.0, 5),
        # Two halves on two nodes are no whole.
        ([node(CPU=1.0), node(CPU=1.0)], 2, 0.0, 0),
        ([node(CPU=2.0, GPU=8.0)], 1, 1.0, 2),
        ([node(CPU=9.0, GPU=1.0)], 1, 1 / 3, 3),
        ([node(CPU=9.0, GPU=3.0)], 1, 0.1, 9),
        ([node(memory=1.0)], 1, 0.0, 0),
        ([], 1, 0.0, 0),
    ],
)
def test_room_is_counted_node_by_node(nodes, cpus, gpus, room):
    assert cluster.places(nodes, cpus, gpus) == room


def test_more_than_there_is_room_for_is_refused():
    nodes = [node(CPU=4.0), node(CPU=4.0)]
    line = said(cluster._count, nodes, 1, 1.0, None)
    assert line.startswith("--gpus 1 --cpus 1: no node of the cluster has 1 CPU and 1 GPU, so every run would wait")
    assert "it has 8 CPU, 0 GPU on 2 nodes" in line
    line = said(cluster._count, nodes, 2, 0.0, 5)
    assert line.startswith("--jobs 5: the cluster has room for 4 runs with 2 CPU at a time")
    assert cluster._count(nodes, 2, 0.0, None) == 4
    assert cluster._count(nodes, 2, 0.0, 3) == 3


def command(recipe, output, *words):
    (output / "recipe.yaml").write_text(recipe.to_yaml())
    return CliRunner().invoke(app, ["compare", str(output / "recipe.yaml"), *words])


def test_without_the_package_it_is_one_line_that_names_the_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = command(one_rate(folder, tmp_path / "out"), tmp_path, "--ray")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("--ray: the package ray is not installed")
    assert "pip install 'ballast-ft[ray]'" in done.stderr
    assert not (tmp_path / "out" / "compare.json").exists()


@needs_ray
@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_cluster_that_is_away_is_one_line_at_once(folder, tmp_path, monkeypatch, how):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    done = command(one_rate(folder, tmp_path / "out"), tmp_path, "--ray", *([address] if how == "option" else []))
    assert time.monotonic() - began < 30
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"--ray {address}: no cluster can be joined there (")
    assert "ray start --head" in done.stderr
    assert not (tmp_path / "out" / "compare.json").exists()


# What a node finds out


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What a node is asked that is like this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "probe").touch()
    source = remote.source_digest(Path(remote.__file__).parent.parent)
    return {
        "folder": str(tmp_path), "path": [], "source": source, "output": "out", "probe": "probe", "patience": 0.1,
        "gpus": 0.0, "log": "out/jobs.log", "order": "{}",
    }  # fmt: skip


def problem(asked):
    return json.loads(remote.RemoteWorker().prepare(json.dumps(asked)))["problem"]


def test_a_node_like_this_one_has_no_problem_but_with_the_order(asked):
    assert remote._problem(asked) is None
    assert problem({**asked, "order": "{", "log": "none/jobs.log"}).startswith("cannot begin (FileNotFoundError: ")


@pytest.mark.parametrize(("gpus", "seen"), [(0.0, ""), (0.5, "3")])
def test_a_run_without_a_gpu_sees_none(asked, monkeypatch, gpus, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert problem({**asked, "gpus": gpus, "log": "none/jobs.log"}) is not None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"folder": "/no/such/place"}, "has no folder /no/such/place, where the command runs"),
        ({"source": "0" * 16}, "has another version of ballast ("),
        ({"probe": "other"}, "does not see the output out, so runs would be lost"),
        ({"output": "elsewhere"}, "does not see the output elsewhere"),
    ],
)
def test_what_a_node_lacks_is_said(asked, changes, line):
    assert problem({**asked, **changes}).startswith(line)


def test_a_node_without_ballast_or_the_right_to_write_is_said(asked, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert problem(asked).startswith("may not write into the output out")
    monkeypatch.setattr(remote, "find_spec", lambda _: None)
    assert problem(asked) == "has no ballast; install there what is installed here"


def test_a_source_is_told_by_names_and_content(tmp_path):
    def digest(**files):
        for old in tmp_path.glob("*"):
            old.unlink()
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / "notes.txt").write_text(str(time.monotonic()))
        return remote.source_digest(tmp_path)

    found = [digest(a="1", b="2"), digest(a="1", b="3"), digest(a="1", c="2"), digest(a="1")]
    assert len(set(found)) == 4
    assert digest(a="1", b="2") == found[0]


def test_libraries_of_this_machine_are_not_forced_on_a_node(tmp_path, monkeypatch):
    places = [tmp_path / "mine", tmp_path / "lib" / "site-packages"]
    for place in places:
        place.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(place) for place in places] + [os.path.dirname(os.__file__), "/no/such"])
    assert actors._path() == [str(places[0])]


# What actors answer. They are real ones that do as they are told, without any model.


class Stub:
    """Does by seed what the order says: ``done``, ``dies``, ``dies once``, ``hangs``, tells its ``gpu``, or a reply."""

    def prepare(self, text):
        asked = json.loads(text)
        self.folder, self.how = Path(asked["output"]), json.loads(asked["order"])
        problem = self.how.get("problem")
        if problem == "dies":
            os._exit(3)
        (self.folder / f"pid-{os.getpid()}").touch()
        return json.dumps({"host": "node7", "problem": problem})

    def run(self, text):
        seed = str(json.loads(text)["cell"]["seed"])
        how, again = self.how[seed], self.folder / f"again-{seed}"
        if how == "hangs":
            time.sleep(600)
        if how == "gpu":
            (self.folder / f"gpu-{seed}").touch()
            while len(list(self.folder.glob("gpu-*"))) < 2:
                time.sleep(0.05)
            return json.dumps({"said": [os.environ.get("CUDA_VISIBLE_DEVICES", "")]})
        if how == "dies" or (how == "dies once" and not again.exists()):
            again.touch()
            os._exit(3)
        return json.dumps(how if isinstance(how, dict) else {})


class Told:
    def __init__(self, interrupted_at=None):
        self.interrupted_at, self.began_at, self.ends, self.again_at, self.lines = interrupted_at, [], {}, [], []

    def began(self, job):
        self.began_at.append(job.cell.seed)
        if job.cell.seed == self.interrupted_at:
            raise KeyboardInterrupt

    def ended(self, job):
        self.ends[job.cell.seed] = None

    def failed(self, job, error):
        self.ends[job.cell.seed] = error

    def again(self, job, why):
        self.again_at.append((job.cell.seed, why))

    def said(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def two_places():
    """A cluster of this machine with room for two."""
    ray = pytest.importorskip("ray", reason="needs the extra ray: pip install 'ballast-ft[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY.items():
            patch.setenv(name, value)
        for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):
            patch.delenv(name, raising=False)
        settings = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
        ray.init(address="local", num_cpus=2, num_gpus=2, object_store_memory=STORE, **settings)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield ray
        ray.shutdown()


@pytest.fixture
def stubs(two_places, folder, tmp_path, monkeypatch):
    """Return what makes actors that do as they are told, by seed."""
    context = JobContext(Plan(one_rate(folder, tmp_path / "out", seeds=9)), Store(tmp_path / "out"))
    context.store.root.mkdir()
    cells = {cell.seed: cell for cell in context.plan.report({"sft": 1e-3})}
    monkeypatch.setattr(remote, "RemoteWorker", Stub)

    def make(how, count=2, room=True, gpus=0.0):
        monkeypatch.setattr(actors, "order", lambda *_: json.dumps({str(key): value for key, value in how.items()}))
        takes = {"num_cpus": 1, "num_gpus": gpus}
        made = Actors(context, count, None, takes, probe="probe", has_room=lambda: room)
        monkeypatch.setattr(made, "_check_seen", lambda job: None)
        return made, Listed([Job(kind="train", cell=cells[seed]) for seed in how if isinstance(seed, int)])

    return make


def pids(made):
    return [int(path.name.removeprefix("pid-")) for path in made.context.store.root.glob("pid-*")]


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def all_end(found, seconds=20.0):
    until = time.monotonic() + seconds
    while any(map(alive, found)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(alive, found))


def test_a_worker_that_dies_costs_its_run_alone_which_is_done_once_more(stubs):
    how = {5: "done", 6: "dies once", 7: "dies", 8: {"failed": "no luck"}, 9: {"said": ["a word"]}, 10: "done"}
    made, jobs = stubs(how)
    told = Told()
    made.each(jobs, told)
    assert {seed: end for seed, end in told.ends.items() if seed != 7} == {
        5: None, 6: None, 8: "no luck", 9: None, 10: None,
    }  # fmt: skip
    assert told.ends[7].startswith("ProcessDiedError: its worker died 2 times; ")
    assert "exit" in told.ends[7]
    assert sorted(seed for seed, _ in told.again_at) == [6, 7]
    assert {job.cell.seed: done for job, done in jobs.ends.items()} == {seed: seed not in (7, 8) for seed in how}
    assert told.lines == ["a word"]
    [lost] = [job for job in jobs.ends if job.cell.seed == 7]
    record = read_record(lost.folder(made.context.store))
    assert (record.status, record.error) == ("failed", told.ends[7])
    assert all_end(pids(made))


def test_every_run_has_a_gpu_of_its_own(stubs):
    made, jobs = stubs({5: "gpu", 6: "gpu"}, gpus=1.0)
    told = Told()
    made.each(jobs, told)
    assert sorted(told.lines) == ["0", "1"]


def test_no_more_actors_than_jobs(stubs):
    made, jobs = stubs({5: "done"})
    made.each(jobs, Told())
    assert len(pids(made)) == 1
    made, jobs = stubs({})
    made.each(jobs, Told())
    assert len(pids(made)) == 1


@pytest.mark.parametrize(
    ("how", "interrupted_at", "error"),
    [
        ({5: "hangs", 6: "hangs"}, 6, KeyboardInterrupt),
        ({5: "hangs", 6: {"unusable": "no such thing"}, 7: "done"}, None, BallastError),
    ],
    ids=["interrupt", "unusable"],
)
def test_what_stops_all_leaves_no_worker_and_no_failure(stubs, how, interrupted_at, error):
    made, jobs = stubs(how)
    told = Told(interrupted_at)
    with pytest.raises(error):
        made.each(jobs, told)
    assert told.ends == {}
    assert all_end(pids(made))
    assert not (made.context.store.root / "cells").exists()


def test_a_node_that_is_not_fit_stops_all_with_its_name(stubs):
    made, jobs = stubs({5: "done", "problem": "has no ballast; install it"})
    assert said(made.each, jobs, Told()) == "ray: node node7 has no ballast; install it"
    assert all_end(pids(made))


def test_workers_that_end_before_their_first_run_are_no_fault_of_the_run(stubs):
    made, jobs = stubs({5: "done", "problem": "dies"})
    told = Told()
    assert said(made.each, jobs, told).startswith("ray: workers end before their first run (")
    assert told.began_at == []


def test_what_all_runs_share_stops_all_where_it_dies_twice(stubs):
    made, _ = stubs({5: "dies"})
    score = scoring(made.context.plan)
    assert said(made.each, Listed([score]), Told()).startswith("its worker died 2 times; ")
    assert not (made.context.store.root / "cells").exists()


def test_without_a_node_it_ends_and_with_other_work_on_it_it_waits(stubs, monkeypatch):
    monkeypatch.setattr(actors, "LOOKS", 0.0)
    made, jobs = stubs({5: "done"}, room=False)
    assert said(made.each, jobs, Told()).startswith("ray: no node is left that has what a run takes")
    made, jobs = stubs({5: "done"})
    told = Told()
    made.each(jobs, told)
    assert told.lines == ["ray: waits for workers: they load libraries, or other work has their place"]
    assert told.ends == {5: None}


def test_a_run_that_is_not_seen_here_is_said(stubs, monkeypatch):
    made, jobs = stubs({5: "done"})
    monkeypatch.setattr(made, "_check_seen", Actors._check_seen.__get__(made))
    monkeypatch.setattr(actors, "PATIENCE", 0.0)
    line = said(made.each, jobs, Told())
    assert line.startswith(f"{made.context.store.root}/cells/sft-lr0.001-s5: was done by a node, but is not seen here")


# The whole, with models


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of two nodes with room for one run each, beside a head without any."""
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'ballast-ft[ray]'")
    from ray.cluster_utils import Cluster

    for name, value in {**RAY, "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}.items():
        monkeypatch.setenv(name, value)
    head = {"num_cpus": 0, "num_gpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.workers = [made.add_node(num_cpus=1, num_gpus=0, object_store_memory=STORE) for _ in range(2)]
    yield made
    made.shutdown()


def page_of(output):
    """Return the page on a comparison in pieces of one tag, without where it lies."""
    from ballast.report import write_report

    page, _ = write_report([output])
    return re.split("(?=<)", page.read_text().replace(str(output), "OUT"))


@pytest.mark.slow
def test_a_node_that_dies_in_the_middle_changes_nothing(nodes, folder, tmp_path):
    from ballast.compare import run_compare

    alone = run_quietly(matrix(folder, tmp_path / "alone", then=THEN))
    lines, killed = [], []

    def say(line):
        lines.append(str(line))
        if "learning rate" in lines[-1] and not killed:
            # The other one is at work.
            killed.append(nodes.workers.pop())
            nodes.remove_node(killed[0], allow_graceful=False)

    recipe = matrix(folder, tmp_path / "out", then=THEN)
    summary = run_compare(recipe, jobs=None, ray=RayOptions(ray=nodes.address), say=say).plain()
    assert killed
    assert any("is done again: its worker died" in line for line in lines)
    assert json.dumps(timeless(summary)) == json.dumps(timeless(alone))
    assert records_of(tmp_path / "out") == records_of(tmp_path / "alone")


def lab(output, **compare):
    """Three objectives on the lab, as `recipes/lab/quick.yaml` has them, on few rows."""
    from ballast.config.recipe import load_recipe

    changes = ["compare.seeds=2", "compare.tuning_seeds=1", "compare.budget={steps: 3}", "compare.random=false"]
    limits = ["evaluation.tasks.0.limit=16", "evaluation.tasks.1.limit=16", "evaluation.tasks.2.limit=4"]
    path = HERE.parent / "recipes" / "lab" / "quick.yaml"
    return load_recipe(path, [*changes, *limits, "compare.then.rl.steps=1", f"output={output}"])


@pytest.mark.slow
def test_three_objectives_on_the_lab_end_in_the_page_of_a_local_run(nodes, tmp_path):
    from ballast.compare import run_compare

    here, there = tmp_path / "here" / "lab", tmp_path / "there" / "lab"
    local = run_compare(lab(here), jobs=2, say=lambda _: None).plain()
    summary = run_compare(lab(there), jobs=None, ray=RayOptions(ray=nodes.address), say=lambda _: None).plain()
    assert len(summary["rows"]) == 4
    assert summary["complete"]
    assert json.dumps(timeless(summary)) == json.dumps(timeless(local))
    assert records_of(there) == records_of(here)
    cost = re.compile(r"about [\d.]+ (s|min|h) of training")
    pieces = zip(*([cost.sub("", piece) for piece in page_of(one)] for one in (there, here)), strict=True)
    differing = [pair for pair in pieces if pair[0] != pair[1]]
    # Seconds of training.
    assert all(re.fullmatch(r"<bdi>[\d.]+\s*", piece) for pair in differing for piece in pair), differing
    assert len(differing) < 10


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_on_a_cluster_nothing_lives_on_and_the_rest_is_done_later(nodes, folder, tmp_path, how):
    recipe = one_rate(folder, tmp_path / "out", then=THEN)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    process = subprocess.Popen(
        [sys.executable, "-m", "ballast.cli", "compare", str(tmp_path / "recipe.yaml"), "--ray", nodes.address],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list((tmp_path / "out" / "cells").glob("*/metrics.jsonl")):
        time.sleep(0.1)
    started = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.read_bytes().startswith(b"ray::RemoteWorker")
    ]
    os.kill(process.pid, how)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert printed.splitlines()[-1] == "interrupted"
    assert started
    assert all_end(started, 60.0)
    assert not any(run.failed for run in read_comparison(Store(tmp_path / "out")))
    assert run_quietly(recipe)["complete"]
    run_quietly(one_rate(folder, tmp_path / "alone", then=THEN))
    assert records_of(tmp_path / "out") == records_of(tmp_path / "alone")
