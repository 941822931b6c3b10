"""The commands: what they print, what they leave on disk, and that looking around is quick."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.config.recipe import load_recipe
from ballast.errors import BallastError
from ballast.records import write as records
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

RECIPE = """\
model: model
data: {train: rows.jsonl, eval: rows.jsonl}
objective: {name: prift-mass, threshold: 0.25}
reference: {cache: cache}
training:
  max_steps: 2
  per_device_train_batch_size: 4
  logging_steps: 1
  learning_rate: 1e-3
  report_to: none
evaluation:
  tasks:
    - {name: sums, data: rows.jsonl, columns: {answer: completion}, limit: 4, verifier: exact, max_new_tokens: 3}
    - {kind: nll, data: lab:forgetting, limit: 3}
output: out
"""


def run(*arguments: str):
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a model and rows, the recipe above scored and trained in it."""
    folder = tmp_path_factory.mktemp("cli")
    here = Path.cwd()
    os.chdir(folder)
    tiny_model().save_pretrained("model")
    char_tokenizer().save_pretrained("model")
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(12)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("recipe.yaml").write_text(RECIPE)
    printed = {name: run(name, "recipe.yaml").stdout for name in ("score", "train")}
    yield folder, printed
    os.chdir(here)


def test_score_fills_the_cache_and_says_how_much(workspace):
    folder, printed = workspace
    assert "cache: holds 12 rows" in printed["score"]
    assert (folder / "cache" / "manifest.json").is_file()


def test_scoring_again_scores_nothing(workspace):
    folder, _ = workspace
    before = (folder / "cache" / "manifest.json").read_bytes()
    run("score", "recipe.yaml")
    assert (folder / "cache" / "manifest.json").read_bytes() == before


def test_train_leaves_a_model_that_transformers_loads(workspace):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = workspace
    model = AutoModelForCausalLM.from_pretrained(folder / "out")
    start = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert not model.model.norm.weight.equal(start.model.norm.weight)
    assert AutoTokenizer.from_pretrained(folder / "out").get_vocab() == char_tokenizer().get_vocab()
    assert "prift-mass" in (folder / "out" / "README.md").read_text()
    assert not list((folder / "out").glob(".*"))


