"""reasoning-gym as an optional source of problems."""

import sys

import pytest

from ballast.errors import BallastError
from ballast.lab import reasoning_gym as gym


def test_without_the_package_the_error_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    gym._items.cache_clear()
    row = {"prompt": "", "task": "chain_sum", "seed": 0, "size": 1, "index": 0, "config": "{}"}
    for call in (
        lambda: gym.problems("chain_sum", 0, 1),
        lambda: gym.split("chain_sum", 1, 1),
        lambda: gym.verify("x", row),
    ):
        with pytest.raises(BallastError, match=r"pip install 'ballast-ft\[reasoning-gym\]'") as error:
            call()
        assert "\n" not in str(error.value)


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def _needs_the_package(self):
        pytest.importorskip("reasoning_gym")
        gym._items.cache_clear()

    def test_rows_follow_the_seed_and_differ_by_text(self):
        rows = gym.problems("chain_sum", 1, 30)
        assert rows == gym.problems("chain_sum", 1, 30)
        assert len({row["prompt"] for row in rows}) == 30

    def test_neighbouring_seeds_share_no_problem(self):
        first, second = ({row["prompt"] for row in gym.problems("chain_sum", seed, 50)} for seed in (0, 1))
        assert not first & second

    def test_split_is_disjoint_where_texts_repeat(self):
        config = {"min_terms": 2, "max_terms": 2, "max_digits": 1}
        train, test = gym.split("chain_sum", 40, 30, seed=2, config=config)
        prompts = [row["prompt"] for row in train + test]
        assert (len(train), len(test)) == (40, 30)
        assert len(set(prompts)) == 70
        assert max(row["index"] for row in train) >= 70, "no text came up twice: the test shows nothing"

    def test_test_rows_stay_when_train_size_grows(self):
        prompts = [[row["prompt"] for row in gym.split("chain_sum", size, 10)[1]] for size in (5, 500)]
        assert prompts[0] == prompts[1]

    def test_scores(self):
        [row] = gym.problems("chain_sum", 1, 1)
        answer = row["answer"]
        assert gym.verify(f"so <answer> {answer} </answer>", row) == 1.0
        assert gym.verify(f"<answer>0</answer> no, <answer>{answer}</answer>", row) == 1.0
        assert gym.verify(answer, row) == 0.0
        assert gym.verify(f"<answer>{answer}1</answer>", row) == 0.0
        assert gym.verify(f"<answer>1 {answer}</answer>", row) == 0.0
        assert gym.verify("<answer></answer>", row) == 0.0

    def test_a_row_of_another_version_is_refused(self):
        [row] = gym.problems("chain_sum", 1, 1)
        with pytest.raises(BallastError, match="another problem"):
            gym.verify("", row | {"index": 1})

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: gym.problems("chain_summ", 0, 1), "did you mean 'chain_sum'"),
            (lambda: gym.problems("chain_sum", 0, 1, {"bogus": 1}), "bogus"),
            (lambda: gym.problems("chain_sum", 0, 1, {"min_terms": 0}), "min_terms"),
            (lambda: gym.problems("chain_sum", -1, 1), "seed=-1"),
            (lambda: gym.problems("chain_sum", 0, -1), "size=-1"),
            (lambda: gym.split("chain_sum", 1, -1), "test_size=-1"),
            (
                lambda: gym.problems("chain_sum", 0, 500, {"min_terms": 2, "max_terms": 2, "max_digits": 1}),
                "would repeat",
            ),
        ],
    )
    def test_options_out_of_range_are_refused_in_one_line(self, call, message):
        with pytest.raises(BallastError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
