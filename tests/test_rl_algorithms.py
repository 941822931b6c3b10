"""RLOO beside GRPO: advantages by hand, what each reads, and a run of each from the command line."""

import json
from pathlib import Path

import pytest
import torch

from ballast.config.recipe import load_recipe
from ballast.errors import BallastError
from ballast.pipeline import RL_CHECKS
from ballast.rl import RLOptions
from ballast.rl.rewards import WRONG, reward_verifier
from rl_tools import logged, tiny_run

REWARDS = (1.0, 0.0, WRONG, 0.0, 0.5, 0.5, 1.0, 0.0)
"""Of two groups of four."""


def scored(tmp_path, monkeypatch, **options):
    """Return what TRL makes of the rewards above for its loss."""
    from dataclasses import replace

    run = tiny_run(tmp_path, prompts=2, group=4, **options)
    judge, seen = run.rewards.judge, []
    monkeypatch.setattr(run.rewards, "judge", lambda *given: replace(judge(*given), rewards=REWARDS))
    score = run.trainer._generate_and_score_completions
    monkeypatch.setattr(
        run.trainer, "_generate_and_score_completions", lambda inputs: seen.append(score(inputs)) or seen[-1]
    )
    run.train()
    return seen[0], run


def test_an_answer_is_compared_with_the_others_of_its_group(tmp_path, monkeypatch):
    seen, _ = scored(tmp_path, monkeypatch, algorithm="rloo")
    groups = torch.tensor(REWARDS, dtype=torch.float64).view(2, 4)
    by_hand = [
        reward - sum(group[:place] + group[place + 1 :]) / 3
        for group in groups.tolist()
        for place, reward in enumerate(group)
    ]
    torch.testing.assert_close(
        seen["advantages"].double(), torch.tensor(by_hand, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_grpo_is_another_thing(tmp_path, monkeypatch):
    seen, _ = scored(tmp_path, monkeypatch, trainer={"scale_rewards": "none"})
    groups = torch.tensor(REWARDS).view(2, 4)
    by_hand = (groups - groups.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(seen["advantages"], by_hand, atol=1e-6, rtol=0)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_failed_reading_weighs_a_ninth_of_a_right_answer_at_most(tmp_path, monkeypatch, algorithm):
    """Unscaled: 0 among seven of 0.1 against 1 among seven of 0.1 is −0.1 : 0.9."""
    monkeypatch.setattr("test_rl_algorithms.REWARDS", (0.0, WRONG, WRONG, WRONG, 1.0, WRONG, WRONG, WRONG))
    seen, _ = scored(tmp_path, monkeypatch, algorithm=algorithm, reward="reft")
    none, right = (float(seen["advantages"][place]) for place in (0, 4))
    assert none < 0 < right
    assert abs(none) <= right / 9 + 1e-6


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_kl_is_taken_off_the_reward_in_rloo_alone(tmp_path, monkeypatch, algorithm):
    """With equal rewards there are advantages only where answers differ in how far the model has moved."""
    from peft import LoraConfig

    monkeypatch.setattr("test_rl_algorithms.REWARDS", (0.5,) * 8)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    seen, run = scored(tmp_path, monkeypatch, algorithm=algorithm, beta=0.5, peft_config=lora)
    assert (float(seen["advantages"].abs().max()) > 0) == (algorithm == "rloo")
    assert logged(run)[0]["kl"] != 0


def test_a_run_logs_under_the_same_names_and_learns(tmp_path):
    lines = {}
    for algorithm in ("grpo", "rloo"):
        run = tiny_run(tmp_path / algorithm, algorithm=algorithm, steps=40, group=8, learning_rate=3e-2)
        run.train()
        lines[algorithm] = logged(run)
        assert f"{algorithm.upper()}Trainer" in {kind.__name__ for kind in type(run.trainer).__mro__}
    names = {"reward", "reward_std", "mixed", "entropy", "length", "correct", "cut_off"}
    for found in lines.values():
        assert names <= set(found[0])
        ends = [sum(line["correct"] for line in part) / 8 for part in (found[:8], found[-8:])]
        assert ends[1] > ends[0] + 0.1


def test_settings_reach_trl():
    from ballast.rl.trl import config

    args = config(
        RLOptions(algorithm="rloo", steps=7, prompts=4, group=6, beta=0.05, iterations=2, trainer={"epsilon": 0.3}),
        output_dir="out",
        seed=5,
    )
    assert type(args).__name__ == "RLOOConfig"
    got = (args.max_steps, args.num_generations, args.num_iterations, args.beta, args.epsilon, args.seed)
    assert got == (7, 6, 2, 0.05, 0.3, 5)
    assert not args.normalize_advantages


BASE = ("model=lab", "data.train=lab:train", "output=out", "rl={verifier: 'ballast.lab.arithmetic:verify'}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rl.algorithm=ppo",), "rl.algorithm: 'ppo' is not allowed"),
        (("rl.algorithm=rlo",), "rl.algorithm: 'rlo' is not allowed; did you mean 'rloo'?"),
        (("rl.algorithm=rloo", "rl.loss_type=grpo"), "rl.loss_type: grpo would be ignored: rloo does not read it"),
        (
            ("rl.algorithm=rloo", "rl.trainer.scale_rewards=none"),
            "rl.trainer.scale_rewards: would be ignored: rl.algorithm rloo does not read it",
        ),
        (("rl.algorithm=rloo", "rl.trainer.delta=2"), "rl.trainer.delta: would be ignored: rl.algorithm rloo"),
        (("rl.trainer.normalize_advantages=true",), "rl.trainer.normalize_advantages: would be ignored: rl.algorithm"),
        (
            ("rl.algorithm=rloo", "rl.trainer.push_to_hub=true"),
            "rl.trainer.push_to_hub: is a field of trl.RLOOConfig that `ballast rl` does not take",
        ),
        (("rl.algorithm=rloo", "rl.trainer.normalize_advantages=1"), "rl.trainer.normalize_advantages: should be"),
    ],
)
def test_what_an_algorithm_does_not_read_is_refused(words, message):
    with pytest.raises(BallastError) as caught:
        load_recipe(None, [*BASE, *words], checks=RL_CHECKS)
    assert message in str(caught.value)


