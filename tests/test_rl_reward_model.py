"""RL that follows the scores of a model: which scores they are, what they do to a policy, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import bad_input
from bad_input import check_refused, write_rows
from ballast.cli import app
from ballast.records import write as records
from ballast.reward import load_scorer
from ballast.rl import Prompts, RLOptions, Run
from ballast.rl.rewards import options_reward
from rl_tools import ROWS, TINY, logged, tiny_policy, tiny_tokenizer

MODEL = {"reward": "model", "reward_model": "reward", "verifier": None}


def save_reward(folder: Path, scale: float, *, seed: int = 5, tokenizer=None, labels: int = 1) -> None:
    """Write a classifier with a random body; its head times `scale`."""
    from transformers import LlamaForSequenceClassification

    config = tiny_policy().config
    config.num_labels = labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(scale)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)


def made(tmp_path, scale: float, **changes) -> Run:
    """Return a run that follows a reward whose scores have this scale."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PrinterCallback, ProgressCallback

    from ballast.rl import trl

    save_reward(tmp_path / "reward", scale)
    # TRL loads the reference of a KL from where the model came.
    tiny_policy().save_pretrained(tmp_path / "start")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    options = RLOptions(**{**TINY, **MODEL, "reward_model": str(tmp_path / "reward"), **changes})
    tokenizer, verify = tiny_tokenizer(), options_reward(options)
    prompts = Prompts.of(Dataset.from_list(ROWS), tokenizer, options, verify)
    args = trl.config(options, output_dir=str(tmp_path / "out"), seed=1)
    scorer = load_scorer(tmp_path / "reward", tokenizer)
    run = Run(policy, tokenizer, prompts, verify, options, args, score=scorer)
    for callback in (PrinterCallback, ProgressCallback):
        run.trainer.remove_callback(callback)
    return run


def moved(run: Run) -> float:
    start = dict(tiny_policy().named_parameters())
    return max(float((weight - start[name]).abs().max()) for name, weight in run.trainer.model.named_parameters())


