"""What other libraries, disks and names of files refuse too late: refused at every command before a weight is read."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bad_input
import test_bad_input
import test_bad_input_groups
import test_rl_bad_input
from bad_input import check_refused, edit_json, refused, write_rows
from ballast.cli import app
from tiny import char_tokenizer, tiny_model

ROWS = [{"prompt": f"{i}+1=", "completion": str(i + 1), "answer": str(i + 1)} for i in range(4)]
TASK = {"data": "rows.jsonl", "verifier": "exact", "max_new_tokens": 4}
GROUPS = "groups={verifier: exact, own: 2, max_new_tokens: 4}"
RL = ("rl={verifier: exact, steps: 1, prompts: 2, group: 2, max_new_tokens: 4}",)
COMPARE = {"objectives": ["sft", "dft"], "rates": [1e-4], "seeds": 1, "budget": {"steps": 1}}
ABSENT = (
    "wandb", "tensorboard", "tensorboardX", "mlflow", "comet_ml", "neptune", "clearml", "dvclive", "codecarbon",
    "swanlab", "trackio", "bitsandbytes", "galore_torch", "apollo_torch", "lomo_optim", "schedulefree", "torchao",
    "grokadamw", "optimi", "liger_kernel", "flash_attn", "flash_attn_interface", "kernels", "gptqmodel", "awq", "hqq",
    "deepspeed",
)  # fmt: skip


@pytest.fixture(scope="module")
def prototype(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prototype")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_model(tied=True).save_pretrained("model")
        tiny_model(tied=False).save_pretrained("untied")
        for name in ("model", "untied"):
            char_tokenizer().save_pretrained(name)
        write_rows("rows.jsonl", ROWS)
        Path("file").write_text("no folder")
        Path("home").mkdir()
    return folder


@pytest.fixture
def workspace(prototype, tmp_path, monkeypatch) -> Path:
    from ballast import packages

    folder = tmp_path / "work"
    shutil.copytree(prototype, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setattr("ballast.models.load_model", None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    installed = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in ABSENT else installed(name))
    return folder


class Case(bad_input.Case):
    base = ("model=model", "data.train=rows.jsonl", "objective=sft", "output=out")


def tasks(*named: str) -> str:
    return f"evaluation.tasks={json.dumps([{**TASK, 'name': name} for name in named])}"


def compare(**changes) -> tuple[str, ...]:
    return (f"compare={json.dumps({**COMPARE, **changes})}", tasks("test"))


def named(value: str, package: str, setting: str = "training.report_to") -> Case:
    expected = f"{setting}: not possible: {value!r} needs the package {package}, which is not installed"
    return Case(f"{value} without {package}", expected, (f"{setting}={value}",))


def link_to_nothing() -> None:
    Path("out").symlink_to("nowhere")


def gpt2(**changes) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=96, n_positions=24, n_embd=16, n_layer=1, n_head=2)).save_pretrained("short")
    char_tokenizer().save_pretrained("short")


GFT_WITH_STEPS = {"name": "gft", "training": {"max_steps": 1}}
LONG = {"prompt": "1" * 40, "completion": "2", "answer": "2"}

CASES = [
    # packages that are not there
    named("wandb", "wandb"),
    named("tensorboard", "tensorboard"),
    named("mlflow", "mlflow"),
    named("comet_ml", "comet_ml"),
    named("neptune", "neptune"),
    named("clearml", "clearml"),
    named("swanlab", "swanlab"),
    named("trackio", "trackio"),
    named("codecarbon", "codecarbon"),
    Case("one of two reports", "needs the package mlflow", ("training.report_to=[none, mlflow]",)),
    Case("report to nobody", "training.report_to: not possible: nothing is called 'wandbb'",
         ("training.report_to=wandbb",)),
    named("adamw_8bit", "bitsandbytes", "training.optim"),
    named("adamw_bnb_8bit", "bitsandbytes", "training.optim"),
    named("paged_adamw_32bit", "bitsandbytes", "training.optim"),
    named("lion_8bit", "bitsandbytes", "training.optim"),
    named("ademamix", "bitsandbytes", "training.optim"),
    named("galore_adamw", "galore-torch", "training.optim"),
    named("apollo_adamw", "apollo-torch", "training.optim"),
    named("lomo", "lomo-optim", "training.optim"),
    named("schedule_free_adamw", "schedulefree", "training.optim"),
    named("adamw_torch_4bit", "torchao", "training.optim"),
    named("grokadamw", "grokadamw", "training.optim"),
    named("stable_adamw", "torch-optimi", "training.optim"),
    Case("liger", "training.use_liger_kernel: not possible: True needs the package liger-kernel",
         ("training.use_liger_kernel=true",)),
    Case("DeepSpeed", "training.deepspeed: not possible: True needs the package deepspeed, which is not installed",
         ("training.deepspeed=ds.json",)),
    Case("DeepSpeed in a comparison", "training.deepspeed: not possible", (*compare(), "training.deepspeed=ds.json"),
         command="compare", without=("objective",)),
    # the hub
    Case("upload without login", "training.push_to_hub: not possible: nobody is logged in to the hub",
         ("training.push_to_hub=true",)),
    Case("flash attention", "model.attn_implementation: 'flash_attention_2' needs the package flash-attn",
         ("model.attn_implementation=flash_attention_2",)),
    Case("flash attention 3", "needs the package flash-attn-3", ("model.attn_implementation=flash_attention_3",)),
    Case("attention of the hub", "needs the package kernels", ("model.attn_implementation=kernels-community/any",)),
    Case("misspelt attention", "model.attn_implementation: 'spda' is not allowed; did you mean 'sdpa'?",
         ("model.attn_implementation=spda",)),
    Case("quantised weights", "model: model: its weights are quantised: 'gptq' needs the package gptqmodel",
         break_it=edit_json("model/config.json", quantization_config={"quant_method": "gptq", "bits": 4})),
    Case("score with LOMO", "needs the package lomo-optim", ("training.optim=lomo", "reference.cache=new"),
         command="score", without=("objective",)),
    Case("sample with a report", "needs the package wandb", ("training.report_to=wandb", GROUPS, "groups.file=new"),
         command="sample", without=("objective",)),
    Case("RL with a report", "rl.trainer.report_to: not possible: 'wandb' needs", (*RL, "rl.trainer.report_to=wandb"),
         command="rl", without=("objective",)),
    Case("RL with LOMO", "rl.trainer.optim: not possible", (*RL, "rl.trainer.optim=lomo"), command="rl",
         without=("objective",)),
    Case("compare with a report", "training.report_to: not possible: 'wandb'",
         (*compare(), "training.report_to=wandb"), command="compare", without=("objective",)),
    # places
    Case("output is a file", "output: file: is a file; name a folder", ("output=file",)),
    Case("output under a file", "file is no folder, so nothing can lie in it", ("output=file/run",)),
    Case("output is a link to nothing", "output: out: is a link to nothing", break_it=link_to_nothing),
    Case("output of an endless name", "cannot be a folder: File name too long", (f"output={'a' * 300}",)),
    Case("output with a zero byte", "a name has no zero bytes", ('output="a\\0b"',)),
    Case("RL into a file", "output: file: is a file", (*RL, "output=file"), command="rl", without=("objective",)),
    Case("RL under a file", "is no folder", (*RL, "output=file/a"), command="rl", without=("objective",)),
    Case("compare under a file", "is no folder", (*compare(), "output=file/a"), command="compare",
         without=("objective",)),
    Case("cache under a file", "reference.cache: file/cache: ", ("reference.cache=file/cache",)),
    Case("score under a file", "reference.cache: file/cache: ", ("reference.cache=file/cache",), command="score"),
    Case("compare with a cache under a file", "reference.cache: file/cache: ", (*compare(),
         "reference.cache=file/cache"), command="compare", without=("objective",)),
    Case("attention of a model to evaluate", "model ./untied: 'flash_attention_2' needs the package", (tasks("a"),
         "model.attn_implementation=flash_attention_2"), command="evaluate", flags=("--model", "./untied")),
    Case("sample under a file", "groups.file: file/new: ", (GROUPS, "groups.file=file/new"), command="sample"),
    Case("items in a file", "--items: file: is a file", (tasks("a"),), command="evaluate", flags=("--items", "file")),
    Case("items under a file", "is no folder", (tasks("a"),), command="evaluate", flags=("--items", "file/a")),
    # home folders
    Case("output of nobody", "output: ~nobody9/run: there is no such home folder", ("output=~nobody9/run",)),
    Case("model of nobody", "model.path: ~nobody9/model: there is no such home", ("model=~nobody9/model",)),
    Case("model that home lacks", "home/model: no such folder", ("model=~/model",)),
    Case("rows that home lacks", "home/rows.jsonl: no such file", ("data.train=~/rows.jsonl",)),
    Case("task that home lacks", "home/rows.jsonl: no such file", ("evaluation.tasks=[{data: ~/rows.jsonl}]",)),
    Case("reference that home lacks", "home/other: no such folder", ("reference.model=~/other",)),
    Case("groups that home lacks", "home/groups: no such file", ("objective=gft", "groups={file: ~/groups}",
         "data.train=[]"), without=("objective",)),
    Case("prompts that home lacks", "home/rows.jsonl: no such file", (*RL, "rl.data=~/rows.jsonl"), command="rl",
         without=("objective",)),
    Case("template that home lacks", "home/chat.jinja", ("training.chat_template_path=~/chat.jinja",)),
    # names of files
    Case("two tasks of one name", "evaluation.tasks.1: a second task named 'a'", (tasks("a", "a"),)),
    Case("tasks that differ in signs", "evaluation.tasks.1: 'a b' has the same file as 'a/b'", (tasks("a/b", "a b"),)),
    Case("tasks that differ in case", "evaluation.tasks.2: 'GSM' has the same file as 'gsm'",
         (tasks("gsm", "b", "GSM"),)),
    Case("tasks to evaluate in one file", "has the same file", (tasks("a:b", "a|b"),), command="evaluate"),
    Case("models in one folder", "models ./model and model: their answers would go to one folder", (tasks("a"),),
         command="evaluate", flags=("--model", "./model", "--model", "model")),
    # budgets
    Case("tokens that no row is bound by", "compare.budget: would be ignored: every row has its own max_steps",
         (*compare(objectives=[GFT_WITH_STEPS], budget={"tokens": 100}), GROUPS), command="compare",
         without=("objective",)),
    Case("steps that no row is bound by", "compare.budget: would be ignored",
         compare(objectives=[{"name": "sft", "training": {"num_train_epochs": 1}}]), command="compare",
         without=("objective",)),
    Case("template of one row", "compare.objectives.0.training.eos_token: the base model and other rows would be asked",
         compare(objectives=[{"name": "sft", "training": {"eos_token": "1"}}, "dft"]), command="compare",
         without=("objective",)),
    # what a model has room for
    Case("prompts beyond the context", "lose their trained tokens to the model's context of 24", ("model=short",),
         lambda: (gpt2(), write_rows("rows.jsonl", [LONG]))),
    Case("no room in a task", "exceeds the model's context", ("evaluation.tasks=[{data: rows.jsonl, max_new_tokens: "
         "30}]", "model=short"), lambda: gpt2(), command="train"),
    Case("copy of a tied head", "model.lora: 'modules_to_save' names `lm_head`, whose weight is the embedding's too",
         ("model.lora={target_modules: [q_proj], modules_to_save: [lm_head]}",)),
    Case("adapter on the head by pattern", "an adapter on `lm_head` would never be trained",
         ("model.lora={target_modules: '.*lm_head'}",)),
    Case("tokens of a tied head", "trainable tokens on `lm_head`",
         ("model.lora={target_modules: [q_proj], trainable_token_indices: [3]}",)),
]  # fmt: skip
LATE = {"no room in a task"}
"""Of the model, once it is loaded."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_in_one_line_and_leaves_nothing(case, workspace, monkeypatch):
    if case.name in LATE:
        monkeypatch.undo()
        monkeypatch.chdir(workspace)
    check_refused(case, workspace)


