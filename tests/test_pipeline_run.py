"""How a run of `train` or `rl` is recorded, and how it goes on where it was stopped while it was measured."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.config.recipe import load_recipe
from ballast.pipeline import run, run_train
from ballast.records import write as records
from ballast.records.schema import CellRecord
from rl_tools import ROWS, tiny_policy, tiny_tokenizer

TASK = "evaluation.tasks=[{name: held out, data: rows.jsonl, max_new_tokens: 4, base_kl: true}]"
GIVEN = ("model=start", "data.train=rows.jsonl", TASK)
COMMANDS = {
    "train": ("objective=sft", "training={max_steps: 2, save_strategy: 'no', learning_rate: 1e-2, report_to: none}"),
    "rl": ("rl={verifier: exact, steps: 2, prompts: 2, group: 4, max_new_tokens: 4, learning_rate: 1e-2}",),
}
NAMES = {"train": ["base", "trained"], "rl": ["before rl", "after rl"]}
COMPARED = ("metrics", "counts", "settings")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_policy().save_pretrained("start")
    tiny_tokenizer().save_pretrained("start")
    records.write_jsonl("rows.jsonl", [{**row, "completion": row["answer"]} for row in ROWS])
    return tmp_path


def invoke(command, output, *settings):
    return CliRunner().invoke(app, [command, *GIVEN, *COMMANDS[command], f"output={output}", *settings])


def measured(output):
    lines = records.read_jsonl(Path(output) / "evals.jsonl")
    return [
        (line["model"], line["step"], [[task[key] for key in COMPARED] for task in line["tasks"]]) for line in lines
    ]


def status(output):
    return json.loads((Path(output) / "run.json").read_text())["status"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_status_is_written_once_and_the_last_one_before_the_card(folder, monkeypatch, command):
    seen, write = [], run.write_record

    def watched(output, record):
        there = [name for name in ("model.safetensors", "README.md") if (output / name).is_file()]
        items = sorted(path.parent.name for path in output.glob("evals/*/held-out.jsonl"))
        seen.append((record.status, there, [line[0] for line in measured(output)], items))
        write(output, record)

    monkeypatch.setattr(run, "write_record", watched)
    done = invoke(command, "out")
    assert done.exit_code == 0, (done.output, done.exception)
    before, after = NAMES[command]
    files = [before.replace(" ", "-"), after.replace(" ", "-")]
    assert seen == [
        ("running", [], [], []),
        ("trained", ["model.safetensors"], [before], files[:1]),
        ("finished", ["model.safetensors"], [before, after], sorted(files)),
    ]
    assert Path("out/README.md").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_was_stopped_while_it_was_measured_is_measured_and_not_trained(folder, monkeypatch, command):
    assert invoke(command, "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "_measure_after", stopped)
        assert invoke(command, "out").exit_code == 130
    assert status("out") == "trained"
    weights, log = (Path("out", name).read_bytes() for name in ("model.safetensors", "metrics.jsonl"))
    done = invoke(command, "out", "--resume")
    assert done.exit_code == 0, (done.output, done.exception)
    assert status("out") == "finished"
    assert [Path("out", name).read_bytes() for name in ("model.safetensors", "metrics.jsonl")] == [weights, log]
    assert measured("out") == measured("whole")
    assert {"train", "save", "evaluate"} <= set(json.loads(Path("out/run.json").read_text())["seconds"])


def test_measurements_that_were_written_already_are_not_there_twice(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "_finish", stopped)
        assert invoke("train", "out").exit_code == 130
    assert status("out") == "trained"
    assert [line[:2] for line in measured("out")] == [("base", 0), ("trained", 2)]
    assert invoke("train", "out", "--resume").exit_code == 0
    assert [line[:2] for line in measured("out")] == [("base", 0), ("trained", 2)]


def test_a_trained_run_that_is_to_go_on_trains(folder, monkeypatch):
    saving = ("training.save_strategy=steps", "training.save_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "_measure_after", stopped)
        assert invoke("train", "out", *saving).exit_code == 130
    done = invoke("train", "out", *saving, "training.max_steps=3", "--resume")
    assert done.exit_code == 0, (done.output, done.exception)
    assert [line[:2] for line in measured("out")] == [("base", 0), ("trained", 3)]


def test_without_tasks_there_is_nothing_to_measure(folder):
    assert invoke("train", "out", "evaluation.tasks=[]").exit_code == 0
    assert status("out") == "finished"
    assert measured("out") == []


def test_the_record_says_from_the_beginning_which_run_of_a_comparison_it_is(folder, monkeypatch):
    cell = CellRecord(label="sft", rate=1e-2, seed=5, role="report")
    recipe = load_recipe(None, [*GIVEN, *COMMANDS["train"], "output=out"])
    with monkeypatch.context() as patch:
        patch.setattr("transformers.Trainer.train", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_train(recipe, cell=cell, say=lambda _: None, progress=False)
    record = json.loads(Path("out/run.json").read_text())
    assert (record["status"], record["cell"]) == ("running", cell.plain())


def stopped(*_, **__):
    raise KeyboardInterrupt


STREAMED = ("data.streaming=true", "data.shuffle_buffer=0", "training.per_device_train_batch_size=2")


def test_a_streamed_run_is_that_of_the_rows_and_records_what_it_read(folder):
    small = ("training.per_device_train_batch_size=2", "training.train_sampling_strategy=sequential")
    for output, settings in (("streamed", STREAMED), ("whole", small)):
        done = invoke("train", output, *settings)
        assert done.exit_code == 0, (done.output, done.exception)
    assert Path("streamed/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    streamed, whole = (json.loads((Path(output) / "run.json").read_text()) for output in ("streamed", "whole"))
    assert "the rows that were read" in streamed["data"]["train"]["notes"][-1]
    assert streamed["data"]["train"]["rows_in"] >= 4
    assert whole["data"]["train"]["rows_in"] == len(ROWS)
    assert streamed["inputs"]["data.train"]["digest"] != whole["inputs"]["data.train"]["digest"]
