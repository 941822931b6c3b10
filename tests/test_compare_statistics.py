"""Intervals that hold what they promise, by simulation; adjustments and tests against naive ones."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from ballast.compare.statistics import (
    both_bounds,
    holm,
    over_both,
    over_items,
    over_seeds,
    paired_p,
    seeds_needed,
    t_bounds,
)
from ballast.errors import BallastError
from ballast.evaluation.metrics import mean_pass_at_k

SEEDS, ITEMS, REPLICATIONS = 5, 300, 2000
GAIN, SEED_SPREAD = 0.3, 0.2


def simulate(seed, *, interaction, replications=REPLICATIONS):
    """Return (differences [R, S, I], the true mean difference on the drawn items [R], and over all items).

    Every item is right with a probability of its own; each run of a method moves all of its items, and `interaction`
    lets the second method gain more on some items than on others.
    """
    rng = np.random.default_rng(seed)
    ability = rng.normal(1.0, 1.5, (replications, 1, ITEMS))
    gain = GAIN + rng.normal(0.0, interaction, (replications, 1, ITEMS))

    def answers(logit):
        runs = rng.normal(0.0, SEED_SPREAD, (replications, SEEDS, 1))
        return (rng.random((replications, SEEDS, ITEMS)) < expit(logit + runs)).astype(np.float32)

    differences = answers(ability + gain) - answers(ability)
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)

    def expected(logit):
        return sum(
            w * expit(logit + node * SEED_SPREAD) for node, w in zip(nodes, weights / weights.sum(), strict=True)
        )

    truth = (expected(ability + gain) - expected(ability)).mean(axis=(1, 2))
    return differences, truth, float(truth.mean())


@pytest.fixture(scope="module")
def runs():
    return simulate(0, interaction=0.0)


def covered(low, high, truth):
    return float(((low <= truth) & (truth <= high)).mean())


def test_t_intervals_over_paired_seeds_cover_the_truth_on_the_items_asked(runs):
    differences, truth, _ = runs
    _, low, high = t_bounds(differences.mean(axis=-1))
    assert 0.93 <= covered(low, high, truth) <= 0.97


def test_they_also_cover_the_truth_over_all_items_where_methods_gain_alike_on_each(runs):
    differences, _, overall = runs
    _, low, high = t_bounds(differences.mean(axis=-1))
    assert 0.93 <= covered(low, high, overall) <= 0.97


def test_intervals_over_items_alone_do_not_cover_what_other_seeds_would_give(runs):
    differences, truth, overall = runs
    by_item = differences.mean(axis=1)
    half = 1.96 * by_item.std(axis=-1, ddof=1) / math.sqrt(ITEMS)
    centre = by_item.mean(axis=-1)
    assert covered(centre - half, centre + half, truth) < 0.8
    assert covered(centre - half, centre + half, overall) < 0.8
    # The bootstrap over items is that interval, not a better one.
    one = over_items(differences[0])
    assert one.high - one.low == pytest.approx(2 * half[0], rel=0.15)


def test_a_single_run_on_many_items_says_little_of_other_seeds(runs):
    differences, truth, _ = runs
    first = differences[:, 0]
    half = 1.96 * first.std(axis=-1, ddof=1) / math.sqrt(ITEMS)
    assert covered(first.mean(axis=-1) - half, first.mean(axis=-1) + half, truth) < 0.85


def test_other_items_need_the_interval_over_both():
    differences, _, overall = simulate(1, interaction=3.0, replications=800)
    _, low, high = t_bounds(differences.mean(axis=-1))
    both = [over_both(one) for one in differences]
    bounds = np.array([[one.low, one.high] for one in both])
    assert covered(low, high, overall) < 0.92
    assert 0.93 <= covered(bounds[:, 0], bounds[:, 1], overall) <= 0.975


def test_over_seeds_is_students_interval_and_pairs_like_scipy():
    ours, theirs = np.array([0.61, 0.66, 0.58, 0.70, 0.64]), np.array([0.60, 0.61, 0.57, 0.66, 0.58])
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    found = over_seeds(ours - theirs)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.value == pytest.approx(float((ours - theirs).mean()))
    assert (found.n, found.method) == (5, "t-seeds")
    assert paired_p(ours - theirs) == pytest.approx(float(test.pvalue))


def test_pairing_takes_out_what_seeds_do_to_both():
    luck = np.array([0.0, 0.1, -0.1, 0.2, -0.2])
    theirs, ours = 0.5 + luck, 0.53 + luck + np.array([0.001, -0.001, 0.0, 0.002, -0.002])
    paired, apart = over_seeds(ours - theirs), over_seeds(ours)
    assert paired.low > 0
    assert paired.high - paired.low < (apart.high - apart.low) / 20


@pytest.mark.parametrize(("values", "n"), [([0.4], 1), ([0.4, 0.4, 0.4], 3), ([], 0)])
def test_no_interval_where_nothing_varies(values, n):
    found = over_seeds(values)
    assert (found.low, found.high, found.n, found.method) == (None, None, n, "none")


def test_rounding_is_no_spread():
    assert over_seeds([0.1 + 0.2, 0.3, 0.3]).low is None
    assert paired_p([1e-17, 0.0, -1e-17]) == 1.0


def test_p_of_equal_differences():
    assert paired_p([0.0, 0.0]) == 1.0
    assert paired_p([0.1, 0.1, 0.1]) is None
    assert paired_p([0.1]) is None


def test_over_both_adds_the_spread_of_seeds_to_that_of_items():
    rng = np.random.default_rng(2)
    table = rng.normal(0, 1, (1, 200)) + rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.3, (5, 200))
    wide = over_both(table)
    for narrow in (over_seeds(table.mean(axis=1)), over_items(table)):
        assert wide.low < narrow.low < narrow.high < wide.high
    # By hand: the mean squares of the two-way table.
    grand, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    of_seeds = 200 * np.var(rows, ddof=1)
    of_items = 5 * np.var(columns, ddof=1)
    of_rest = np.square(table - rows[:, None] - columns[None] + grand).sum() / (4 * 199)
    total = of_seeds + of_items - of_rest
    df = total**2 / (of_seeds**2 / 4 + of_items**2 / 199 + of_rest**2 / (4 * 199))
    half = stats.t.ppf(0.975, df) * math.sqrt(total / 1000)
    assert (wide.low, wide.high) == pytest.approx((grand - half, grand + half))


EFFECTS = {
    "nothing but noise": (0.0, 0.0, 1.0),
    "items": (0.05, 1.0, 0.5),
    "a little of each": (0.05, 0.3, 1.0),
    "seeds and items": (0.3, 0.3, 1.0),
}
"""Standard deviations of seeds, items and their interaction."""


@pytest.mark.parametrize("effects", EFFECTS.values(), ids=EFFECTS)
@pytest.mark.parametrize("items", [20, 100, 300])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_over_both_cover_the_truth_and_are_bounded(seeds, items, effects):
    rng = np.random.default_rng([seeds, items, *(int(100 * one) for one in effects)])
    shapes = (1500, seeds, 1), (1500, 1, items), (1500, seeds, items)
    tables = sum(rng.normal(0, spread, shape) for spread, shape in zip(effects, shapes, strict=True))
    centre, low, high = both_bounds(tables)
    assert 0.89 <= covered(low, high, 0.0) <= 0.985
    # Two seeds that agree by chance do not make an interval of millions.
    assert float((high - low).max()) <= 2 * 5 * stats.t.ppf(0.975, seeds - 1) * centre.std()
    for table, *bounds in zip(tables[:3], low, high, strict=False):
        one = over_both(table)
        assert (one.low, one.high) == pytest.approx(tuple(bounds))


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_of_right_and_wrong_answers_are_bounded_too(seeds):
    differences, _, overall = simulate(7, interaction=1.0, replications=1000)
    centre, low, high = both_bounds(differences[:, :seeds, :40])
    assert 0.9 <= covered(low, high, overall) <= 0.985
    assert float((high - low).max()) <= 2 * 5 * stats.t.ppf(0.975, seeds - 1) * centre.std()


def mean_squares(table):
    """Return the mean squares of seeds, items and the rest of a two-way table, and their degrees of freedom."""
    seeds, items = table.shape
    grand, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    degrees = np.array([seeds - 1, items - 1, (seeds - 1) * (items - 1)])
    rest = np.square(table - rows[:, None] - columns[None] + grand).sum() / degrees[2]
    return np.array([items * np.var(rows, ddof=1), seeds * np.var(columns, ddof=1), rest]), degrees


def test_neither_variance_nor_degrees_of_freedom_fall_below_those_of_seeds_or_items_alone():
    rng = np.random.default_rng(11)
    shapes = (400, 2, 1), (400, 1, 20), (400, 2, 20)
    acts = {"neither": 0, "variance": 0, "degrees of freedom": 0}
    for table in sum(rng.normal(0, spread, shape) for spread, shape in zip((0.1, 0.2, 0.5), shapes, strict=True)):
        squares, degrees = mean_squares(table)
        if squares[1] <= squares[2]:
            continue
        raw = squares[0] + squares[1] - squares[2]
        total = max(raw, squares[0], squares[1])
        df = total**2 / (squares**2 / degrees).sum()
        half = stats.t.ppf(0.975, max(df, 1)) * math.sqrt(total / table.size)
        found = over_both(table)
        assert ((found.high - found.low) / 2, found.method) == (pytest.approx(half), "t-seeds-and-items")
        acts["variance" if total > raw else "degrees of freedom" if df < 1 else "neither"] += 1
    assert all(acts.values()), acts


def test_over_both_is_over_seeds_where_items_do_not_differ():
    rng = np.random.default_rng(3)
    table = rng.normal(0, 0.1, (5, 1)) + np.array([[1.0, -1.0] * 10, [-1.0, 1.0] * 10] * 2 + [[1.0, -1.0] * 10])
    assert over_both(table) == over_seeds(table.mean(axis=1))


def test_over_both_needs_two_of_each():
    for table in (np.random.default_rng(5).random((1, 9)), np.random.default_rng(6).random((9, 1))):
        found = over_both(table)
        assert (found.value, found.low, found.method) == (pytest.approx(table.mean()), None, "none")


def test_the_same_run_twice_is_no_more_items():
    run = np.random.default_rng(4).random((1, 50))
    assert over_items(np.repeat(run, 4, axis=0)) == over_items(run)


@pytest.mark.parametrize("table", [np.zeros(4), np.zeros((2, 0)), np.zeros((2, 2, 2))])
def test_tables_of_another_shape_are_refused(table):
    with pytest.raises(BallastError, match="one row per seed and one column per item"):
        over_items(table)


def naive_holm(p_values):
    """Every hypothesis is rejected at the levels at which the closed test by Bonferroni rejects it."""
    tests = range(len(p_values))
    sets = [s for size in tests for s in itertools.combinations(tests, size + 1)]
    return [max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets if one in s) for one in tests]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test(p_values):
    assert holm(p_values) == pytest.approx(naive_holm(p_values))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([None, 0.02, None]) == [None, 0.02, None]
    assert holm([]) == []


def test_pass_at_k_over_items_is_the_share_of_subsets_with_a_right_answer():
    correct, n, k = [0, 1, 3, 5], 5, 2
    subsets = [list(itertools.combinations([i < c for i in range(n)], k)) for c in correct]
    naive = np.mean([np.mean([any(one) for one in some]) for some in subsets])
    assert mean_pass_at_k(correct, n, k).value == pytest.approx(naive)


@pytest.mark.parametrize("differences", [[0.01, 0.03, 0.02], [0.02, -0.01, 0.03, 0.0, 0.01], [-0.3, -0.1, 0.05]])
def test_the_seeds_needed_find_the_difference_four_times_in_five(differences):
    from scipy.stats import ttest_1samp

    needed = seeds_needed(differences)
    generator = np.random.default_rng(0)
    found = []
    for seeds in (needed, max(2, needed - 1)):
        drawn = generator.normal(np.mean(differences), np.std(differences, ddof=1), (20_000, seeds))
        found.append(float((ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean()))
    assert found[0] >= 0.79
    assert found[1] < 0.81
    assert seeds_needed(differences, power=0.95) > needed


def test_no_number_of_seeds_finds_nothing():
    assert seeds_needed([0.1]) is None
    assert seeds_needed([0.1, 0.1]) is None
    assert seeds_needed([0.1, -0.1, 0.0]) is None
    assert seeds_needed([0.001, -0.1, 0.1], most=1000) is None
