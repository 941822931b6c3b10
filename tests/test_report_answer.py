"""The three sentences: who is best, who shares it, and whether training beat what it started from. Figures by hand."""

from pathlib import Path

import pytest

from ballast.compare.statistics import holm, over_seeds, paired_p
from ballast.report.figures import Metric
from ballast.report.sections.answer import answer
from ballast.report.source import Source

BEFORE, AFTER = "before_rl", "after_rl"
ACCURACY = Metric("test", "accuracy", 1)
NLL = Metric("test", "nll", -1)
SEEDS = [1, 2, 3]
FIRST = {"sft": [0.50, 0.52, 0.54], "dft": [0.70, 0.73, 0.73], "eksft": [0.60, 0.60, 0.63]}
ONE_SEED = "one seed, so whether another would say the same is not known"


def difference(mine, theirs):
    values = [one - other for one, other in zip(mine, theirs, strict=True)]
    return {
        "seeds": SEEDS[: len(values)],
        "values": values,
        "over_seeds": over_seeds(values).to_dict(),
        "over_items": None,
        "over_both": None,
        "p": paired_p(values),
    }


def source(before, after=None, start=0.40, start_after=None, metric=ACCURACY, baseline="sft"):
    """A comparison with these values per seed; differences are t intervals over seeds."""
    stages = {BEFORE: before, AFTER: after or {}}
    rows = []
    if start is not None:
        rows.append({"label": "base", "kind": "start", "values": {BEFORE: [start], AFTER: start_after}})
    rows += [
        {"label": label, "kind": "method", "values": {stage: found.get(label) for stage, found in stages.items()}}
        for label in before
    ]
    for row in rows:
        row |= {"tuning": [], "rate": None, "edge": None, "stages": {}}
        for stage, values in row.pop("values").items():
            if values is None:
                continue
            theirs = stages[stage].get(baseline)
            compared = row["kind"] == "method" and row["label"] != baseline and theirs is not None
            result = {
                "values": values,
                "over_seeds": over_seeds(values).to_dict(),
                "over_items": None,
                "over_both": None,
                "to_baseline": difference(values, theirs[: len(values)]) if compared else None,
                "to_start": difference(values, [start] * len(values)) if start is not None else None,
            }
            row["stages"][stage] = {
                "runs": [],
                "seeds": SEEDS[: len(values)],
                "tasks": {"test": {metric.name: result}},
            }
    for stage in stages:
        results = [row["stages"][stage]["tasks"]["test"][metric.name] for row in rows if stage in row["stages"]]
        family = [one["to_baseline"] for one in results if one["to_baseline"]]
        for one, p in zip(family, holm([one["p"] for one in family]), strict=True):
            one["p_holm"] = p
    better = {1: "higher", -1: "lower"}[metric.sign]
    tasks = [{"name": "test", "kind": "generate", "n": 9, "metrics": {metric.name: {"better": better}}}]
    summary = {
        "baseline": baseline,
        "rows": rows,
        "tasks": tasks,
        "missing": [],
        "seeds": {"report": SEEDS, "tuning": []},
    }
    return Source((Path("lab"),), summary, ())


def told(*values, metric=ACCURACY, **options):
    return answer(source(*values, metric=metric, **options), metric)


def test_the_best_with_its_difference():
    # 0.20, 0.21, 0.19: t = 4.303, standard error 0.01 / sqrt(3).
    first, second, _ = told(FIRST)
    assert first == (
        "After fine-tuning, dft is best by accuracy on test with 0.720 (0.677 to 0.763; the start: 0.400), "
        "0.200 (0.175 to 0.225) higher than sft over 3 seeds, Holm-adjusted p = 0.002: beyond noise."
    )
    assert second == (
        "Reinforcement learning was not run, so which objective leaves the best start for it is not known."
    )


def test_where_less_is_better_the_least_is_best_and_lower():
    first, _, _ = told({"sft": [0.50, 0.52, 0.54], "dft": [0.40, 0.43, 0.43]}, start=0.90, metric=NLL)
    assert "dft is best by nll on test with 0.420 (0.377 to 0.463; the start: 0.900), " in first
    assert "0.100 (0.075 to 0.125) lower than sft over 3 seeds" in first


def test_a_baseline_that_is_best_is_set_against_the_next():
    first, _, _ = told({"sft": [0.70, 0.73, 0.73], "dft": [0.50, 0.52, 0.54]})
    assert "sft is best by accuracy on test with 0.720" in first
    assert first.endswith(
        "0.200 (0.175 to 0.225) higher than the next, dft over 3 seeds, Holm-adjusted p < 0.001: beyond noise."
    )
    less, _, _ = told({"sft": [0.40, 0.43, 0.43], "dft": [0.50, 0.52, 0.54]}, start=0.9, metric=NLL)
    assert "0.100 (0.075 to 0.125) lower than the next, dft" in less


