"""Rewards are the verifier's; ReFT's third value goes to wrong answers that are there."""

import warnings

import pytest

from ballast.errors import BallastError
from ballast.evaluation import GenerationOptions, generate, verifier
from ballast.evaluation.generation import end_ids, read_completion
from ballast.rl.rewards import WRONG, Rewards, reward_verifier
from ballast.verifiers.registry import Verifier, score_answers
from rl_tools import tiny_run
from tiny import char_tokenizer, tiny_model

ROW = {"prompt": "12+7=?", "answer": "19"}
LAB = "ballast.lab.arithmetic:verify"

CASES = [
    # (verifier, right, wrong but there, not there)
    ("exact", "19", "18", "  \n"),
    ("last-number", "it is 19", "it is 18", "no idea"),
    ("expression", "= 12 + 7", "12 + 6", "twelve"),
    (LAB, "12+7=19#19", "12+7=18#18", "12+7=19"),
    (LAB, "#19", "#19#18"[:3] + "0", "12#19#19"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "none"), CASES)
def test_reft_tells_wrong_answers_from_none(name, right, wrong, none):
    reft = reward_verifier(name, "reft")
    assert [reft(text, ROW) for text in (right, wrong, none)] == [1.0, WRONG, 0.0]
    plain = reward_verifier(name, "verifier")
    assert [plain(text, ROW) for text in (right, wrong, none)] == [1.0, 0.0, 0.0]


def test_reft_with_math_verify_reads_what_math_verify_reads():
    reft = reward_verifier("math", "reft")
    texts = ("so $\\frac{38}{2}$", "the answer is 18", "I do not know")
    assert [reft(text, ROW) for text in texts] == [1.0, WRONG, 0.0]


def test_every_verifier_of_ballast_says_what_an_answer_is():
    from ballast.verifiers.registry import VERIFIERS

    assert all(one.read is not None for one in VERIFIERS.values())


