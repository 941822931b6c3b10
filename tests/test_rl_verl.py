"""verl's reward function: loaded from its file as verl does, called with the arguments that verl gives."""

import importlib.util

import pytest

from ballast.errors import BallastError
from ballast.rl import verl

GIVEN = {"data_source": "svamp", "ground_truth": "19", "extra_info": {"num_turns": None, "prompt": "12+7=?"}}


@pytest.fixture
def compute_score():
    spec = importlib.util.spec_from_file_location("custom_module", verl.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compute_score


def test_a_verifier_rewards_answers(compute_score):
    texts = ("it is 19", "it is 18", "no idea")
    settings = {"verifier": "last-number", "reward": "reft"}
    assert [compute_score(solution_str=text, **GIVEN, **settings) for text in texts] == [1.0, 0.1, 0.0]
    assert [compute_score(solution_str=text, **GIVEN, verifier="last-number") for text in texts] == [1.0, 0.0, 0.0]


def test_what_the_verifier_raises_is_a_reward_of_0(compute_score):
    with pytest.warns(UserWarning, match="1 exceptions"):
        assert compute_score("svamp", "19", None, verifier="last-number") == 0


def test_settings_that_there_are_not_are_refused(compute_score):
    with pytest.raises(TypeError, match="tolerence"):
        compute_score(solution_str="19", **GIVEN, verifier="last-number", tolerence=0.1)
    with pytest.raises(BallastError, match="unknown verifier"):
        compute_score(solution_str="19", **GIVEN, verifier="last-numbr")