def test_what_it_reads_is_taken_and_recipes_come_back(tmp_path):
    words = ("rl.algorithm=rloo", "rl.trainer={normalize_advantages: true, epsilon: 0.1}", f"output={tmp_path / 'out'}")
    recipe = load_recipe(None, [*BASE, *words], checks=RL_CHECKS)
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert load_recipe(again, checks=RL_CHECKS).rl == recipe.rl


def test_the_command_trains_and_records(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from ballast.cli import app

    monkeypatch.chdir(tmp_path)
    words = [
        "model=lab", "data={train: 'lab:rl', limit: 8}", "output=out", "rl.algorithm=rloo", "rl.reward=reft",
        "rl.verifier=ballast.lab.arithmetic:verify", "rl.prompts=4", "rl.group=2", "rl.max_new_tokens=16",
        "rl.beta=0.05", "rl.iterations=2", "rl.save_steps=2", "rl.steps=2",
    ]  # fmt: skip
    done = CliRunner().invoke(app, ["rl", *words])
    assert done.exit_code == 0, (done.output, done.exception)
    record = json.loads(Path("out/run.json").read_text())
    assert (record["rl"]["algorithm"], record["status"]) == ("rloo", "finished")
    assert "`lab` after reinforcement learning (RLOO)" in Path("out/README.md").read_text()
    done = CliRunner().invoke(app, ["rl", *words, "--resume", "rl.steps=4"])
    assert done.exit_code == 0, (done.output, done.exception)
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} >= {1, 2, 3, 4}


def test_without_wrong_answers_that_can_be_read_reft_is_the_verifier():
    plain, reft = (reward_verifier("last-number", reward) for reward in ("verifier", "reft"))
    row = {"prompt": "12+7=?", "answer": "19"}
    for text in ("it is 19", "no idea", "", "nineteen", "#", "so 19."):
        assert plain(text, row) == reft(text, row)
