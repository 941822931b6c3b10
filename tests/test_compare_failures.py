"""What goes wrong while a comparison runs: what is recorded, what stops it, and the line that is said."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from ballast import pipeline
from ballast.compare import Plan, jobs, pool, worker
from ballast.compare.jobs import Job, JobContext
from ballast.compare.pool import Processes, Serial
from ballast.errors import BallastError
from ballast.records import write as records
from ballast.records.folder import REPORT, TUNING, Store, discard
from ballast.records.runs import read_comparison
from compare_tools import THEN, Listed, job, matrix, one_rate, records_of, run_quietly, timeless, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("failures")
    write_inputs(path)
    return path


@pytest.fixture(scope="module")
def done(folder):
    """A finished comparison of one row and one seed, and its summary."""
    return folder / "done", run_quietly(small(folder, "done"))


def small(folder, output):
    return one_rate(folder, output, objectives=["sft"], seeds=1)


@pytest.fixture
def copy(done, tmp_path):
    return Path(shutil.copytree(done[0], tmp_path / "copy"))


def one_line(recipe):
    """Return the one line that a comparison ends with."""
    with pytest.raises(BallastError) as caught:
        run_quietly(recipe)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_that_breaks_off_is_recorded_and_does_not_stop_the_others(folder, tmp_path, monkeypatch):
    real, wanted = pipeline.run_train, "dft-lr0.001-s5"

    def breaks(recipe, **options):
        if recipe.output.endswith(wanted):
            (Path(recipe.output) / "evals").mkdir(parents=True)
            raise RuntimeError("out of\nluck")
        return real(recipe, **options)

    monkeypatch.setattr(pipeline, "run_train", breaks)
    recipe = one_rate(folder, tmp_path / "out", then=THEN, seeds=1)
    summary = run_quietly(recipe)
    assert summary["failed"] == [{"run": f"cells/{wanted}", "error": "RuntimeError: out of luck"}]
    assert summary["missing"] == [f"cells/{wanted}", f"cells/{wanted}/rl"]
    assert "out of" in (tmp_path / "out" / "cells" / wanted / "error.txt").read_text()
    assert not (tmp_path / "out" / "cells" / wanted / "rl").exists()
    assert [sorted(row["stages"]) for row in summary["rows"]] == [["after_rl", "before_rl"]] * 2 + [[]]
    monkeypatch.undo()
    summary = run_quietly(recipe)
    assert summary["complete"]
    assert summary["failed"] == []
    assert not (tmp_path / "out" / "cells" / wanted / "error.txt").exists()


def test_unusable_input_stops_at_once_and_names_the_run(folder, tmp_path, monkeypatch):
    def refuses(recipe, **_):
        raise BallastError("no such thing")

    monkeypatch.setattr(pipeline, "run_train", refuses)
    with pytest.raises(BallastError, match=r"^sft-lr0\.001-s5: no such thing$"):
        run_quietly(one_rate(folder, tmp_path / "out"))


def test_what_an_error_says_is_cut_to_a_line(folder, tmp_path):
    context = JobContext(Plan(small(folder, tmp_path / "out")), Store(tmp_path / "out"))
    said = context.fail(job("train", "sft", 1e-3, 5), ValueError("word\n" * 500))
    assert len(said) == 500
    assert "\n" not in said


@pytest.mark.parametrize(
    ("role", "keep", "kept"), [(TUNING, False, False), (TUNING, True, True), (REPORT, False, True)]
)
def test_weights_of_runs_that_choose_are_kept_where_asked(folder, tmp_path, monkeypatch, role, keep, kept):
    def trains(recipe, **_):
        Path(recipe.output).mkdir(parents=True)
        (Path(recipe.output) / "model.safetensors").touch()

    monkeypatch.setattr(pipeline, "run_train", trains)
    context = JobContext(Plan(matrix(folder, tmp_path / "out", keep_tuning=keep)), Store(tmp_path / "out"))
    one = job("train", "sft", 1e-3, 5, role)
    context.run(one, print)
    assert (one.folder(context.store) / "model.safetensors").exists() == kept


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["system", "library"])
def test_a_full_disk_stops_at_once_and_is_no_fault_of_the_run(done, copy, folder, monkeypatch, error):
    cell = copy / "cells" / "sft-lr0.001-s5"
    discard(cell)

    def fills(recipe, **_):
        Path(recipe.output).mkdir(parents=True)
        (Path(recipe.output) / "model.safetensors").touch()
        raise error

    monkeypatch.setattr(pipeline, "run_train", fills)
    said = one_line(small(folder, copy))
    assert said.startswith(f"{cell}: cannot be written (")
    assert "No space left on device" in said
    assert "run the same command again" in said
    assert not cell.exists()
    monkeypatch.undo()
    assert timeless(run_quietly(small(folder, copy))) == timeless(done[1])
    assert records_of(copy, done[0]) == records_of(done[0])


def test_a_disk_that_fills_up_at_the_last_record_leaves_a_run_to_be_done_again(done, copy, folder, monkeypatch):
    discard(copy / "cells" / "sft-lr0.001-s5")
    write = records.write_json

    def full(path, value):
        if value.get("status") == "finished":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, value)

    monkeypatch.setattr(records, "write_json", full)
    assert "sft-lr0.001-s5: cannot be written ([Errno 28] No space" in one_line(small(folder, copy))
    monkeypatch.undo()
    assert timeless(run_quietly(small(folder, copy))) == timeless(done[1])


def test_a_disk_that_is_full_from_the_start_is_one_line_and_another_error_is_not(folder, tmp_path, monkeypatch):
    def fills(*_, **__):
        raise errors.pop()

    errors = [RuntimeError("of another\nkind"), *FULL]
    monkeypatch.setattr(pipeline, "run_score", fills)
    for _ in FULL:
        assert one_line(small(folder, tmp_path / "out")).startswith(f"{tmp_path / 'out'}: cannot be written (")
    with pytest.raises(RuntimeError, match="of another\nkind"):
        run_quietly(small(folder, tmp_path / "out"))


@pytest.mark.parametrize("name", ["summary.json", "compare.json"])
def test_a_record_that_cannot_be_written_is_one_line(copy, folder, name):
    (copy / name).unlink()
    (copy / name).mkdir()
    assert one_line(small(folder, copy)).startswith(f"{copy / name}: cannot be written (")


def test_an_output_below_a_file_is_one_line(folder):
    output = folder / "rows.jsonl" / "out"
    assert one_line(small(folder, output)).startswith(f"{output}: cannot be written (")


@pytest.mark.parametrize("place", ["cells/sft-lr0.001-s5", "cells"])
def test_a_file_in_the_place_of_a_folder_is_one_line_and_stays(copy, folder, place):
    shutil.rmtree(copy / place)
    (copy / place).write_text("notes")
    said = one_line(small(folder, copy))
    assert "cells/sft-lr0.001-s5/run.json: cannot be read" in said
    assert "remove" in said
    assert (copy / place).read_text() == "notes"


def test_other_files_between_the_runs_are_left_alone(done, copy, folder):
    for place in ("cells/.DS_Store", "base/rl", "cells/notes/todo.txt"):
        (copy / place).parent.mkdir(parents=True, exist_ok=True)
        (copy / place).write_text("[1]")
    assert timeless(run_quietly(small(folder, copy))) == timeless(done[1])
    assert (copy / "cells" / "notes" / "todo.txt").exists()


def test_a_damaged_record_of_the_base_model_is_one_line(copy, folder):
    (copy / "base" / "evals.jsonl").write_text("{")
    assert "base/evals.jsonl:1: is not JSON" in one_line(small(folder, copy))


def test_a_base_model_whose_measurement_was_stopped_midway_is_measured_again(done, copy, folder):
    (copy / "base" / "evals.jsonl").unlink()
    (copy / "base" / "evals.jsonl.77.tmp").write_text("{")
    (copy / "base" / "evals" / "base" / "other.jsonl").write_text("{")
    run_quietly(small(folder, copy))
    assert records_of(copy, done[0]) == records_of(done[0])


def test_an_interrupt_is_nobodys_failure(folder, tmp_path, monkeypatch):
    def interrupted(recipe, **_):
        Path(recipe.output).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_quietly(small(folder, tmp_path / "out"))
    assert not any(run.failed for run in read_comparison(Store(tmp_path / "out")))


STUB = """
import json, os, sys, time
sys.stdin.readline()
print("{}", flush=True)
for line in sys.stdin:
    how = HOW[json.loads(line)["cell"]["seed"]]
    if how == "hangs":
        time.sleep(600)
    if how == "half":
        print('{"fai', end="", flush=True)
        os._exit(3)
    print(json.dumps(how), flush=True)
