import json
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.errors import BallastError
from ballast.evaluation import metrics
from ballast.evaluation.metrics import (
    Estimate,
    bits_per_character,
    mean,
    mean_pass_at_k,
    pass_at_k,
    proportion,
    ratio,
    token_nll,
)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_equals_enumeration(n):
    for correct in range(n + 1):
        outcomes = [1] * correct + [0] * (n - correct)
        for k in range(1, n + 1):
            draws = list(combinations(outcomes, k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_is_unbiased_and_stable():
    p, n, k = 0.2, 16, 4
    expected = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_has_no_estimate(n, correct, k):
    with pytest.raises(BallastError):
        pass_at_k(n, correct, k)


def test_wilson_by_hand():
    estimate = proportion(8, 10)
    z, p, n = 1.959963984540054, 0.8, 10
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half))
    assert (estimate.n, estimate.method) == (10, "wilson")


def test_wilson_covers_near_its_level():
    rng = np.random.default_rng(0)
    intervals = {c: proportion(c, 40) for c in range(41)}
    hits = [intervals[c].low <= 0.1 <= intervals[c].high for c in rng.binomial(40, 0.1, 2000)]
    assert 0.92 <= np.mean(hits) <= 0.985


def test_bootstrap_covers_near_its_level():
    rng = np.random.default_rng(1)
    hits = []
    for trial in range(150):
        estimate = mean(rng.beta(2, 5, 50), seed=trial, resamples=500)
        hits.append(estimate.low <= 2 / 7 <= estimate.high)
    assert 0.88 <= np.mean(hits) <= 0.99


def test_binary_scores_get_wilson_and_fractions_the_bootstrap():
    assert mean([0, 1, 1, 0]).method == "wilson"
    assert mean([0, 0, 0]).high > 0.5
    assert mean([0.2, 0.9, 0.5, 0.7]).method == "bootstrap-bca"
    assert mean([0.5, 0.5, 0.5]).low is None
    assert mean([0.5]).low is None


def test_no_items_is_nan_and_json_null():
    estimate = mean([])
    assert math.isnan(estimate.value)
    assert estimate.n == 0
    assert json.loads(json.dumps(estimate.to_dict(), allow_nan=False))["value"] is None


def test_ratio_weights_by_tokens_not_by_texts():
    nll, tokens = [10.0, 1.0], [10, 100]
    estimate = token_nll(nll, tokens)
    assert estimate.value == pytest.approx(11 / 110)
    assert estimate.n == 2
    assert bits_per_character([math.log(2) * 6], [3]).value == pytest.approx(2.0)
    with pytest.raises(BallastError):
        ratio([1.0], [1.0, 2.0])
    with pytest.raises(BallastError):
        ratio([1.0], [0.0])


def test_intervals_repeat_with_their_seed():
    values = np.random.default_rng(2).random(30)
    assert mean(values, seed=3) == mean(values, seed=3)
    assert isinstance(mean_pass_at_k([0, 2, 4], 4, 2), Estimate)
    assert mean_pass_at_k([0, 2, 4], 4, 2).value == pytest.approx((0 + 5 / 6 + 1) / 3)


def naive_vote(read, scores):
    """Count every answer's votes in the order of the samples, and keep the first of those with most."""
    seen = [answer for answer in dict.fromkeys(read) if answer is not None]
    if not seen:
        return scores[0]
    most = max(read.count(answer) for answer in seen)
    chosen = next(answer for answer in seen if read.count(answer) == most)
    return next(score for answer, score in zip(read, scores, strict=True) if answer == chosen)


answers_and_scores = st.lists(st.sampled_from(["4", "5", "6", None]), min_size=1, max_size=9).map(
    lambda read: (read, [1.0 if answer == "4" else 0.5 if answer == "6" else 0.0 for answer in read])
)


@given(answers_and_scores)
def test_the_vote_is_that_of_counting(drawn):
    read, scores = drawn
    assert metrics.majority(read, scores) == naive_vote(read, scores)
    assert metrics.maj_at_k(read, scores, len(read)) == naive_vote(read, scores)


@given(answers_and_scores)
def test_one_vote_is_accuracy(drawn):
    read, scores = drawn
    assert metrics.maj_at_k(read, scores, 1) == pytest.approx(sum(scores) / len(scores))


@given(st.sampled_from([("4", 1.0), ("5", 0.0), (None, 0.0), (None, 1.0)]), st.integers(1, 8), st.data())
def test_the_vote_of_samples_that_are_the_same_is_accuracy(one, count, data):
    k = data.draw(st.integers(1, count))
    assert metrics.maj_at_k([one[0]] * count, [one[1]] * count, k) == one[1]


def test_ties_go_to_the_first_and_answers_that_cannot_be_read_have_no_vote():
    assert metrics.majority(["5", "4", "4", "5"], [0, 1, 1, 0]) == 0
    assert metrics.majority(["4", "5", "5", "4"], [1, 0, 0, 1]) == 1
    assert metrics.majority([None, None, None, "4"], [0, 0, 0, 1]) == 1
    assert metrics.maj_at_k(["5", "5", "4", "4", "4"], [0, 0, 1, 1, 1], 2) == 0.5


def test_a_vote_of_more_samples_than_there_are_is_refused():
    for k in (0, 3):
        with pytest.raises(BallastError, match=f"maj@{k} from 2 samples"):
            metrics.maj_at_k(["4", "4"], [1, 1], k)
