"""Training on groups from a recipe: online and from a folder, with LoRA, accumulation and after a stop."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.records import write as records

BASE = (
    "model=lab",
    "data.train=lab:train",
    "data.limit=8",
    "objective={name: gft, tau: 0.7}",
    "groups={verifier: 'ballast.lab.arithmetic:verify', own: 2, max_new_tokens: 24}",
    "training={max_steps: 2, per_device_train_batch_size: 4, logging_steps: 1, learning_rate: 1e-3, "
    "lr_scheduler_type: constant, gradient_checkpointing: false, report_to: none, save_strategy: 'no'}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that every test works in, with a run of two steps in ``plain``."""
    folder = tmp_path_factory.mktemp("groups")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        said = train("plain", "data.eval=lab:validation", "training.eval_strategy=steps", "training.eval_steps=2")
        (folder / "said.txt").write_text(said)
        yield folder


def train(output, *settings):
    done = CliRunner().invoke(app, ["train", *BASE, f"output={output}", *settings])
    assert done.exit_code == 0, (done.output, done.exception)
    return " ".join(done.stdout.split())


def steps(output):
    return [line for line in records.read_jsonl(Path(output) / "metrics.jsonl") if "loss" in line]


def weights(output):
    from safetensors.torch import load_file

    return load_file(Path(output) / "model.safetensors")


def test_training_logs_by_origin_and_records_the_options(folder):
    logged = steps("plain")
    assert [line["step"] for line in logged] == [1, 2]
    for line in logged:
        assert line["expert/reward"] == 1
        assert 0 <= line["own/reward"] < 1
        assert {"own/probability", "own/rectified", "groups/zero_advantage", "seconds/sampling"} <= set(line)
    record = json.loads(Path("plain/run.json").read_text())
    assert record["status"] == "finished"
    assert record["recipe"]["groups"]["own"] == 2
    assert record["objective"]["tau"] == 0.7
    said = Path("said.txt").read_text()
    assert "groups: 8 prompts; 8 expert answers (mean reward 1.000), 2 own answers for each" in said


def test_held_out_demonstrations_are_measured_as_without_groups(folder):
    train("sft", "objective=sft", "groups=null", "data.eval=lab:validation", "training.learning_rate=0",
          "training.eval_strategy=steps", "training.eval_steps=2")  # fmt: skip
    train("still", "training.learning_rate=0", "data.eval=lab:validation", "training.eval_strategy=steps",
          "training.eval_steps=2")  # fmt: skip
    losses = [
        next(line["eval_loss"] for line in records.read_jsonl(Path(name) / "metrics.jsonl") if "eval_loss" in line)
        for name in ("sft", "still", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert abs(losses[2] - losses[0]) > 1e-4


def test_accumulated_batches_take_the_same_step(folder):
    train(
        "split",
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=4",
        "training.max_steps=1",
    )
    first, whole = steps("split")[0], steps("plain")[0]
    for name in ("loss", "own/reward", "own/length", "expert/probability", "groups/zero_advantage"):
        assert first[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name
    assert first["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)


def test_a_run_that_was_stopped_within_a_round_goes_on_as_if_it_had_not(folder):
    settings = ("groups.refresh=2", "training.per_device_train_batch_size=2", "training.save_strategy=steps")
    train("whole", *settings, "training.max_steps=4", "training.save_steps=10")
    train("stopped", *settings, "training.max_steps=3", "training.save_steps=3")
    train("stopped", *settings, "training.max_steps=4", "training.save_steps=10", "--resume")
    compared = ("step", "loss", "grad_norm", "own/reward", "own/length", "groups/zero_advantage")
    assert [[line[name] for name in compared] for line in steps("stopped")] == [
        [line[name] for name in compared] for line in steps("whole")
    ]
    found, wanted = weights("stopped"), weights("whole")
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_a_folder_that_was_sampled_trains_without_sampling(folder, monkeypatch):
    sampled = [setting for setting in BASE if not setting.startswith(("objective", "training"))]
    done = CliRunner().invoke(app, ["sample", *sampled, "groups.file=answers"])
    assert done.exit_code == 0, (done.output, done.exception)
    monkeypatch.setattr("ballast.groups.sampler.generate", None)
    said = train("offline", "groups.file=answers")
    assert "groups: 8 prompts, 24 answers from answers" in said
    assert "off-policy" not in said
    # Until the first step has moved the model, its answers are those that it would sample.
    for name in ("loss", "own/reward", "own/length"):
        assert steps("offline")[0][name] == pytest.approx(steps("plain")[0][name], rel=1e-5), name
    assert steps("offline")[1]["own/length"] != steps("plain")[1]["own/length"]
    assert "own answers of answers are another model's" in train("moved", "groups.file=answers", "model=plain")


def test_adapters_train_on_groups(folder):
    train("lora", "model.lora={r: 2}")
    assert Path("lora/adapter_config.json").is_file()
    assert not Path("lora/model.safetensors").exists()
    assert steps("lora")[0]["loss"] == pytest.approx(steps("plain")[0]["loss"], rel=1e-4)
    assert steps("lora")[1]["own/reward"] >= 0


def test_a_verifier_of_ones_own_that_crashes_costs_its_answers(folder):
    (folder / "wild_judge.py").write_text(
        "import os\ndef judge(completion, row):\n"
        "    if completion != row['completion']:\n        os._exit(1)\n    return 1.0\n"
    )
    with pytest.warns(UserWarning, match="exceptions"):
        train("wild", "groups.verifier='wild_judge:judge'", "training.max_steps=1")
    (line,) = steps("wild")
    assert line["groups/verifier_errors"] > 0
    assert line["expert/reward"] == 1


def test_answers_that_are_cut_off_are_judged_on_request_online_and_from_a_folder(folder):
    short = ("groups.verifier=group_rows:EVEN", "groups.max_new_tokens=2")
    judged = (*short, "groups.judge_cut_off=true")
    train("strict", *short)
    train("judged", *judged)
    stored = (*judged, "groups.file=judged-groups")
    done = CliRunner().invoke(app, ["sample", *BASE, *stored])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "16 own answers cut off" in " ".join(done.stdout.split())
    train("from-folder", *stored)
    for output in ("strict", "judged", "from-folder"):
        rewards = [line["own/reward"] for line in steps(output)]
        assert all((reward > 0) == (output != "strict") for reward in rewards), output
    assert all(line["groups/cut_off"] == 8 for output in ("strict", "judged") for line in steps(output))