"""


class Told:
    def __init__(self, interrupted_at=None):
        self.interrupted_at, self.ends = interrupted_at, {}

    def began(self, job):
        if job.cell.seed == self.interrupted_at:
            raise KeyboardInterrupt

    def ended(self, job):
        self.ends[job.cell.seed] = None

    def failed(self, job, error):
        self.ends[job.cell.seed] = error


@pytest.fixture
def stubs(folder, tmp_path, monkeypatch):
    """Return what makes processes that answer as they are told to, by seed."""
    context = JobContext(Plan(one_rate(folder, tmp_path / "out", seeds=9)), Store(tmp_path / "out"))
    context.store.root.mkdir()
    cells = context.plan.report({"sft": 1e-3})

    def make(how, count):
        monkeypatch.setattr(pool, "PROGRAM", ("-c", f"HOW = {how!r}{STUB}"))
        return Processes(context, count, None), [Job(kind="train", cell=cells[seed - 5]) for seed in how]

    return make


def pids(processes):
    return [one._process.pid for one in processes._all]


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_several_processes_answer_for_their_own_jobs(stubs):
    processes, jobs = stubs({5: {}, 6: {"failed": "no luck"}, 7: "half", 8: {}}, 2)
    told, log = Told(), processes.context.store.root / "jobs.log"
    processes.each(Listed(jobs), told)
    assert told.ends == {
        5: None,
        6: "no luck",
        7: f"ProcessDiedError: its process ended with exit code 3; out of memory? {log} may say more",
        8: None,
    }
    processes.close()
    assert len(pids(processes)) in (2, 3)
    assert not any(map(lives, pids(processes)))


@pytest.mark.parametrize(
    ("how", "interrupted_at", "error"),
    [
        ({5: "hangs", 6: "hangs", 7: {}}, 6, KeyboardInterrupt),
        ({5: "hangs", 6: {"unusable": "no such thing"}, 7: {}}, None, BallastError),
    ],
    ids=["interrupt", "unusable"],
)
def test_what_stops_all_leaves_no_process_and_no_failure(stubs, how, interrupted_at, error):
    processes, jobs = stubs(how, 2)
    told = Told(interrupted_at)
    with pytest.raises(error):
        processes.each(Listed(jobs), told)
    assert told.ends == {}
    assert len(pids(processes)) >= 1
    assert not any(map(lives, pids(processes)))
    assert not (processes.context.store.root / "cells").exists()
    # Nothing is started after that.
    processes.each(Listed(jobs), told)
    assert told.ends == {}


def test_a_process_that_does_not_start_is_no_fault_of_the_run(stubs, monkeypatch):
    processes, jobs = stubs({5: {}}, 2)
    monkeypatch.setattr(pool, "PROGRAM", ("-c", "import sys; sys.exit('no such module')"))
    told, log = Told(), processes.context.store.root / "jobs.log"
    with pytest.raises(BallastError) as caught:
        processes.each(Listed(jobs), told)
    assert str(caught.value).startswith(f"--jobs 2: a process ended with exit code 1 before its first run; see {log}")
    assert log.read_text() == "no such module\n"
    assert told.ends == {}
    assert not (processes.context.store.root / "cells").exists()


def test_a_log_that_cannot_be_written_is_one_line(stubs):
    processes, jobs = stubs({5: {}}, 1)
    processes.context.store.jobs_log.mkdir()
    with pytest.raises(BallastError, match=r"jobs\.log: cannot be written \("):
        processes.each(Listed(jobs), Told())


def test_processes_are_out_of_reach_of_the_terminals_interrupt(stubs):
    processes, jobs = stubs({5: {}}, 1)
    processes.each(Listed(jobs), Told())
    assert [os.getsid(pid) for pid in pids(processes)] != [os.getsid(0)]
    processes.close()


def test_a_record_that_cannot_be_kept_stops_here_and_in_a_process(folder, tmp_path, monkeypatch):
    context = JobContext(Plan(small(folder, tmp_path / "out")), Store(tmp_path / "out"))
    one = job("train", "sft", 1e-3, 5)

    def breaks(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr(pipeline, "run_train", breaks)
    assert worker.attempt(context, one).plain() == {"failed": "RuntimeError: boom"}
    monkeypatch.setattr(jobs, "write_json", lambda *_: os.mkdir("/proc/none"))
    said = f"{one.folder(context.store)}: cannot be written ("
    assert worker.attempt(context, one).unusable.startswith(said)
    with pytest.raises(BallastError) as caught:
        Serial(context).each(Listed([one]), Told())
    assert str(caught.value).startswith(said)
    monkeypatch.undo()
    refused = BallastError("no such thing")
    monkeypatch.setattr(pipeline, "run_train", lambda *_, **__: (_ for _ in ()).throw(refused))
    assert worker.attempt(context, one).plain() == {"unusable": "no such thing"}


@pytest.mark.parametrize("name", ["statistics", "random", "json", "types"])
def test_files_of_the_working_directory_are_no_modules_of_a_process(name, folder, tmp_path, monkeypatch):
    """Several names that the libraries import are likely names of a user's scripts."""
    (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    context = JobContext(Plan(one_rate(folder, tmp_path / "out")), Store(tmp_path / "out"))
    context.store.root.mkdir()
    monkeypatch.setattr(pool, "_path", lambda: os.environ.get("PYTHONPATH", ""))
    process = pool._Process(context, 1, {})
    try:
        assert process.wait(), context.store.jobs_log.read_text()
    finally:
        process.close()
