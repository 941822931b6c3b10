"""How `train` and `rl` end: stopped by a signal, resumed when all is done, refused, or warned of at the end."""

import dataclasses
import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast import checkpoints
from ballast.cli import app
from ballast.pipeline import warnings
from ballast.records import write as records
from ballast.rl import RLOptions
from rl_tools import ROWS, tiny_policy, tiny_tokenizer

GIVEN = ("model=start", "data.train=rows.jsonl")
COMMANDS = {
    "train": (
        "objective=sft",
        "training={max_steps: 4, save_strategy: steps, save_steps: 100, learning_rate: 1e-2, logging_steps: 1, "
        "report_to: none, lr_scheduler_type: constant, per_device_train_batch_size: 2}",
    ),
    "rl": (
        "rl={verifier: exact, steps: 4, prompts: 2, group: 4, max_new_tokens: 4, learning_rate: 1e-2, save_steps: 100}",
    ),
}
STEP = {"train": "ballast.training.Trainer.training_step", "rl": "ballast.rl.trl.GroupRelative.training_step"}
UNSAVED = {"train": "training.save_strategy=no", "rl": "rl.save_steps=null"}
LENGTH = {"train": "training.max_steps", "rl": "rl.steps"}
TASK = "evaluation.tasks=[{name: held out, data: rows.jsonl, max_new_tokens: 4}]"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_policy().save_pretrained("start")
    tiny_tokenizer().save_pretrained("start")
    # Five rows in batches of two, so that the fourth step does not end an epoch.
    records.write_jsonl("rows.jsonl", [{**row, "completion": row["answer"]} for row in (*ROWS, ROWS[0])])
    return tmp_path


def invoke(command, output, *settings, given=GIVEN):
    return CliRunner().invoke(app, [command, *given, *COMMANDS[command], f"output={output}", *settings])


def done(command, output, *settings, **kwargs):
    result = invoke(command, output, *settings, **kwargs)
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return " ".join(result.stdout.split())


def record(output):
    return json.loads(Path(output, "run.json").read_text())


def contents(output, *names):
    return [Path(output, name).read_bytes() for name in names]


