"""GRPO by TRL's trainer: what is sampled, rewarded, logged, and which way a step goes."""

import json
import math
from unittest import mock

import pytest
import torch

from ballast.evaluation import Verifier
from ballast.evaluation.generation import encode_prompt, end_ids
from ballast.rl.options import LOSS_TYPES
from ballast.rl.prompts import order
from ballast.rl.trl import metric_line
from data_rows import chat, tool, wide_tokenizer
from rl_tools import ROWS, logged, tiny_policy, tiny_run, tiny_tokenizer
from tiny import CHAT_TEMPLATE, char_tokenizer


def answer_logprob(model, tokenizer, answer="a"):
    """Mean over prompts of log p(answer, end)."""
    found = []
    for row in ROWS:
        prompt = list(encode_prompt(tokenizer, row["prompt"]))
        target = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([prompt + target])).logits[0].log_softmax(-1)
        found.append(sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(target)))
    return sum(found) / len(found)


def test_a_step_makes_rewarded_answers_more_likely_and_others_less(tmp_path):
    tokenizer = tiny_tokenizer()
    risen = {}
    for answer in ("a", "b"):
        model = tiny_policy()
        before = answer_logprob(model, tokenizer)
        run = tiny_run(tmp_path, model=model, group=32, rows=[{**row, "answer": answer} for row in ROWS])
        run.train()
        assert 0 < logged(run)[0]["reward"] < 1
        risen[answer] = answer_logprob(run.trainer.model, tokenizer) - before
    assert risen["a"] > 0.1
    assert risen["b"] < -0.1


def test_rewards_are_those_of_the_verifier_and_the_log_counts_them(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, prompts=4, group=8)
    seen = []
    judge = run.rewards.judge
    monkeypatch.setattr(
        run.rewards, "judge", lambda places, ids: seen.append((places, ids, judge(places, ids))) or seen[-1][2]
    )
    run.train()
    (places, ids, judged), (line,) = seen[0], logged(run)
    assert sorted(places) == [place for place in range(4) for _ in range(8)]
    ends, tokenizer = end_ids(run.trainer.model, tiny_tokenizer()), tiny_tokenizer()
    rewards = [
        float(sampled[-1] in ends and tokenizer.decode(sampled, skip_special_tokens=True) == "a") for sampled in ids
    ]
    assert list(judged.rewards) == rewards
    assert line["reward"] == pytest.approx(sum(rewards) / 32) == pytest.approx(line["correct"])
    groups = [rewards[i : i + 8] for i in range(0, 32, 8)]
    assert line["mixed"] == sum(len(set(group)) > 1 for group in groups) / 4 > 0
    assert line["cut_off"] == sum(sampled[-1] not in ends for sampled in ids) / 32 > 0
    assert line["length"] == sum(map(len, ids)) / 32
    assert (line["verifier_errors"], line["verifier_timeouts"]) == (0, 0)
    assert 0 < line["entropy"] < math.log(6)
    assert "kl" not in line
    assert not [name for name in line if name.startswith(("rewards/", "completions/", "frac_"))]


def test_a_line_of_the_log_has_our_names_and_nothing_twice():
    theirs = {
        "frac_reward_zero_std": 0.25,
        "rewards/reward/mean": 0.5,
        "reward": 0.5,
        "completions/mean_length": 7.0,
        "completions/min_terminated_length": 1.0,
        "step_time": 2.0,
        "num_tokens": 9.0,
        "epoch": 1.0,
        "step": 3,
    }
    ours = {"mixed": 0.75, "reward": 0.5, "length": 7.0, "seconds/step": 2.0, "tokens": 9.0, "step": 3}
    assert metric_line(theirs) == ours