def test_two_that_share_the_best_mean_are_both_named():
    shared = {"sft": [0.50, 0.52, 0.54], "dft": [0.70, 0.73, 0.73], "eksft": [0.50, 0.80, 0.86]}
    first, _, _ = told(shared)
    assert first == (
        "After fine-tuning, dft and eksft are best by accuracy on test with 0.720 each (the start: 0.400), "
        "0.200 higher than sft: dft beyond noise; eksft within noise, and 0.320 higher than the start: "
        "dft beyond noise; eksft within noise."
    )
    alike, _, _ = told({**shared, "eksft": [0.71, 0.72, 0.73]})
    assert alike.endswith("with 0.720 each (the start: 0.400), 0.200 higher than sft: beyond noise.")
    baseline, _, _ = told({"sft": [0.70, 0.73, 0.73], "dft": [0.73, 0.70, 0.73]})
    assert baseline.endswith("sft and dft are best by accuracy on test with 0.720 each (the start: 0.400).")


def test_means_that_differ_by_rounding_alone_are_shared():
    up, down = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    assert over_seeds(up).value != over_seeds(down).value
    first, _, _ = told({"sft": [0.1, 0.1, 0.1], "dft": up, "eksft": down}, start=0.0)
    assert "dft and eksft are best" in first
    near, _, _ = told({"sft": [0.1, 0.1, 0.1], "dft": [0.7, 0.7, 0.8], "eksft": [0.8, 0.7, 0.7001]})
    assert "eksft is best" in near


def test_ties_without_a_baseline_or_a_pair_for_each_claim_no_test():
    shared = {"dft": [0.7, 0.7, 0.8], "eksft": [0.8, 0.7, 0.7], "ift": [0.6, 0.6, 0.6]}
    assert "before ift with 0.600; sft was not measured" in told(shared)[0]
    made = source(shared, start=0.72)
    [row] = [row for row in made.summary["rows"] if row["label"] == "eksft"]
    row["stages"][BEFORE]["tasks"]["test"]["accuracy"]["to_start"] = None
    assert "than the start" in told(shared, start=0.72)[0]
    assert "than the start" not in answer(made, ACCURACY)[0]


def test_a_start_that_is_better_than_all_is_said_first():
    first, _, _ = told(FIRST, start=0.80)
    # 0.72 - 0.80: 0.10, 0.07, 0.07 less.
    assert first == (
        "After fine-tuning, no objective is ahead of the start, which reaches 0.800 in accuracy on test; "
        "dft comes next with 0.720 (0.677 to 0.763), 0.080 (0.037 to 0.123) lower over 3 seeds, "
        "Holm-adjusted p = 0.015: beyond noise, and 0.200 (0.175 to 0.225) higher than sft over 3 seeds, "
        "Holm-adjusted p = 0.002: beyond noise."
    )


def test_rl_from_the_start_is_what_has_to_be_beaten():
    after = {"sft": [0.80, 0.81, 0.79], "dft": [0.80, 0.85, 0.84]}
    before = {label: FIRST[label] for label in after}
    # dft 0.83, RL from the start 0.86: 0.05, 0.02, 0.02 less, seed by seed; Holm over sft and dft.
    ahead = told(before, after, start_after=[0.85, 0.87, 0.86])[1]
    assert ahead == (
        "After reinforcement learning, no objective is ahead of RL from the start itself, which reaches "
        "0.860 (0.835 to 0.885) in accuracy on test; dft comes next with 0.830 (0.764 to 0.896), "
        "0.030 (−0.013 to +0.073) lower over 3 seeds, Holm-adjusted p = 0.095: within noise, and "
        "0.030 (−0.036 to +0.096) higher than sft over 3 seeds, Holm-adjusted p = 0.188: within noise."
    )
    near = told(before, after, start_after=[0.80, 0.84, 0.82])[1]
    assert "dft is best by accuracy on test with 0.830 (0.764 to 0.896; RL from the start itself: 0.820), " in near
    assert near.endswith(
        ", and 0.010 (−0.015 to +0.035) higher than RL from the start itself over 3 seeds, "
        "Holm-adjusted p = 0.367: within noise."
    )
    beaten = told(before, after, start_after=[0.50, 0.56, 0.55])[1]
    assert "RL from the start itself: 0.537" in beaten
    assert "than RL from the start" not in beaten, "beyond noise: the bracket says enough"


