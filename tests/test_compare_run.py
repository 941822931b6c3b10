"""A whole comparison on a tiny model: what it leaves, what it goes on with, and what it will not mix."""

import json
import shutil
from pathlib import Path

import pytest

from ballast.compare import Part, Plan, load_plan, summarise
from ballast.compare.jobs import Job, JobContext, base_rl, make_random
from ballast.compare.pool import Processes
from ballast.compare.run import _budget_steps
from ballast.errors import BallastError
from ballast.records import write as records
from ballast.records.folder import Store, discard
from ballast.records.read import read
from ballast.records.runs import read_comparison, read_record
from ballast.records.schema import PlanRecord
from compare_tools import THEN, Listed, job, matrix, one_rate, records_of, run_quietly, timeless, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare")
    write_inputs(path)
    return path


@pytest.fixture(scope="module")
def whole(folder):
    """A finished comparison with RL, its summary, and the lines that it said."""
    from ballast.compare import run_compare

    lines = []
    summary = run_compare(matrix(folder, "whole", then=THEN), say=lines.append)
    return folder / "whole", summary.plain(), lines


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it, elsewhere."""
    return Path(shutil.copytree(whole[0], tmp_path / "copy"))


def test_every_cell_is_a_run_of_train_with_its_place_in_the_matrix(whole):
    output, summary, _ = whole
    cells = read(output / "compare.json", PlanRecord).cells
    assert len({cell.name for cell in cells}) == 2 * 2 + 2 * 2
    for cell in cells:
        name, record = cell.name, read_record(output / "cells" / cell.name)
        assert record.status == "finished"
        assert record.cell == cell
        assert record.recipe["training"]["learning_rate"] == cell.rate
        assert record.recipe["seed"] == cell.seed
        assert [line["step"] for line in records.read_jsonl(output / "cells" / name / "metrics.jsonl")][:2] == [1, 2]
    assert summary["complete"]
    assert summary == json.loads((output / "summary.json").read_text())


def test_tuning_runs_are_measured_on_the_choosing_task_and_reported_ones_on_the_others(whole):
    output, _, _ = whole
    for folder in (output / "cells").iterdir():
        [entry] = records.read_jsonl(folder / "evals.jsonl")
        tuning = read_record(folder).cell.role == "tuning"
        assert [task["name"] for task in entry["tasks"]] == (["validation"] if tuning else ["test", "text"])
        assert (folder / "evals" / "trained" / "test.jsonl").exists() == (not tuning)


def test_rates_are_those_that_validation_prefers(whole):
    output, summary, lines = whole
    for row in summary["rows"][1:]:
        scores = {one["rate"]: one["score"]["value"] for one in row["tuning"]}
        for rate, seen in scores.items():
            [entry] = records.read_jsonl(output / "cells" / f"{row['label']}-lr{rate!r}-s1005" / "evals.jsonl")
            assert entry["tasks"][0]["metrics"]["nll"]["value"] == seen
        assert row["rate"] == min(scores, key=scores.get)
    said = list(map(str, lines))
    assert "base: is being measured" in said
    # As soon as its own runs are there, not those of all rows.
    assert any(line.startswith("2/14 sft: learning rate 0.0") and "validation nll" in line for line in said)


def test_weights_of_tuning_runs_are_dropped_and_reported_ones_load(whole):
    from transformers import AutoModelForCausalLM

    output, _, _ = whole
    tuning = [path for path in (output / "cells").iterdir() if path.name.endswith("s1005")]
    assert len(tuning) == 4
    assert not any(list(path.glob("*.safetensors")) for path in tuning)
    reported = next(path for path in (output / "cells").iterdir() if path.name.endswith("-s5"))
    assert AutoModelForCausalLM.from_pretrained(reported).num_parameters() > 1000


def test_the_base_model_is_measured_once_and_on_every_task(whole):
    output, summary, _ = whole
    [entry] = records.read_jsonl(output / "base" / "evals.jsonl")
    assert (entry["model"], entry["step"]) == ("base", 0)
    assert [task["name"] for task in entry["tasks"]] == ["validation", "test", "text"]
    assert len(records.read_jsonl(output / "base" / "evals" / "base" / "test.jsonl")) == 5
    assert list(summary["rows"][0]["stages"]["before_rl"]["tasks"]) == ["test", "text"]


def test_rl_follows_every_reported_run_and_the_base_model(whole):
    output, summary, _ = whole
    for row in summary["rows"]:
        assert row["stages"]["after_rl"]["seeds"] == [5, 6]
    assert read_record(output / "base" / "rl" / "s6").cell == base_rl(6).cell
    cell = next(path for path in (output / "cells").iterdir() if path.name.endswith("-s5"))
    assert read_record(cell / "rl").start == str(cell)
    assert [line["step"] for line in records.read_jsonl(cell / "rl" / "metrics.jsonl") if "reward" in line] == [1]
    assert read_record(cell / "rl").recipe["rl"]["verifier"] == "compare_tools:liking"


def test_samples_of_a_seed_are_its_own_and_shared_by_the_methods(whole):
    output, _, _ = whole
    seeds = {}
    for path in (output / "cells").glob("*-s[56]"):
        [entry] = records.read_jsonl(path / "evals.jsonl")
        seeds.setdefault(path.name[-1], set()).add(entry["tasks"][0]["settings"]["seed"])
    assert seeds == {"5": {5}, "6": {6}}


def test_the_reference_is_scored_once_for_all(whole):
    output, _, _ = whole
    caches = {read_record(path).recipe["reference"]["cache"] for path in (output / "cells").iterdir()}
    assert caches == {str(output / "cache" / "reference")}
    assert all(read_record(path).seconds["score"] < 1 for path in (output / "cells").iterdir())


def test_running_again_runs_nothing(whole, folder):
    output, summary, _ = whole
    before = {path: path.stat().st_mtime_ns for path in output.rglob("run.json")}
    assert run_quietly(matrix(folder, "whole", then=THEN)) == summary
    assert {path: path.stat().st_mtime_ns for path in output.rglob("run.json")} == before


def test_the_summary_follows_from_the_records_wherever_they_lie(whole, copy):
    _, summary, _ = whole
    (copy / "summary.json").unlink()
    assert summarise(load_plan(copy), read_comparison(Store(copy))).plain() == summary


@pytest.mark.parametrize("left", ["running", "trained", "no record"])
def test_what_a_stopped_run_left_is_done_again(whole, copy, folder, left):
    output, _, _ = whole
    cell = next(path for path in (copy / "cells").iterdir() if path.name.endswith("-s5"))
    record = json.loads((cell / "run.json").read_text())
    shutil.rmtree(cell / "rl")
    (cell / "run.json").unlink()
    if left != "no record":
        records.write_json(cell / "run.json", {**record, "status": left})
    (cell / "half.tmp").touch()
    run_quietly(matrix(folder, copy, then=THEN))
    assert records_of(copy, output) == records_of(output)


def test_runs_of_another_recipe_are_not_mixed_in(copy, folder):
    recipe = matrix(folder, copy, then=THEN)
    longer = recipe.model_copy(update={"training": {**recipe.training, "max_length": 16}})
    with pytest.raises(BallastError, match=r"lr0.\S+: was run with another training.max_length than the recipe now"):
        run_quietly(longer)
    other = {**THEN["rl"], "steps": 2}
    with pytest.raises(BallastError, match=r"rl.s5: was run with another rl.steps than the recipe now"):
        run_quietly(matrix(folder, copy, then={"rl": other}))


def test_a_base_model_measured_otherwise_is_not_mixed_in(copy, folder):
    [entry] = records.read_jsonl(copy / "base" / "evals.jsonl")
    entry["recipe"]["evaluation"]["tasks"][1]["max_new_tokens"] = 4
    records.write_jsonl(copy / "base" / "evals.jsonl", [entry])
    with pytest.raises(BallastError, match=r"base model was measured with another evaluation.tasks.1.max_new_tokens"):
        run_quietly(matrix(folder, copy, then=THEN))


def test_a_damaged_record_is_said_and_not_overwritten(copy, folder):
    cell = next((copy / "cells").iterdir())
    (cell / "run.json").write_text("{")
    with pytest.raises(BallastError, match=r"run.json: is not JSON .* remove"):
        run_quietly(matrix(folder, copy, then=THEN))
    assert (cell / "run.json").read_text() == "{"


def test_two_processes_do_not_share_an_output(copy, folder):
    from filelock import FileLock

    with FileLock(copy / ".lock"), pytest.raises(BallastError, match="another process is at work on this comparison"):
        run_quietly(matrix(folder, copy, then=THEN))


@pytest.fixture(scope="module")
def cheap(folder):
    return folder / "cheap", run_quietly(one_rate(folder, "cheap"))


def test_without_tuning_every_task_is_reported(cheap):
    _, summary = cheap
    assert [task["name"] for task in summary["tasks"]] == ["validation", "test", "text"]
    assert summary["choose_by"] is None


def test_more_seeds_add_their_runs_only(cheap, folder, tmp_path):
    output, summary = cheap
    copied = Path(shutil.copytree(output, tmp_path / "copy"))
    more = run_quietly(one_rate(folder, copied, seeds=3))
    assert more["seeds"]["report"] == [5, 6, 7]
    for row, before in zip(more["rows"][1:], summary["rows"][1:], strict=True):
        for task, metrics in before["stages"]["before_rl"]["tasks"].items():
            for metric, result in metrics.items():
                assert row["stages"]["before_rl"]["tasks"][task][metric]["values"][:2] == result["values"]
    kept = {name: value for name, value in records_of(output).items() if name.startswith("cells/")}
    now = records_of(copied, output)
    assert {name: now[name] for name in kept} == kept


def test_parts_with_rates_to_choose_and_rl_merge_by_copying_cells_and_base(whole, folder, tmp_path):
    output, summary, _ = whole
    parts = [tmp_path / "part1", tmp_path / "part2"]
    for number, part in enumerate(parts, start=1):
        assert not run_quietly(matrix(folder, part, then=THEN), part=Part(number, 2))["complete"]
        # A row is tuned, reported and followed by RL on one machine.
        assert {path.name.split("-lr")[0] for path in (part / "cells").iterdir()} == {("sft", "prift-mass")[number - 1]}
        assert len(list((part / "cells").glob("*/rl"))) == 2
        assert [path.name for path in (part / "base" / "rl").iterdir()] == [f"s{4 + number}"]
        assert (part / "base" / "evals.jsonl").exists() == (number == 1)
    merged = tmp_path / "merged"
    for part in parts:
        for name in ("cells", "base"):
            shutil.copytree(part / name, merged / name, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in merged.rglob("*.json*")}
    assert timeless(run_quietly(matrix(folder, merged, then=THEN))) == timeless(summary)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert records_of(merged, *parts) == records_of(output)


def test_parts_merge_by_copying_cells(cheap, folder, tmp_path):
    whole, summary = cheap
    parts = [tmp_path / "part1", tmp_path / "part2"]
    for number, output in enumerate(parts, start=1):
        found = run_quietly(one_rate(folder, output), part=Part(number, 2))
        assert not found["complete"]
        assert len(list((output / "cells").iterdir())) == 2
    merged = tmp_path / "merged"
    for part in parts:
        shutil.copytree(part / "cells", merged / "cells", dirs_exist_ok=True)
    assert timeless(run_quietly(one_rate(folder, merged))) == timeless(summary)
    assert records_of(merged, *parts) == records_of(whole)


@pytest.mark.slow
def test_several_processes_leave_the_same_records(cheap, folder, tmp_path):
    whole, summary = cheap
    assert timeless(run_quietly(one_rate(folder, tmp_path / "out"), jobs=2)) == timeless(summary)
    assert records_of(tmp_path / "out") == records_of(whole)


class Told:
    """Keeps what it is told."""

    def __init__(self):
        self.ends = {}

    def began(self, job):
        pass

    def ended(self, job):
        self.ends[job] = None

    def failed(self, job, error):
        self.ends[job] = error


def test_another_process_does_the_job_and_its_death_costs_one_run(cheap, folder, tmp_path):
    whole, _ = cheap
    recipe = one_rate(folder, tmp_path / "out")
    context = JobContext(Plan(recipe), Store(tmp_path / "out"))
    shutil.copytree(whole / "cache", tmp_path / "out" / "cache")
    first, second = (Job(kind="train", cell=cell) for cell in context.plan.report({"sft": 1e-3}))
    processes, told = Processes(context, 1, 1), Told()
    processes.each(Listed([first]), told)
    [process] = processes._all
    process._process.kill()
    processes.each(Listed([second]), told)
    processes.close()
    assert told.ends[first] is None
    assert "its process ended with exit code -9" in told.ends[second]
    assert context.is_done(first)
    assert read_record(second.folder(context.store)).status == "failed"
    name = f"cells/{first.cell.name}/"
    done = {key: value for key, value in records_of(tmp_path / "out").items() if key.startswith(name)}
    assert done == {key: value for key, value in records_of(whole).items() if key.startswith(name)}


def test_random_weights_are_drawn_once_by_seed(folder, tmp_path):
    recipe = one_rate(folder, tmp_path / "out", objectives=["sft"], seeds=1, random=True)
    summary = run_quietly(recipe)
    assert [row["label"] for row in summary["rows"]] == ["base", "sft", "random"]
    path = tmp_path / "out" / "cache" / "random-s5" / "model.safetensors"
    drawn = path.read_bytes()
    assert drawn != (folder / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(path.parent)
    discard(tmp_path / "out" / "cells" / "random-lr0.001-s5")
    assert timeless(run_quietly(recipe)) == timeless(summary)
    assert path.read_bytes() == drawn
    written = path.stat().st_mtime_ns
    make_random(Plan(recipe), 5, path.parent)
    assert path.stat().st_mtime_ns == written


def test_a_budget_of_tokens_becomes_steps(folder):
    recipe = one_rate(folder, "budget", budget={"tokens": 249})
    training = {key: value for key, value in recipe.training.items() if key != "max_steps"}
    # 12 rows of 83 tokens in all, 4 rows a step: 3 steps an epoch.
    assert _budget_steps(Plan(recipe.model_copy(update={"training": training}))) == 9
    assert _budget_steps(Plan(one_rate(folder, "budget", budget={"steps": 4}))) == 4
    assert _budget_steps(Plan(one_rate(folder, "budget"))) is None


def test_jobs_are_found_done_by_their_folders(whole, folder):
    output, _, _ = whole
    context = JobContext(Plan(matrix(folder, "whole", then=THEN)), Store(output))
    for one in (job("train", "sft", 3e-2, 5), job("rl", "sft", 3e-2, 5), base_rl(5)):
        assert Job.model_validate_json(one.model_dump_json()) == one
    laps = read_record(output / "base" / "rl" / "s5").seconds
    assert context.seconds(base_rl(5)) == pytest.approx(sum(laps.values()))
    assert context.seconds(base_rl(99)) is None
    assert context.is_done(base_rl(5))
    assert not context.is_done(base_rl(99))
    assert not context.is_done(job("train", "sft", 3e-2, 99))


def command(*arguments):
    from typer.testing import CliRunner

    from ballast.cli import app

    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_the_command_ends_with_the_tables_and_the_reports_path(whole, folder):
    (folder / "recipe.yaml").write_text(matrix(folder, "whole", then=THEN).to_yaml())
    done = command(folder / "recipe.yaml")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "test: mean@2 (5 items, higher is better)" in done.stdout
    assert f"report: {folder / 'whole' / 'report.html'}" in done.stdout.splitlines()
    assert "prift-mass" in (folder / "whole" / "report.html").read_text()
    done = command(folder / "recipe.yaml", "--json")
    assert json.loads(done.stdout) == json.loads((folder / "whole" / "summary.json").read_text())


def test_the_command_checks_before_it_runs(folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text(matrix(folder, tmp_path / "out").to_yaml())
    done = command(tmp_path / "recipe.yaml", "--only", "3/2")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "--only 3/2: is not a part of a whole" in done.stderr
    done = command(tmp_path / "recipe.yaml", "--only", "1/9")
    assert "splits into at most 2 parts" in done.stderr
    done = command(tmp_path / "recipe.yaml", "compare.baseline=nobody")
    assert "compare.baseline: no row is labelled 'nobody'" in done.stderr
    done = command(tmp_path / "recipe.yaml", "--dry-run")
    assert "tuning_seeds: 1" in done.stdout
    assert not (tmp_path / "out").exists()