def test_rewards_are_the_scores_of_prompt_and_answer_as_token_ids(tmp_path, monkeypatch):
    run = made(tmp_path, 1.0, group=8, verifier="exact")
    seen = []
    judge = run.rewards.judge
    monkeypatch.setattr(
        run.rewards, "judge", lambda places, ids: seen.append((places, ids, judge(places, ids))) or seen[-1][2]
    )
    run.train()
    (places, ids, judged), (line,) = seen[0], logged(run)
    tokenizer, scorer = tiny_tokenizer(), load_scorer(tmp_path / "reward", tiny_tokenizer())
    wanted = [
        scorer([tokenizer(ROWS[place]["prompt"])["input_ids"] + list(sampled)])[0]
        for place, sampled in zip(places, ids, strict=True)
    ]
    assert list(judged.rewards) == pytest.approx(wanted, abs=1e-6)
    assert len({round(value, 4) for value in wanted}) > 4
    right = [tokenizer.decode(one, skip_special_tokens=True) == "a" and one[-1] == 2 for one in ids]
    assert judged.correct == sum(right)
    assert line["reward"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    assert line["correct"] == pytest.approx(sum(right) / len(right))
    # Answers that were cut off have their score as well.
    assert 0 < line["cut_off"] < 1


def test_without_a_verifier_nothing_is_said_of_right_answers(tmp_path):
    run = made(tmp_path, 1.0)
    run.train()
    (line,) = logged(run)
    assert "correct" not in line
    assert moved(run) > 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_constant_score_moves_nothing(tmp_path, beta):
    """The KL to the start is at its least there, so beta does not either."""
    run = made(tmp_path, 0.0, beta=beta, steps=2)
    run.train()
    assert moved(run) < (1e-6 if beta else 1e-12)
    assert [line["reward"] for line in logged(run)] == [0.0, 0.0]


def test_scores_are_not_divided_by_their_groups_deviation(tmp_path):
    from ballast.rl import trl

    options = {**TINY, **MODEL}
    assert trl.config(RLOptions(**options), output_dir=str(tmp_path), seed=1).scale_rewards == "none"
    with pytest.warns(UserWarning, match="divided by each prompt's own deviation"):
        trl.config(RLOptions(**options, trainer={"scale_rewards": "group"}), output_dir=str(tmp_path), seed=1)
    # Scores ten times as large pull ten times as hard.
    norms = []
    for scale in (0.1, 1.0):
        run = made(tmp_path, scale, trainer={"max_grad_norm": 1e9})
        run.train()
        norms.append(logged(run)[0]["grad_norm"])
    assert norms[1] == pytest.approx(10 * norms[0], rel=1e-3)


def test_a_policy_follows_the_score(tmp_path):
    run = made(tmp_path, 1.0, steps=12, group=16)
    run.train()
    rewards = [line["reward"] for line in logged(run)]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3


def test_the_whole_way_from_answers_to_a_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_policy().save_pretrained("start")
    tiny_tokenizer().save_pretrained("start")
    write_rows("rows.jsonl", [{**row, "completion": "a"} for row in ROWS])
    groups = "groups={own: 4, max_new_tokens: 4, file: answers}"
    command("sample", "model=start", "data.train=rows.jsonl", "objective=irft", groups)
    learnt = "reward={held_out: 0, learning_rate: 1e-2, epochs: 8, pairs: 4}"
    command("reward", "model=start", "groups.file=answers", learnt, "output=reward")
    options = "rl={reward: model, reward_model: reward, verifier: exact, steps: 12, prompts: 4, group: 8, "
    options += "max_new_tokens: 4, learning_rate: 1e-2}"
    said = command("rl", "model=start", "data.train=rows.jsonl", options, "output=out")
    assert "rewarded by the scores of reward" in said
    lines = [line for line in records.read_jsonl(Path("out/metrics.jsonl")) if "reward" in line]
    assert lines[-1]["correct"] > lines[0]["correct"] + 0.3
    record = json.loads(Path("out/run.json").read_text())
    assert record["rl"]["reward_model"] == "reward"
    assert "rl.reward_model" in record["inputs"]


def command(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, (done.output, done.exception)
    return " ".join(done.stdout.split())


RL = {"steps": 1, "prompts": 2, "group": 2, "max_new_tokens": 4}


class Case(bad_input.Case):
    verb = "rl"
    base = (
        "model=model", "data.train=rows.jsonl", "output=out",
        f"rl={json.dumps({**RL, 'reward': 'model', 'reward_model': 'reward'})}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def prototype(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prototype")
    tiny_policy().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_rows(folder / "rows.jsonl", ROWS)
    save_reward(folder / "reward", 1.0)
    save_reward(folder / "two", 1.0, labels=2)
    from tiny import char_tokenizer

    save_reward(folder / "others", 1.0, tokenizer=char_tokenizer(characters="ba"))
    return folder


@pytest.fixture
def workspace(prototype, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(prototype, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("ballast.models.load_model", None)
    monkeypatch.setattr("ballast.reward.scores.load_classifier", None)
    return folder


CASES = [
    Case("no folder", "rl.reward_model: is required and missing", ("rl.reward_model=null",)),
    Case("no such folder", "rl.reward_model: absent: no such folder", ("rl.reward_model=absent",)),
    Case("a language model", "model: holds a LlamaForCausalLM, which is no classifier", ("rl.reward_model=model",)),
    Case("two labels", "two: a classifier with 2 labels has no one score", ("rl.reward_model=two",)),
    Case("other tokens", "rl.reward_model: others: was trained with another tokenizer", ("rl.reward_model=others",)),
    Case(
        "a folder nobody reads",
        "rl.reward_model: would be ignored: reward is verifier",
        ("rl.reward=verifier", "rl.verifier=exact"),
    ),
    Case("misspelt reward", "rl.reward: 'modle' is not allowed; did you mean 'model'", ("rl.reward=modle",)),
    Case("misspelt verifier", "rl.verifier: unknown verifier 'exakt'", ("rl.verifier=exakt",)),
    Case("nobody at all", "rl.verifier: is required", (f"rl={json.dumps(RL)}",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_reward_that_scores_nothing_is_refused_in_one_line(case, workspace):
    check_refused(case, workspace)