def test_prompts_are_tokenised_as_in_evaluation_text_and_chat(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer(chat_template=CHAT_TEMPLATE, add_bos=True)
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    for rows in (ROWS, chat):
        run = tiny_run(tmp_path, rows=rows, tokenizer=tokenizer)
        seen = mock.Mock(side_effect=run.trainer._generate_single_turn)
        monkeypatch.setattr(run.trainer, "_generate_single_turn", seen)
        judged = mock.Mock(side_effect=run.rewards.judge)
        monkeypatch.setattr(run.rewards, "judge", judged)
        run.train()
        ids, places = seen.call_args.args[0], judged.call_args.args[0]
        assert [tuple(one) for one in ids] == [tuple(encode_prompt(tokenizer, rows[i]["prompt"])) for i in places]
        assert {tuple(one) for one in ids} == {tuple(encode_prompt(tokenizer, row["prompt"])) for row in rows}
        assert len(ids) == 16


def test_prompts_have_the_tools_and_template_options_of_their_rows(tmp_path, monkeypatch):
    tokenizer = wide_tokenizer()
    ask = {"prompt": [chat("user", [{"type": "text", "text": "2+2?"}])], "answer": "four"}
    rows = [{**ask, "tools": [tool("sum")], "chat_template_kwargs": None}, {**ask, "tools": [tool("weir", a={"b": 1})]}]
    rows += [{**ask, "tools": None, "chat_template_kwargs": {"mood": "calm"}}]
    model = tiny_policy(vocab=len(tokenizer), context=512)
    run = tiny_run(tmp_path, rows=rows, tokenizer=tokenizer, model=model, prompts=3, group=2)
    seen = mock.Mock(side_effect=run.trainer._generate_single_turn)
    monkeypatch.setattr(run.trainer, "_generate_single_turn", seen)
    run.train()
    assert {tokenizer.decode(ids) for ids in seen.call_args.args[0]} == {
        f"[tools {json.dumps([tool('sum')])}]<user>2+2?<assistant>",
        f"[tools {json.dumps([tool('weir', a={'b': 1})])}]<user>2+2?<assistant>",
        "[mood calm]<user>2+2?<assistant>",
    }


def test_the_verifier_reads_answers_as_in_evaluation_with_their_leading_space(tmp_path):
    from tokenizers import decoders

    tokenizer = char_tokenizer(characters="a ")
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    texts = []
    verify = Verifier("listening", lambda text, row: float(bool(texts.append(text))))
    rows = [{"prompt": "a" * i} for i in (1, 2, 3, 4)]
    tiny_run(tmp_path, rows=rows, model=tiny_policy(seed=4), tokenizer=tokenizer, verify=verify, group=16).train()
    assert [text for text in texts if text.startswith(" ")]


def test_the_models_own_generation_defaults_do_not_change_what_is_sampled(tmp_path):
    plain, strange = tiny_run(tmp_path), tiny_policy()
    strange.generation_config.no_repeat_ngram_size = 1
    strange.generation_config.suppress_tokens = [4]
    other = tiny_run(tmp_path, model=strange)
    plain.train()
    other.train()
    assert logged(other) == logged(plain)
    kept = other.trainer.model.generation_config
    assert (kept.no_repeat_ngram_size, kept.suppress_tokens) == (1, [4])


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    runs = [tiny_run(tmp_path, steps=3, prompts=2, seed=seed) for seed in (1, 1, 2)]
    for run in runs:
        run.train()
    first, same, other = map(logged, runs)
    assert [line["step"] for line in first] == [1, 2, 3]
    assert first == same != other


def test_batches_of_a_step_change_nothing(tmp_path):
    whole, split = tiny_run(tmp_path, group=8), tiny_run(tmp_path, group=8, micro_batch=4)
    for run in (whole, split):
        run.train()
    (one,), (other,) = logged(whole), logged(split)
    assert one["reward"] == other["reward"] > 0
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_steps_on_the_same_answers_sample_once(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, steps=4, iterations=2, prompts=2)
    rounds = []
    judge = run.rewards.judge
    monkeypatch.setattr(run.rewards, "judge", lambda places, ids: rounds.append(places) or judge(places, ids))
    run.train()
    assert run.trainer.state.global_step == 4
    assert len(rounds) == 2
    assert sorted({place for places in rounds for place in places}) == [0, 1, 2, 3]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_kind_of_loss_trains(loss_type, tmp_path):
    level = {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    run = tiny_run(tmp_path, loss_type=loss_type, group=8, trainer=level)
    before = run.trainer.model.lm_head.weight.detach().clone()
    run.train()
    assert (run.trainer.model.lm_head.weight - before).abs().max() > 1e-3
    assert math.isfinite(logged(run)[0]["loss"])


@pytest.mark.parametrize("lora", [False, True])
def test_the_divergence_from_the_start_is_logged_where_it_counts(lora, tmp_path):
    from peft import LoraConfig

    model = tiny_policy()
    model.save_pretrained(tmp_path / "start")
    model = type(model).from_pretrained(tmp_path / "start")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if lora else None
    run = tiny_run(tmp_path, model=model, peft_config=config, steps=3, beta=0.1, learning_rate=3e-2)
    run.train()
    kl = [line["kl"] for line in logged(run)]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-4


def test_every_prompt_comes_once_before_any_comes_twice():
    whole = order(5, 13, seed=3)
    assert sorted(whole[:5]) == sorted(whole[5:10]) == list(range(5))
    assert whole[:5] != whole[5:10]
    assert order(5, 7, seed=3) == whole[:7]
    assert order(5, 13, seed=4) != whole