DRY = [case for case in CASES if case.name not in {"prompts beyond the context", *LATE}]


@pytest.mark.parametrize("case", DRY, ids=lambda case: case.name)
def test_a_dry_run_finds_it_too(case, workspace):
    case.break_it()
    command, *rest = case.arguments()
    assert case.expected in refused([command, "--dry-run", *rest])[0]


def test_a_full_disk_is_found_before_the_run(workspace, monkeypatch):
    usage = namedtuple("usage", "total used free")
    weights = Path("model/model.safetensors").stat().st_size
    for free, found in ((weights - 1, True), (2**21, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(0, 0, free))
        monkeypatch.setattr("ballast.files.LEAST_FREE", 0)
        monkeypatch.setattr("ballast.pipeline.checks.common.LEAST_FREE", 0)
        done = CliRunner().invoke(app, ["train", "--dry-run", *Case("", "").arguments()[1:]])
        assert (done.exit_code == 2, "output: out: the disk is full: " in done.stderr) == (found, found), done.output


def test_a_folder_without_permission_is_found_before_the_run(workspace, monkeypatch):
    allowed = os.access
    Path("closed").mkdir()
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != "closed" and allowed(path, mode)
    )  # root may write anywhere
    for place in ("closed", "closed/run"):
        (line,) = refused(Case("", "", (f"output={place}",)).arguments())
        assert f"output: {place}: cannot be written: no permission to write in" in line


