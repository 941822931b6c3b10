"""Reinforcement learning that cannot be: one line that names the place, exit code 2, before a weight is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bad_input
from bad_input import check_refused, write_rows
from ballast.cli import app
from ballast.config.recipe import load_recipe
from ballast.errors import BallastError
from ballast.pipeline import run_rl
from rl_tools import ROWS, tiny_policy, tiny_tokenizer

RL = {"verifier": "exact", "steps": 1, "prompts": 2, "group": 2, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def prototype(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prototype")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_policy().save_pretrained("model")
        tiny_tokenizer().save_pretrained("model")
        write_rows("rows.jsonl", ROWS)
        (folder / "judging.py").write_text("def judge(completion, row):\n    return 1.0\n")
    return folder


@pytest.fixture
def workspace(prototype, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(prototype, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("ballast.models.load_model", None)
    return folder


class Case(bad_input.Case):
    verb = "rl"
    base = ("model=model", "data.train=rows.jsonl", "output=out", f"rl={json.dumps(RL)}")


def row(change: Callable[[dict], dict], place: int | None = 2) -> Callable[[], object]:
    """Change one row, or all of them."""
    return lambda: write_rows("rows.jsonl", [change(one) if place in (i, None) else one for i, one in enumerate(ROWS)])


def adapter() -> None:
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text('{"base_model_name_or_path": "model"}')


def finished() -> None:
    Path("out").mkdir()
    Path("out/run.json").write_text("{}")


CHAT = [{"role": "user", "content": "ab"}]
DATA = "data.train (rows.jsonl): "

CASES = [
    Case("no section", "rl: is required and missing; say what judges the answers", without=("rl",)),
    Case("no verifier", "rl.verifier: is required and missing", ("rl={steps: 1}",)),
    Case("misspelt verifier", "rl.verifier: unknown verifier 'exakt'; did you mean", ("rl.verifier=exakt",)),
    Case("verifier not importable", "rl.verifier: cannot import module 'nowhere'", ("rl.verifier='nowhere:judge'",)),
    Case(
        "reft without knowing what an answer is",
        "rl.reward: reward reft gives 0.1 for a wrong answer and 0 for none, and verifier 'judging:judge' does not",
        ("rl.verifier='judging:judge'", "rl.reward=reft"),
    ),
    Case("vLLM that is not there", "rl.use_vllm: vLLM is not installed here", ("rl.use_vllm=true",)),
    Case(
        "options of vLLM without it",
        "rl.trainer.vllm_mode: would be ignored without rl.use_vllm",
        ("rl.trainer.vllm_mode=colocate",),
    ),
    Case("no rows", "data.train: is required and missing", without=("data.train",)),
    Case("no such rows", "rl.data: absent.jsonl: no such file or folder", ("rl.data=absent.jsonl",)),
    Case("no output", "output: is required and missing", without=("output",)),
    Case("output of another run", "output: out: is not empty, two runs would mix", break_it=finished),
    Case("no model", "model: nowhere/at/all: no such folder", ("model=nowhere/at/all",)),
    Case(
        "adapter on adapter",
        "model: adapter: holds a PEFT adapter, which goes on training; leave out model.lora",
        ("model.path=adapter", "model.lora={r: 2}"),
        adapter,
        without=("model",),
    ),
    Case("adapter on the head", "an adapter on `lm_head` would never be trained",
         ("model.lora={target_modules: [lm_head]}", "model.path=model"), without=("model",)),
    Case("algorithm that there is not", "rl.algorithm: 'ppo' is not allowed", ("rl.algorithm=ppo",)),
    Case("loss of another algorithm", "rl.loss_type: bnpo would be ignored: rloo does not read it",
         ("rl.algorithm=rloo", "rl.loss_type=bnpo")),
    Case("field of another algorithm", "rl.trainer.scale_rewards: would be ignored: rl.algorithm rloo",
         ("rl.algorithm=rloo", "rl.trainer.scale_rewards=batch")),
    Case("programs without permission", "rl.allow_code_execution: verifier program runs what the model writes",
         ("rl.verifier=program",)),
    Case("permission nobody reads", "rl.allow_code_execution: would be ignored: only verifier program reads it",
         ("rl.allow_code_execution=true",)),
    Case("permission that is no flag", "rl.allow_code_execution: should be a valid boolean; got 'please'",
         ("rl.verifier=program", "rl.allow_code_execution=please")),
    Case("no number for a program", f"{DATA}row 1: the answer 'a' has no number to compare with",
         ("rl.verifier=program", "rl.allow_code_execution=true"), row(lambda one: {**one, "answer": "a"})),
    # passed on to TRL
    Case("misspelt field", "rl.trainer.epsilom: unknown key; did you mean 'epsilon'?", ("rl.trainer.epsilom=0.1",)),
    Case("field of ours", "rl.trainer.max_steps: would be overridden here; set `rl.steps`",
         ("rl.trainer.max_steps=3",)),
    Case(
        "field that is not taken",
        "rl.trainer.push_to_hub: is a field of trl.GRPOConfig that `ballast rl` does not take",
        ("rl.trainer.push_to_hub=true",),
    ),
    Case("field of another type", "rl.trainer.epsilon: should be a valid number; got 'x'", ("rl.trainer.epsilon=x",)),
    Case("value that TRL reads too late", "rl.trainer.scale_rewards: 'grup' is not allowed; did you mean 'group'?",
         ("rl.trainer.scale_rewards=grup",)),
    Case("value out of range", "rl.trainer.epsilon: should be greater than or equal to 0; got -0.1",
         ("rl.trainer.epsilon=-0.1",)),
    Case("value without end", "rl.trainer.weight_decay: should be a finite number; got inf",
         ("rl.trainer.weight_decay=.inf",)),
    Case("loss over tokens of a sequence's", "rl.loss_type: luspo weighs whole sequences", ("rl.loss_type=luspo",)),
    Case("value that TRL refuses", "rl.trainer.logging_steps: ", ("rl.trainer.logging_steps=0",)),
    # rows
    Case("no prompts", f"{DATA}no column 'prompt' (columns: question", break_it=row(
        lambda one: {"question": one["prompt"], "answer": "a"}, None)),
    Case("empty prompt", f"{DATA}row 3: the prompt is empty", break_it=row(lambda one: {**one, "prompt": ""})),
    Case("nothing to judge by", f"{DATA}row 3: no 'answer' to judge by", break_it=row(
        lambda one: {**one, "answer": None})),
    Case(
        "answer beyond the context",
        f"{DATA}row 3: prompt of 126 tokens + rl.max_new_tokens 4 exceeds the model's context 128",
        break_it=row(lambda one: {**one, "prompt": "a" * 126}),
    ),
    Case("fewer prompts than a step takes", f"{DATA}4 prompts for rl.prompts 5", ("rl.prompts=5",)),
    Case("chat without a template", "the tokenizer has no chat template", break_it=row(
        lambda one: {**one, "prompt": CHAT}, None)),
    # evaluation
    Case("task without rows", "evaluation.tasks.0: gone.jsonl: no such file",
         ("evaluation.tasks=[{data: gone.jsonl}]",)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(case, workspace):
    check_refused(case, workspace)


def test_vllm_needs_an_accelerator_or_a_server(workspace, monkeypatch):
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    monkeypatch.setattr("ballast.rl.trl.vllm_is_installed", lambda: True)
    shared = Case("", "", ("rl.use_vllm=true",)).arguments()
    done = CliRunner().invoke(app, [shared[0], "--dry-run", *shared[1:]])
    assert (done.exit_code, "rl.use_vllm: vLLM would share this machine's accelerator" in done.stderr) == (2, True)
    done = CliRunner().invoke(app, [shared[0], "--dry-run", *shared[1:], "rl.trainer.vllm_mode=server"])
    assert done.exit_code == 0, done.output


def test_a_sharded_start_is_refused(workspace, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    done = CliRunner().invoke(app, Case("", "").arguments())
    assert (done.exit_code, "a model sharded by FSDP is not supported" in done.stderr) == (2, True)


def test_processes_that_would_each_run_by_themselves_are_refused(workspace, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(app, Case("", "").arguments())
    assert (done.exit_code, "2 processes were started, and each would train by itself" in done.stderr) == (2, True)


def test_what_the_checks_find_is_refused_from_python_too(workspace):
    recipe = load_recipe(None, [*Case("", "").arguments()[1:], "rl.verifier='nowhere:judge'"])
    with pytest.raises(BallastError, match=r"^rl\.verifier: cannot import module 'nowhere'"):
        run_rl(recipe)
    assert not Path("out").exists()


def test_a_run_may_not_change_on_resuming_but_may_grow(workspace, monkeypatch):
    monkeypatch.setattr("ballast.checkpoints.what_is_wrong", lambda *_, **__: None)
    folder = Path("out/checkpoint-1")
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    recipe = load_recipe(None, Case("", "").arguments()[1:])
    Path("out/run.json").write_text(json.dumps({"schema": 1, "status": "running", "recipe": recipe.resolved()}))
    longer, other = (Case("", "", (setting,)).arguments() for setting in ("rl.steps=9", "rl.group=4"))
    done = CliRunner().invoke(app, [longer[0], "--resume", "--dry-run", *longer[1:]])
    assert done.exit_code == 0, (done.output, done.exception)
    done = CliRunner().invoke(app, [other[0], "--resume", "--dry-run", *other[1:]])
    assert done.exit_code == 2
    assert "rl: differs from the run to be resumed" in done.stderr
    shutil.rmtree("out/checkpoint-1")
    done = CliRunner().invoke(app, [other[0], "--resume", *other[1:]])
    assert (done.exit_code, "has no checkpoint to resume from" in done.stderr) == (2, True)