def test_one_objective_is_set_against_the_start_alone():
    first, second, _ = told({"sft": [0.50, 0.52, 0.54]}, {"sft": [0.70, 0.72, 0.74]}, start_after=[0.70, 0.71, 0.72])
    assert first == (
        "After fine-tuning, sft reaches 0.520 (0.470 to 0.570; the start: 0.400) in accuracy on test; "
        "there is no other objective here to compare it with."
    )
    assert second.startswith(
        "After reinforcement learning, sft reaches 0.720 (0.670 to 0.770; RL from the start itself: 0.710) in accuracy "
        "on test, 0.010 (−0.015 to +0.035) higher than RL from the start itself over 3 seeds"
    )


def test_one_seed_is_said_once():
    first, second, _ = told({"sft": [0.5], "dft": [0.7]}, {"sft": [0.5], "dft": [0.7]}, start_after=[0.9])
    assert first.endswith(f"0.200 higher than sft: {ONE_SEED}.")
    assert second.endswith(f"dft comes next with 0.700, 0.200 lower, and 0.200 higher than sft: {ONE_SEED}.")
    assert second.count(ONE_SEED) == 1


def test_without_a_start_or_a_baseline_nothing_is_made_up():
    assert "the start" not in told(FIRST, start=None)[0]
    without = told({"dft": [0.7, 0.73, 0.73], "eksft": [0.6, 0.6, 0.63]})[0]
    assert without.endswith("before eksft with 0.610; sft was not measured, so no difference to it is tested.")


def test_the_same_difference_on_every_seed_has_no_test():
    first = told({"sft": [0.5, 0.5, 0.5], "dft": [0.7, 0.7, 0.7]})[0]
    assert first.endswith(
        "0.200 higher than sft over 3 seeds: "
        "the same difference on every seed, so there is no spread to test it against."
    )


def test_equal_to_the_baseline_is_no_better():
    first = told({"sft": [0.5, 0.6, 0.7], "dft": [0.5, 0.6, 0.7], "eksft": [0.1, 0.2, 0.3]})[0]
    assert "sft and dft are best" in first
    for level in (0.5, 0.4, 0.7):
        start = told({"dft": [level] * 3}, baseline="dft", start=level)[0]
        assert "dft reaches" in start, "as good as the start, whatever the rounding"
        assert "no better than the start over 3 seeds, Holm-adjusted p = 1.000: within noise" in start


def test_what_other_items_could_undo_is_said_of_the_start_too():
    made = source(FIRST)
    [row] = [row for row in made.summary["rows"] if row["label"] == "dft"]
    wide = {"value": 0.32, "low": -0.01, "high": 0.65, "n": 3}
    row["stages"][BEFORE]["tasks"]["test"]["accuracy"]["to_start"]["over_both"] = wide
    assert answer(made, ACCURACY)[0].endswith(
        "beyond noise, and 0.320 (−0.010 to +0.650) higher than the start over 3 seeds, Holm-adjusted p = 0.003: "
        "beyond the noise of seeds on these items, but other items could undo it."
    )


def test_the_fifth_gap_is_the_last_that_is_named():
    made = source({"sft": [0.5], "dft": [0.7]})
    assert answer(made, ACCURACY)[2] == (
        "Not measured: the state after reinforcement learning, other seeds, other learning rates, drift from the start "
        "and forgetting; more below."
    )


def test_small_shares_have_three_decimals():
    first = told({"sft": [0.0004], "dft": [0.0008]}, start=0.0002)[0]
    assert "dft is best by accuracy on test with 0.001 (the start: 0.000), 0.0004 higher than sft" in first


def test_nothing_measured_is_said():
    assert told({})[0] == "After fine-tuning nothing has been measured yet, so there is no answer."
    assert answer(source(FIRST), None)[0].startswith("After fine-tuning nothing")


def test_shares_differ_by_no_more_than_one():
    wild = source({"sft": [0.0, 0.5, 0.1], "dft": [0.9, 0.5, 0.9]})
    [row] = [row for row in wild.summary["rows"] if row["label"] == "dft"]
    estimate = row["stages"][BEFORE]["tasks"]["test"]["accuracy"]["to_baseline"]["over_seeds"]
    assert estimate["high"] > 1
    assert "(−0.659 to +1.000) higher" in answer(wild, ACCURACY)[0]


@pytest.mark.parametrize(("metric", "unbounded"), [(ACCURACY, False), (NLL, True)])
def test_only_shares_are_cut(metric, unbounded):
    values = {"sft": [0.0, 0.5, 0.1], "dft": [0.9, 0.5, 0.9]}
    first = answer(source(values, metric=metric, start=None), metric)[0]
    assert ("1.792" in first) == unbounded