def test_run_record_says_what_was_run(workspace):
    folder, _ = workspace
    run_record = json.loads((folder / "out" / "run.json").read_text())
    assert run_record["status"] == "finished"
    assert run_record["objective"] == {"name": "prift-mass", "threshold": 0.25, "ties": "strict", "keep_end": False}
    assert run_record["recipe"] == load_recipe(folder / "recipe.yaml").resolved()
    assert run_record["versions"]["torch"]
    assert run_record["data"]["train"]["rows_out"] == 12
    assert {"prepare", "load", "score", "train", "evaluate"} <= set(run_record["seconds"])
    steps = [line for line in records.read_jsonl(folder / "out" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all("log_ratio" in line and "kl" not in line for line in steps)


def test_base_and_trained_model_are_measured_with_every_answer_kept(workspace):
    folder, printed = workspace
    measured = records.read_jsonl(folder / "out" / "evals.jsonl")
    assert [(entry["model"], entry["step"]) for entry in measured[:2]] == [("base", 0), ("trained", 2)]
    accuracy = measured[0]["tasks"][0]["metrics"]["accuracy"]
    assert accuracy["n"] == 4
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert measured[0]["tasks"][1]["settings"]["data"] == "lab:forgetting"
    answers = records.read_jsonl(folder / "out" / "evals" / "trained" / "sums.jsonl")
    assert [row["prompt"] for row in answers] == [f"{i}+{i}=" for i in range(4)]
    assert re.search(r"sums +accuracy +4", printed["train"])


def test_evaluate_measures_start_and_output_and_prints_json(workspace):
    folder, _ = workspace
    done = run("evaluate", "recipe.yaml", "--json", "--items", "answers")
    report = json.loads(done.stdout)
    trained = records.read_jsonl(folder / "out" / "evals.jsonl")[1]
    assert [entry["model"] for entry in report] == ["base", "trained"]
    assert report[1]["tasks"][0]["metrics"] == trained["tasks"][0]["metrics"]
    assert (folder / "answers" / "base" / "sums.jsonl").is_file()


def test_evaluate_takes_models_by_path(workspace):
    done = run("evaluate", "recipe.yaml", "--model", "model", "--model", "out")
    assert re.search(r"task +metric +n +model +out", done.stdout)


def test_resume_goes_on_from_the_checkpoint(workspace):
    folder, _ = workspace
    done = run("train", "recipe.yaml", "--resume", "training.max_steps=3", "evaluation.base=false")
    assert "checkpoint and run record written" in done.stdout
    steps = [line["step"] for line in records.read_jsonl(folder / "out" / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3]
    changed = CliRunner().invoke(app, ["train", "recipe.yaml", "--resume", "objective=sft", "training.max_steps=4"])
    assert changed.exit_code == 2
    assert changed.stderr.startswith("command line: objective: differs from the run to be resumed")


def test_training_without_a_recipe_file_and_with_lora(workspace):
    folder, _ = workspace
    settings = "model=model model.lora.r=2 objective=eksft data.train=rows.jsonl output=lora training.max_steps=1"
    settings += " training.save_strategy=no"
    run("train", *settings.split())
    assert (folder / "lora" / "adapter_config.json").is_file()
    assert "eksft" in (folder / "lora" / "README.md").read_text()
    assert not (folder / "lora" / "model.safetensors").exists()
    done = run(
        "evaluate", "model=model", "--model", "lora", "evaluation.tasks=[{kind: nll, data: lab:forgetting, limit: 2}]"
    )
    assert "perplexity" in done.stdout


@pytest.mark.parametrize(
    "setting", ["assistant_only_loss=true", "packing=true", "completion_only_loss=false", "padding_free=false"]
)
def test_chat_rows_train_with_the_labels_that_were_prepared(workspace, setting):
    folder, _ = workspace
    tokenizer = char_tokenizer(chat_template=CHAT_TEMPLATE)
    tokenizer.save_pretrained("chat-model")
    tiny_model().save_pretrained("chat-model")
    turns = [[{"role": "user", "content": f"{i}+1="}, {"role": "assistant", "content": str(i + 1)}] for i in range(8)]
    Path("chat.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    output = f"chat-{setting}"
    settings = f"model=chat-model data.train=chat.jsonl objective=prift-prob output={output} training.max_steps=1"
    run("train", *settings.split(), f"training.{setting}", "training.max_length=64", "training.logging_steps=1")
    report = json.loads((folder / output / "run.json").read_text())["data"]["train"]
    # Without assistant masks every token but each row's first is trained; with them the digit and the end.
    assert report["trained_tokens"] == (16 if setting.startswith("assistant") else report["tokens"] - 8)
    assert (folder / output / "model.safetensors").is_file()


def test_a_trainer_that_refuses_leaves_no_folder_behind(workspace, monkeypatch):
    def refuse(*_):
        Path("refused").mkdir()
        raise BallastError("no")

    monkeypatch.setattr("ballast.pipeline.train._trainer", refuse)
    done = CliRunner().invoke(app, ["train", "recipe.yaml", "output=refused", "evaluation.base=false"])
    assert (done.exit_code, done.stderr) == (2, "no\n")
    assert not Path("refused").exists()


def test_dry_run_prints_a_recipe_that_loads_and_writes_nothing(workspace, tmp_path):
    folder, _ = workspace
    before = sorted(folder.rglob("*"))
    done = run("train", "recipe.yaml", "output=new", "seed=7", "--dry-run")
    assert sorted(folder.rglob("*")) == before
    (tmp_path / "resolved.yaml").write_text(done.stdout)
    assert load_recipe(tmp_path / "resolved.yaml") == load_recipe(folder / "recipe.yaml", ["output=new", "seed=7"])


def test_a_dry_run_takes_no_longer_than_the_imports_it_needs(tmp_path):
    def processor_seconds(*arguments):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    recipe = Path(__file__).parent.parent / "recipes" / "lab-prift-mass.yaml"
    imports = (
        "from transformers import AutoConfig, AutoTokenizer; from datasets import Dataset; from trl import SFTTrainer"
    )
    least = processor_seconds("-c", imports)
    assert processor_seconds("-m", "ballast.cli", "train", str(recipe), "--dry-run") < 1.1 * least


def test_objectives_are_listed_and_described():
    names = [entry["name"] for entry in json.loads(run("objectives", "--json").stdout)]
    assert {"sft", "dft", "prift-prob", "prift-mass", "eksft", "reweight"} <= set(names)
    assert "threshold" in run("objectives", "prift-mass").stdout
    listed = run("objectives").stdout
    assert all(name in listed for name in names)


@pytest.mark.parametrize("arguments", [["objectives"], ["--version"], ["--help"], ["train", "--help"]])
def test_looking_around_loads_no_torch(arguments):
    code = (
        "import sys\nfrom ballast.cli import app\n"
        f"try: app({arguments!r})\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # Under a second on an idle machine; the bound leaves room for a busy one.
    assert time.monotonic() - start < 5


def test_version_names_the_libraries_below():
    assert re.match(r"ballast \d+\.\d+\.\d+, torch ", run("--version").stdout)


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("BALLAST_DEBUG", "0")
    done = CliRunner().invoke(app, ["--debug", "objectives", "nope"])
    assert isinstance(done.exception, BallastError)


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("ballast.objectives.list_objectives", lambda: 1 / 0)
    assert isinstance(CliRunner().invoke(app, ["objectives"]).exception, ZeroDivisionError)


def test_an_interrupt_exits_with_130(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("ballast.objectives.list_objectives", interrupt)
    done = CliRunner().invoke(app, ["objectives"])
    assert done.exit_code == 130
    assert done.stderr == "interrupted\n"


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parent.parent / "recipes").glob("lab-*.yaml")), ids=lambda path: path.stem
)
def test_lab_recipes_pass_every_check(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("rl" if recipe.stem == "lab-rl" else "train", str(recipe), "--dry-run")
    assert not list(tmp_path.iterdir())