@pytest.fixture
def judges(tmp_path, monkeypatch):
    (tmp_path / "judges.py").write_text(
        "def silent(completion, row):\n    return 0.5\n"
        "def half(completion, row):\n    return float(completion)\n"
        "half.answered = lambda completion, row: 'x' not in completion\n"
        "def wild(completion, row):\n"
        "    if completion == 'loop':\n        while True: pass\n"
        "    if completion == 'raise':\n        raise KeyError('row')\n"
        "    return completion == 'good'\n"
        "def any_text(completion, row):\n    return bool(completion)\n"
        "wild.answered = any_text\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_verifier_that_does_not_say_what_an_answer_is_cannot_reward_as_reft(judges):
    assert reward_verifier("judges:silent")("x", ROW) == 0.5
    with pytest.raises(
        BallastError, match=r"'judges:silent' does not say which is which.* attribute `answered` or `read`"
    ):
        reward_verifier("judges:silent", "reft")


def test_partial_scores_stay_as_they_are_and_count_as_wrong_for_reft(judges):
    assert reward_verifier("judges:half")("0.75", ROW) == 0.75
    assert [reward_verifier("judges:half", "reft")(text, ROW) for text in ("1.0", "0.75")] == [1.0, WRONG]


def test_failures_score_zero_and_are_counted_whatever_the_reward(judges):
    texts = ["good", "bad", "raise", "loop"]
    for reward, bad in (("verifier", 0.0), ("reft", WRONG)):
        with pytest.warns(UserWarning, match="1 exceptions and 1 time-outs in 4 answers"):
            found = score_answers(reward_verifier("judges:wild", reward, seconds=0.5), [(text, ROW) for text in texts])
        assert found.scores == (1.0, bad, 0.0, 0.0)
        assert (found.errors, found.timeouts) == (1, 1)


def test_scores_out_of_range_are_failures_not_right_answers(judges):
    with pytest.warns(UserWarning, match="scores lie in 0 … 1"):
        assert score_answers(reward_verifier("judges:half", "reft"), [("1.7", ROW), ("-2", ROW)]).scores == (0.0, 0.0)


def test_rewards_are_what_evaluation_gives_the_same_samples():
    tokenizer, model = char_tokenizer(characters="ab "), tiny_model(vocab=7, seed=3)
    rows = [{"prompt": "ab", "answer": "a"}, {"prompt": "ba ", "answer": ["b", "a"]}]
    options = GenerationOptions(max_new_tokens=4, samples=16, temperature=1.0)
    sampled = generate(model, tokenizer, [row["prompt"] for row in rows], options)
    ends = end_ids(model, tokenizer)
    prompts = [tuple(tokenizer(row["prompt"])["input_ids"]) for row in rows]
    rewards = Rewards(
        verifier("exact"), rows, lambda row, ids: read_completion(tokenizer, prompts[row], ids, ends)
    )  # fmt: skip
    places = [place for place, answers in enumerate(sampled) for _ in answers]
    flat = [answer for answers in sampled for answer in answers]
    judged = rewards.judge(places, [answer.ids for answer in flat])
    wanted = [
        verifier("exact")(answer.text, rows[place]) if answer.ended else 0.0
        for place, answer in zip(places, flat, strict=True)
    ]
    assert list(judged.rewards) == wanted
    assert 0 < sum(wanted) < len(wanted)
    assert judged.correct == sum(wanted)
    assert judged.cut_off == sum(not answer.ended for answer in flat) > 0
    # An unfinished answer that says the right thing has not said it.
    cut = next(answer for answer in flat if not answer.ended)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind = Verifier("kind", lambda text, row: 1.0)
        assert Rewards(kind, rows, rewards.read).judge([0], [cut.ids]).rewards == (0.0,)
    assert rewards.answers == 32
    assert rewards.counts == {"cut_off": judged.cut_off, "errors": 0, "timeouts": 0}


GROUPS = (0.0, *[WRONG] * 7, 1.0, *[WRONG] * 7)
"""Rewards of two groups of 8: one answer without a result among wrong ones, and a right one among wrong ones."""


def advantages(tmp_path, monkeypatch, **options):
    """What TRL makes of the rewards above, for the first answer of each group."""
    from dataclasses import replace

    run = tiny_run(tmp_path, reward="reft", prompts=2, group=8, **options)
    judge, seen = run.rewards.judge, []
    monkeypatch.setattr(run.rewards, "judge", lambda *given: replace(judge(*given), rewards=GROUPS))
    score = run.trainer._generate_and_score_completions
    monkeypatch.setattr(
        run.trainer, "_generate_and_score_completions", lambda inputs: seen.append(score(inputs)) or seen[-1]
    )
    run.train()
    return [float(seen[0]["advantages"][place]) for place in (0, 8)]


def test_reft_pushes_answers_without_a_result_less_than_it_pulls_right_ones(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*scale_rewards")
        none, right = advantages(tmp_path, monkeypatch)
    assert none == pytest.approx(-7 / 8 * WRONG, abs=1e-6)
    assert right == pytest.approx(7 / 8 * (1 - WRONG), abs=1e-6)


def test_scaling_by_group_is_warned_about_with_reft_alone(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match=r"rl.trainer.scale_rewards=group with rl.reward=reft"):
        none, right = advantages(tmp_path, monkeypatch, trainer={"scale_rewards": "group"})
    assert (none, right) == pytest.approx((-2.47, 2.47), abs=0.01)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*scale_rewards")
        advantages(tmp_path, monkeypatch, trainer={"scale_rewards": "batch"})
        tiny_run(tmp_path, trainer={"scale_rewards": "group"})


def test_other_rewards_are_scaled_as_trl_does(tmp_path):
    assert tiny_run(tmp_path).trainer.args.scale_rewards == "group"
    assert tiny_run(tmp_path, reward="reft").trainer.args.scale_rewards == "none"