def test_home_is_meant_in_every_path(workspace):
    from ballast.config.recipe import load_recipe

    settings = (
        "model=~/m", "model.adapter=~/a", "data.train=[~/t, u]", "data.eval=~/e", "reference={cache: ~/c}",
        "output=~/o", "groups={file: ~/g}", "rl={data: ~/r}",
        "evaluation.tasks=[{kind: readiness, data: ~/d, demonstrations: ~/n, forgetting: ~/f}]",
    )  # fmt: skip
    recipe, home = load_recipe(None, settings), str(workspace / "home")
    task = recipe.evaluation.tasks[0]
    found = [
        recipe.model.path, recipe.model.adapter, recipe.data.train[0], *recipe.data.eval, recipe.reference.cache,
        recipe.output, *recipe.groups.file, *recipe.rl.data, task.data, task.demonstrations, task.forgetting,
    ]  # fmt: skip
    assert found == [f"{home}/{name}" for name in "matecogrdnf"]
    assert recipe.data.train[1] == "u"


def test_an_output_at_home_is_made_there(workspace, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("HOME", str(workspace / "home"))
    settings = ("output=~/run", "training.max_steps=1", "training.report_to=none")
    done = CliRunner().invoke(app, Case("", "", settings).arguments())
    assert done.exit_code == 0, (done.output, done.exception)
    assert (workspace / "home" / "run" / "run.json").is_file()
    assert not (workspace / "~").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report", "model", "--output", "file"], "--output: file: is a file; name a folder"),
        (["quickstart", "--output", "file/run"], "--output: file/run: "),
        (["lab", "frozen-lake", "--output", "file/run"], "--output: file/run: "),
        (["inspect", "model=model", "data.train=rows.jsonl", "objective=sft", "--html", "home"], "is a folder; name a"),
        (["inspect", "model=model", "data.train=rows.jsonl", "objective=sft", "--record", "file/x"], "--record: "),
    ],
)
def test_options_that_name_a_place_are_checked(workspace, arguments, expected):
    (line,) = refused(arguments)
    assert expected in line


def test_the_suites_try_this_many_inputs():
    suites = (test_bad_input.CASES, test_bad_input_groups.CASES, test_rl_bad_input.CASES, CASES)
    assert sum(map(len, suites)) >= 230
    for suite in suites:
        assert len({case.name for case in suite}) == len(suite)