def signalled(monkeypatch, command, number, step=3):
    """Send this process a signal while it computes a step."""
    module, _, method = STEP[command].rpartition(".")
    package, _, name = module.rpartition(".")
    kind = getattr(importlib.import_module(package), name)
    original = kind.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step - 1:
            signal.raise_signal(number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(kind, method, training_step)


@pytest.mark.parametrize("command", COMMANDS)
def test_sigterm_finishes_the_step_saves_it_and_says_how_to_go_on(folder, monkeypatch, command):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signalled(patch, command, signal.SIGTERM)
        stopped = invoke(command, "out")
    assert stopped.exit_code == 143
    assert stopped.stderr.strip().splitlines()[-1] == (
        "terminated; the same command with --resume goes on from out/checkpoint-3"
    )
    assert record("out")["status"] == "running"
    assert signal.getsignal(signal.SIGTERM) is before
    done(command, "out", "--resume")
    done(command, "whole")
    assert contents("out", "model.safetensors") == contents("whole", "model.safetensors")
    assert [line["step"] for line in records.read_jsonl("out/metrics.jsonl")] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("command", COMMANDS)
def test_sigterm_where_no_checkpoints_are_kept(folder, monkeypatch, command):
    signalled(monkeypatch, command, signal.SIGTERM)
    stopped = invoke(command, "out", UNSAVED[command])
    assert stopped.exit_code == 143
    assert stopped.stderr.strip().splitlines()[-1] == "terminated; there is no checkpoint in out to resume from"
    assert not list(Path("out").glob("checkpoint-*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_names_the_checkpoint_or_says_that_there_is_none(folder, monkeypatch, command):
    every = {"train": "training.save_steps=2", "rl": "rl.save_steps=2"}[command]
    signalled(monkeypatch, command, signal.SIGINT)
    stopped = invoke(command, "out", every)
    assert stopped.exit_code == 130
    assert stopped.stderr.strip().splitlines()[-1] == (
        "interrupted; the same command with --resume goes on from out/checkpoint-2"
    )
    stopped = invoke(command, "none")
    assert (stopped.exit_code, stopped.stderr.strip().splitlines()[-1]) == (
        130,
        "interrupted; there is no checkpoint in none to resume from",
    )


def test_a_run_that_was_stopped_while_it_was_measured_says_so(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ballast.pipeline.run.Run._measure_after", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        stopped = invoke("train", "out", TASK)
    assert stopped.exit_code == 143
    assert "out is trained and not measured yet: the same command with --resume does that" in stopped.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_on_the_lab_is_stopped_and_goes_on_as_if_it_had_not(tmp_path, number):
    def command(output, steps, *flags):
        settings = (
            f"training={{max_steps: {steps}, save_strategy: steps, save_steps: 2, learning_rate: 1e-3, "
            "logging_steps: 1, report_to: none, lr_scheduler_type: constant, per_device_train_batch_size: 8}"
        )
        given = ["model=lab", "data.train=lab:train", "objective=sft", settings, f"output={output}"]
        return [sys.executable, "-m", "ballast.cli", "train", *given, *flags]

    run = subprocess.Popen(
        command("out", 100_000),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # A job that a shell has put in the background is started without it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    log = tmp_path / "out" / "metrics.jsonl"
    while run.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 3):
        time.sleep(0.05)
    run.send_signal(number)
    errors = run.communicate(timeout=300)[1].decode()
    last = checkpoints.last_whole(tmp_path / "out")
    assert last.path is not None
    assert last.torn == ()
    assert errors.strip().splitlines()[-1].endswith(f"with --resume goes on from out/{last.path.name}")
    assert run.returncode == 128 + number
    reached = int(last.path.name.partition("-")[2])
    if number == signal.SIGTERM:
        assert reached == json.loads(log.read_text().splitlines()[-1])["step"]
    for output, flags in (("out", ["--resume"]), ("whole", [])):
        again = subprocess.run(command(output, reached + 2, *flags), cwd=tmp_path, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
    assert contents(tmp_path / "out", "model.safetensors") == contents(tmp_path / "whole", "model.safetensors")


# Finished runs


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("saved", [True, False])
def test_a_finished_run_is_left_as_it_is(folder, command, saved):
    settings = [TASK, *([] if saved else [UNSAVED[command]])]
    done(command, "out", *settings)
    files = ("run.json", "metrics.jsonl", "evals.jsonl", "model.safetensors")
    before = contents("out", *files)
    for _ in range(2):
        said = done(command, "out", *settings, "--resume")
        assert said == "out: finished at step 4 already; nothing is left to do"
    assert contents("out", *files) == before


def test_a_finished_run_is_measured_again_where_the_tasks_are_others_and_not_trained(folder):
    done("train", "out", TASK)
    before = contents("out", "metrics.jsonl", "model.safetensors")
    other = TASK.replace("held out", "other")
    done("train", "out", other, "--resume")
    assert contents("out", "metrics.jsonl", "model.safetensors") == before
    assert record("out")["recipe"]["evaluation"]["tasks"][0]["name"] == "other"
    assert done("train", "out", other, "--resume").startswith("out: finished")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_finished_run_without_checkpoints_cannot_get_more_steps(folder, command):
    done(command, "out", UNSAVED[command])
    refused = invoke(command, "out", UNSAVED[command], f"{LENGTH[command]}=6", "--resume")
    assert (refused.exit_code, "has no checkpoint to resume from" in refused.stderr) == (2, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_whose_last_checkpoint_has_all_steps_takes_none(folder, monkeypatch, command):
    with monkeypatch.context() as patch:
        patch.setattr("ballast.pipeline.run.save_final", lambda *_: signal.raise_signal(signal.SIGINT))
        assert invoke(command, "out").exit_code == 130
    assert Path("out/checkpoint-4").is_dir()
    for _ in range(2):
        record("out")
        done(command, "out", "--resume")
        assert contents("out", "model.safetensors") == contents("out/checkpoint-4", "model.safetensors")
        assert not list(Path("out").glob("checkpoint-5"))
        Path("out/run.json").write_text(json.dumps({**record("out"), "status": "running"}))


# Torn checkpoints and other starts


@pytest.mark.parametrize("command", COMMANDS)
def test_a_torn_checkpoint_is_passed_over_and_said(folder, command):
    every = {"train": "training.save_steps=2", "rl": "rl.save_steps=2"}[command]
    done(command, "out", every)
    whole = contents("out", "model.safetensors")
    Path("out/run.json").write_text(json.dumps({**record("out"), "status": "running"}))
    Path("out/checkpoint-4/optimizer.pt").write_bytes(b"PK")
    said = done(command, "out", every, "--resume")
    assert "out/checkpoint-4: is not whole (optimizer.pt is cut); going on from checkpoint-2 instead" in said
    assert contents("out", "model.safetensors") == whole
    assert checkpoints.last_whole("out").torn == ()
    for path in Path("out").glob("checkpoint-*"):
        Path(path, "trainer_state.json").unlink()
    Path("out/run.json").write_text(json.dumps({**record("out"), "status": "running"}))
    refused = invoke(command, "out", every, "--resume")
    assert refused.exit_code == 2
    assert "has no checkpoint to resume from; out/checkpoint-4: is not whole (trainer_state.json" in refused.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_start_that_was_overwritten_is_refused(folder, command):
    done(command, "out")
    Path("out/run.json").write_text(json.dumps({**record("out"), "status": "running"}))
    tiny_policy(seed=9).save_pretrained("start")
    refused = invoke(command, "out", "--resume", f"{LENGTH[command]}=6")
    assert refused.exit_code == 2, refused.exception
    assert "out/checkpoint-4: was trained from another model than the one given" in refused.stderr


# Runs that would train nothing


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("training.dataloader_drop_last=true", "training.per_device_train_batch_size=16"), "dataloader_drop_last"),
        (
            (
                "training.dataloader_drop_last=true",
                "training.per_device_train_batch_size=16",
                "training.max_steps=-1",
                "training.num_train_epochs=2",
            ),
            "dataloader_drop_last",
        ),
        (("training.max_steps=0",), "max_steps"),
        (("training.max_steps=1", "training.warmup_steps=1", "training.lr_scheduler_type=linear"), "warmup_steps"),
    ],
)
def test_no_step_is_refused_before_weights_are_loaded(folder, monkeypatch, settings, named):
    monkeypatch.setattr("ballast.models.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    refused = invoke("train", "out", *settings)
    assert refused.exit_code == 2, refused.exception
    assert named in refused.stderr
    assert not Path("out").exists()


def test_a_loss_of_nan_is_one_line_and_leaves_the_checkpoint(folder, monkeypatch):
    from ballast.training import Trainer

    original = Trainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        return original(self, *args, **kwargs) * (float("nan") if self.state.global_step == 2 else 1)

    monkeypatch.setattr(Trainer, "compute_loss", compute_loss)
    stopped = invoke("train", "out", "training.save_steps=2")
    assert stopped.exit_code == 1
    (line,) = stopped.stderr.strip().splitlines()
    assert line.startswith("step 3: the loss is nan on row")
    assert checkpoints.last_whole("out").path == Path("out/checkpoint-2")
    assert record("out")["status"] == "running"


# Warnings at the end


def test_rl_whose_groups_never_mix_warns(folder):
    records.write_jsonl("rows.jsonl", [{"prompt": "ab", "answer": "never this"}] * 4)
    said = done("rl", "out")
    (warning,) = record("out")["warnings"]
    assert "equal rewards in all 4 steps, so no reward moved the model" in warning
    assert f"warning: {warning}" in said
    assert contents("out", "model.safetensors") == contents("start", "model.safetensors")


def test_rl_whose_answers_are_all_cut_off_warns(folder, monkeypatch):
    from ballast.rl import train

    read = train.read_completion
    monkeypatch.setattr(train, "read_completion", lambda *args: dataclasses.replace(read(*args), ended=False))
    said = done("rl", "out")
    found = record("out")["warnings"]
    assert found[0].startswith("all answers of all 4 steps were cut off at rl.max_new_tokens=4")
    assert len(found) == 2
    assert all(f"warning: {warning}" in said for warning in found)


def test_one_step_that_mixed_or_one_answer_that_ended_is_enough():
    lines = [{"mixed": 0.0, "cut_off": 0.5}, {"mixed": 0.5, "cut_off": 1.0}]
    assert warnings.of_reinforcement(lines, RLOptions(verifier="exact", steps=2)) == []


def test_a_run_that_learns_has_no_warning(folder):
    done("rl", "out")
    assert record("out")["warnings"] == []


GFT = ("objective=gft", "groups={verifier: exact, own: 3, max_new_tokens: 3, expert: 0}")


@pytest.mark.parametrize("logging", [1, 100])
def test_groups_that_never_mix_are_warned_of(folder, logging):
    rows = [{"prompt": prompt, "completion": "never this", "answer": "never this"} for prompt in ("ab", "ba", "a", "b")]
    records.write_jsonl("rows.jsonl", rows)
    said = done("train", "out", *GFT, f"training.logging_steps={logging}", UNSAVED["train"])
    found = record("out")["warnings"]
    assert "the answers of every group had equal rewards throughout, so there was no gradient" in found[-1]
    assert f"warning: {found[-1]}" in said
    done("train", "mixed", "objective=gft", GFT[1].replace("expert: 0", "expert: 1"), UNSAVED["train"])
    assert record("mixed")["warnings"] == []


def test_groups_whose_own_answers_are_all_cut_off_are_warned_of():
    equal = [{"groups/zero_advantage": 1.0, "groups/own": 4.0, "groups/cut_off": 4.0}] * 2
    found = warnings.of_groups([{"loss": 0.0}, *equal])
    assert [line.partition(":")[0] for line in found] == [
        "all 8 own answers were cut off and got no reward",
        "the answers of every group had equal rewards throughout, so there was no gradient",
    ]
    mixed = {"groups/zero_advantage": 0.5, "groups/own": 4.0, "groups/cut_off": 3.0}
    assert warnings.of_groups([*equal, mixed]) == []


def test_answers_that_were_sampled_beforehand_and_cut_off_are_counted(folder):
    records.write_jsonl("rows.jsonl", [{**row, "completion": row["answer"]} for row in ROWS])
    kept = f"{GFT[1][:-1]}, file: answers}}"
    sampled = CliRunner().invoke(app, ["sample", *GIVEN, kept])
    assert sampled.exit_code == 0, (sampled.output, sampled.exception)
    counted = int(re.search(r"(\d+) own answers cut off", sampled.stdout)[1])
    assert counted > 0
    done("train", "out", "objective=gft", "groups={file: answers}", "training.max_steps=2", UNSAVED["train"])
    lines = [line for line in records.read_jsonl("out/metrics.jsonl") if "groups/cut_off" in line]
    # Two steps of two prompts: each of the four once.
    assert sum(line["groups/cut_off"] for line in lines) == counted
    assert sum(line["groups/own"] for line in lines) == 12


@pytest.mark.parametrize("command", COMMANDS)
def test_a_card_that_cannot_be_written_costs_the_card_alone(folder, monkeypatch, command):
    def broken(*_):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "the base's card\nis none")

    monkeypatch.setattr("ballast.pipeline.run_folder.card", broken)
    said = done(command, "out", UNSAVED[command])
    assert record("out")["status"] == "finished"
    assert "warning: out: the model card is not written (UnicodeDecodeError: " in said
    assert not Path("out/README.md").exists()
