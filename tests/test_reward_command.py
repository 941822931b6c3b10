"""`ballast reward`: from a folder of groups to a classifier with a run record; what it refuses, in one line."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bad_input
from bad_input import check_refused, write_rows
from ballast.cli import app
from ballast.records import write as records
from ballast.records.runs import read_record
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

EXPERT = {"prompt": "1+1=", "origin": "expert", "response": "2"}
OWN = {**EXPERT, "origin": "own", "response": "34"}


class Case(bad_input.Case):
    base = ("model=model", "groups.file=answers.jsonl", "output=out")
    verb = "reward"


@pytest.fixture(scope="module")
def prototype(tmp_path_factory) -> Path:
    """A folder with a model and answers: each case works on a copy."""
    folder = tmp_path_factory.mktemp("prototype")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_model().save_pretrained("model")
        char_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained("model")
        rows = [{**row, "prompt": f"{n}+1="} for n in range(8) for row in (EXPERT, OWN)]
        write_rows("answers.jsonl", rows)
    return folder


@pytest.fixture
def workspace(prototype, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(prototype, folder)
    monkeypatch.chdir(folder)
    return folder


def run(*settings: str) -> str:
    done = CliRunner().invoke(app, Case("", "", settings).arguments())
    assert done.exit_code == 0, (done.output, done.exception)
    return " ".join(done.stdout.split())


def log(output: str = "out") -> list[dict]:
    return [line for line in records.read_jsonl(Path(output) / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("loss", ["last-token", "per-token"])
def test_a_reward_is_learnt_from_a_head_of_zeros(loss, workspace):
    settings = (f"reward.loss={loss}", "reward.learning_rate=1e-2", "reward.epochs=6", "reward.pairs=4")
    said = run(*settings)
    assert f"reward: 7 pairs, 1 held out; {loss} loss" in said
    lines = log()
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[-1]["loss"] < 0.5
    assert lines[-1]["accuracy"] == 1
    record = read_record(Path("out"))
    assert record.status == "finished"
    assert record.data == {"pairs": 7, "held_out": 1, "equal": 0}
    assert record.train["accuracy"] == 1
    assert record.recipe["reward"]["loss"] == loss
    assert "head that scores answers" in Path("out/README.md").read_text()
    assert json.loads(Path("out/config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    assert list(Path("out").glob("*.bin")) == [Path("out/training_args.bin")]
    _scores_as_it_was_trained()


def _scores_as_it_was_trained() -> None:
    from transformers import AutoTokenizer

    from ballast.reward import load_scorer

    tokenizer = AutoTokenizer.from_pretrained("model")
    scorer = load_scorer("out", tokenizer)
    given, own = (tokenizer(text)["input_ids"] + [2] for text in ("1+1=2", "1+1=34"))
    scores = scorer([given, own])
    assert scores[0] > scores[1] + 0.1


def test_the_same_seed_gives_the_same_weights(workspace):
    run("reward.steps=2")
    run("reward.steps=2", "output=again")
    one, other = (Path(name, "model.safetensors").read_bytes() for name in ("out", "again"))
    assert one == other


def test_micro_batches_take_the_same_step(workspace):
    for output, micro in (("out", 4), ("split", 2)):
        run("reward.pairs=4", f"reward.micro_batch={micro}", "reward.steps=3", "reward.learning_rate=1e-2",
            f"output={output}")  # fmt: skip
    for one, other in zip(log(), log("split"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_the_score_of_a_pair_may_be_held_near_zero(workspace):
    settings = ("reward.steps=6", "reward.learning_rate=3e-2", "reward.trainer.warmup_steps=0")
    run(*settings)
    run(*settings, "reward.center=1", "output=centred")
    centre = [abs(log(name)[-1]["reward/chosen"] + log(name)[-1]["reward/rejected"]) for name in ("out", "centred")]
    assert centre[1] < centre[0]


def without(name: str) -> bad_input.Change:
    rows = [{**row, "prompt": "1+1="} for row in (EXPERT, OWN) if row["origin"] != name]
    return lambda: write_rows("answers.jsonl", rows)


def alike() -> None:
    write_rows("answers.jsonl", [EXPERT, {**EXPERT, "origin": "own"}])


def old_run() -> None:
    Path("out").mkdir()
    Path("out/run.json").touch()


CASES = [
    Case("no answers", "groups.file: is required and missing: a reward is learnt", without=("groups.file",)),
    Case("no such answers", "groups.file: absent: no such file or folder", ("groups.file=absent",)),
    Case("no own answers", "answers.jsonl: prompt 1: has no own answer", break_it=without("own")),
    Case("no demonstrations", "answers.jsonl: prompt 1: has no expert answer", break_it=without("expert")),
    Case("answers that are all alike", "own answer is the demonstration itself", break_it=alike),
    Case("an adapter to train", "model.lora: a reward is learnt with all weights", ("model.lora={r: 2}",)),
    Case("unknown loss", "reward.loss: 'bt' is not allowed; known: last-token, per-token", ("reward.loss=bt",)),
    Case("all held out", "reward.held_out: should be less than 1", ("reward.held_out=1",)),
    Case("misspelt key", "reward.epoch: unknown key; did you mean 'epochs'", ("reward.epoch=2",)),
    Case("half a micro-batch", "reward.micro_batch: 3 does not divide", ("reward={pairs: 4, micro_batch: 3}",)),
    Case("no rate", "reward.learning_rate: should be greater than 0", ("reward.learning_rate=0",)),
    Case(
        "a rate in the trainer",
        "reward.trainer.learning_rate: would be overridden here; set `reward.learning_rate`",
        ("reward.trainer.learning_rate=1e-5",),
    ),
    Case("a field nobody takes", "does not take", ("reward.trainer.dataset_num_proc=2",)),
    Case("misspelt field", "reward.trainer.optimm: unknown key; did you mean 'optim'", ("reward.trainer.optimm=sgd",)),
    Case("a field of another type", "reward.trainer.weight_decay: should be", ("reward.trainer.weight_decay=x",)),
    Case("no output", "output: is required", without=("output",)),
    Case("an earlier run", "out: is not empty", break_it=old_run),
    Case("no model", "model: is required", without=("model",)),
    Case("longer than allowed", "training.max_length is 5", ("training.max_length=5",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_cannot_be_learnt_from_is_refused_in_one_line_and_leaves_nothing(case, workspace, monkeypatch):
    monkeypatch.setattr("ballast.reward.scores.load_classifier", None)  # refused before a weight is read
    check_refused(case, workspace)


def test_what_is_no_reward_is_told_by_its_files(workspace):
    from ballast.errors import BallastError
    from ballast.reward import load_scorer

    run("reward.steps=1")
    assert load_scorer("out", char_tokenizer(chat_template=CHAT_TEMPLATE))
    refusals = {
        "absent": "no such folder",
        "model": "holds a LlamaForCausalLM, which is no classifier",
        "two": "a classifier with 2 labels",
        "bare": "has no *.safetensors",
        "empty": "has no config.json that can be read",
    }
    for name in ("two", "bare"):
        shutil.copytree("out", name)
    bad_input.edit_json("two/config.json", id2label={"0": "a", "1": "b"})()
    Path("bare/model.safetensors").unlink()
    Path("empty").mkdir()
    for name, words in refusals.items():
        with pytest.raises(BallastError, match=re.escape(words)) as caught:
            load_scorer(name, char_tokenizer(chat_template=CHAT_TEMPLATE))
        assert str(caught.value).startswith(name)
    with pytest.raises(BallastError, match="was trained with another tokenizer"):
        load_scorer("out", char_tokenizer(characters="0123456789+="))
