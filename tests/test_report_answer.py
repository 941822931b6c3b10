"""The three sentences: what is best, what shares it, and whether training beat the base model. Figures by hand."""

import json
from pathlib import Path

import pytest

import report_records
from ballast.compare.statistics import holm, over_seeds, paired_p
from ballast.records.summary import Summary
from ballast.report.figures import Metric
from ballast.report.sections.answer import answer
from ballast.report.source import Source

BEFORE, AFTER = "before_rl", "after_rl"
ACCURACY = Metric("test", "accuracy", 1)
NLL = Metric("test", "nll", -1)
SEEDS = [1, 2, 3]
FIRST = {"sft": [0.50, 0.52, 0.54], "dft": [0.70, 0.73, 0.73], "eksft": [0.60, 0.60, 0.63]}
ONE_SEED = "not tested, as there is only one seed"


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


def source(before, after=None, base=0.40, base_after=None, metric=ACCURACY, baseline="sft"):
    """A comparison with these values per seed; differences are t intervals over seeds."""
    stages = {BEFORE: before, AFTER: after or {}}
    rows = []
    if base is not None:
        rows.append({"label": "base", "kind": "start", "values": {BEFORE: [base], AFTER: base_after}})
    rows += [
        {"label": label, "kind": "method", "values": {stage: found.get(label) for stage, found in stages.items()}}
        for label in before
    ]
    for row in rows:
        row |= {"objective": None, "tuning": [], "rate": None, "edge": None, "stages": {}}
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
                "to_start": difference(values, [base] * len(values)) if base is not None else None,
            }
            row["stages"][stage] = {
                "runs": [],
                "budget": {"steps": [], "tokens": [], "seconds": []},
                "seeds": SEEDS[: len(values)],
                "tasks": {"test": {metric.name: result}},
            }
    for stage in stages:
        results = [row["stages"][stage]["tasks"]["test"][metric.name] for row in rows if stage in row["stages"]]
        family = [one["to_baseline"] for one in results if one["to_baseline"]]
        for one, p in zip(family, holm([one["p"] for one in family]), strict=True):
            one["p_holm"] = p
    better = {1: "higher", -1: "lower"}[metric.sign]
    task = {"name": "test", "kind": "generate", "n": 9, "settings": {}, "metrics": {metric.name: {"better": better}}}
    summary = {
        "schema": 1,
        "level": 0.95,
        "baseline": baseline,
        "choose_by": None,
        "rows": rows,
        "tasks": [task],
        "complete": True,
        "missing": [],
        "failed": [],
        "seeds": {"report": SEEDS, "tuning": []},
        "provenance": {"versions": [], "commits": [], "devices": []},
    }
    return Source((Path("lab"),), Summary.model_validate_json(json.dumps(summary)), ())


def sentences(*values, metric=ACCURACY, **options):
    return answer(source(*values, metric=metric, **options), metric)


def before(summary, label, **changes):
    """Change the result of a label before RL, in a summary as plain data."""
    [row] = [row for row in summary["rows"] if row["label"] == label]
    row["stages"][BEFORE]["tasks"]["test"]["accuracy"] |= changes


def test_the_best_comes_with_its_difference():
    # 0.20, 0.21, 0.19: t = 4.303, standard error 0.01 / sqrt(3).
    first, second, _ = sentences(FIRST)
    assert first == (
        "After fine-tuning, dft has the best test accuracy with 0.720 (0.677 to 0.763; base model: 0.400), "
        "0.200 (0.175 to 0.225) higher than sft over 3 seeds, Holm-adjusted p = 0.002: beyond noise."
    )
    assert second == ("Reinforcement learning was not run, so which objective is the best start for it is unknown.")


def test_where_less_is_better_the_least_is_best_and_lower():
    first, _, _ = sentences({"sft": [0.50, 0.52, 0.54], "dft": [0.40, 0.43, 0.43]}, base=0.90, metric=NLL)
    assert "dft has the best test nll with 0.420 (0.377 to 0.463; base model: 0.900), " in first
    assert "0.100 (0.075 to 0.125) lower than sft over 3 seeds" in first


def test_a_baseline_that_is_best_is_set_against_the_next():
    first, _, _ = sentences({"sft": [0.70, 0.73, 0.73], "dft": [0.50, 0.52, 0.54]})
    assert "sft has the best test accuracy with 0.720" in first
    assert first.endswith(
        "0.200 (0.175 to 0.225) higher than the runner-up dft over 3 seeds, Holm-adjusted p < 0.001: beyond noise."
    )
    less, _, _ = sentences({"sft": [0.40, 0.43, 0.43], "dft": [0.50, 0.52, 0.54]}, base=0.9, metric=NLL)
    assert "0.100 (0.075 to 0.125) lower than the runner-up dft" in less


def test_two_that_share_the_best_mean_are_both_named():
    shared = {"sft": [0.50, 0.52, 0.54], "dft": [0.70, 0.73, 0.73], "eksft": [0.50, 0.80, 0.86]}
    first, _, _ = sentences(shared)
    assert first == (
        "After fine-tuning, dft and eksft share the best test accuracy with 0.720 each (base model: 0.400), "
        "0.200 higher than sft: dft beyond noise; eksft within noise, and 0.320 higher than the base model: "
        "dft beyond noise; eksft within noise."
    )
    alike, _, _ = sentences({**shared, "eksft": [0.71, 0.72, 0.73]})
    assert alike.endswith("with 0.720 each (base model: 0.400), 0.200 higher than sft: beyond noise.")
    baseline, _, _ = sentences({"sft": [0.70, 0.73, 0.73], "dft": [0.73, 0.70, 0.73]})
    assert baseline.endswith("sft and dft share the best test accuracy with 0.720 each (base model: 0.400).")


def test_means_that_differ_by_rounding_alone_are_shared():
    up, down = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    assert over_seeds(up).value != over_seeds(down).value
    first, _, _ = sentences({"sft": [0.1, 0.1, 0.1], "dft": up, "eksft": down}, base=0.0)
    assert "dft and eksft share the best" in first
    near, _, _ = sentences({"sft": [0.1, 0.1, 0.1], "dft": [0.7, 0.7, 0.8], "eksft": [0.8, 0.7, 0.7001]})
    assert "eksft has the best" in near


def test_ties_without_a_baseline_or_a_pair_for_each_claim_no_test():
    shared = {"dft": [0.7, 0.7, 0.8], "eksft": [0.8, 0.7, 0.7], "ift": [0.6, 0.6, 0.6]}
    assert "ahead of ift with 0.600; sft was not measured, so there is no difference to test" in sentences(shared)[0]
    unpaired = report_records.changed(
        source(shared, base=0.72), lambda summary: before(summary, "eksft", to_start=None)
    )
    assert "than the base model" in sentences(shared, base=0.72)[0]
    assert "than the base model" not in answer(unpaired, ACCURACY)[0]


def test_a_base_model_that_is_better_than_all_comes_first():
    first, _, _ = sentences(FIRST, base=0.80)
    # 0.72 - 0.80: 0.10, 0.07, 0.07 less.
    assert first == (
        "After fine-tuning, no objective beats the base model, which reaches 0.800 in test accuracy; "
        "dft comes next with 0.720 (0.677 to 0.763), 0.080 (0.037 to 0.123) lower over 3 seeds, "
        "Holm-adjusted p = 0.015: beyond noise, and 0.200 (0.175 to 0.225) higher than sft over 3 seeds, "
        "Holm-adjusted p = 0.002: beyond noise."
    )


def test_rl_from_the_base_model_is_what_has_to_be_beaten():
    after = {"sft": [0.80, 0.81, 0.79], "dft": [0.80, 0.85, 0.84]}
    before = {label: FIRST[label] for label in after}
    # dft 0.83, RL from the base model 0.86: 0.05, 0.02, 0.02 less, seed by seed; Holm over sft and dft.
    ahead = sentences(before, after, base_after=[0.85, 0.87, 0.86])[1]
    assert ahead == (
        "After reinforcement learning, no objective beats RL from the base model, which reaches "
        "0.860 (0.835 to 0.885) in test accuracy; dft comes next with 0.830 (0.764 to 0.896), "
        "0.030 (−0.013 to +0.073) lower over 3 seeds, Holm-adjusted p = 0.095: within noise, and "
        "0.030 (−0.036 to +0.096) higher than sft over 3 seeds, Holm-adjusted p = 0.188: within noise."
    )
    near = sentences(before, after, base_after=[0.80, 0.84, 0.82])[1]
    assert "dft has the best test accuracy with 0.830 (0.764 to 0.896; RL from the base model: 0.820), " in near
    assert near.endswith(
        ", and 0.010 (−0.015 to +0.035) higher than RL from the base model over 3 seeds, "
        "Holm-adjusted p = 0.367: within noise."
    )
    beaten = sentences(before, after, base_after=[0.50, 0.56, 0.55])[1]
    assert "RL from the base model: 0.537" in beaten
    assert "than RL from the base model" not in beaten, "beyond noise: the bracket says enough"


def test_one_objective_is_compared_with_the_base_model_alone():
    first, second, _ = sentences(
        {"sft": [0.50, 0.52, 0.54]}, {"sft": [0.70, 0.72, 0.74]}, base_after=[0.70, 0.71, 0.72]
    )
    assert first == (
        "After fine-tuning, sft reaches 0.520 (0.470 to 0.570; base model: 0.400) in test accuracy; "
        "there is no other objective to compare it with."
    )
    assert second.startswith(
        "After reinforcement learning, sft reaches 0.720 (0.670 to 0.770; RL from the base model: 0.710) in test "
        "accuracy, 0.010 (−0.015 to +0.035) higher than RL from the base model over 3 seeds"
    )


def test_one_seed_is_said_once():
    first, second, _ = sentences({"sft": [0.5], "dft": [0.7]}, {"sft": [0.5], "dft": [0.7]}, base_after=[0.9])
    assert first.endswith(f"0.200 higher than sft: {ONE_SEED}.")
    assert second.endswith(f"dft comes next with 0.700, 0.200 lower, and 0.200 higher than sft: {ONE_SEED}.")
    assert second.count(ONE_SEED) == 1


def test_without_a_base_model_or_a_baseline_nothing_is_made_up():
    assert "base model" not in sentences(FIRST, base=None)[0]
    without = sentences({"dft": [0.7, 0.73, 0.73], "eksft": [0.6, 0.6, 0.63]})[0]
    assert without.endswith("ahead of eksft with 0.610; sft was not measured, so there is no difference to test.")


def test_the_same_difference_on_every_seed_has_no_test():
    first = sentences({"sft": [0.5, 0.5, 0.5], "dft": [0.7, 0.7, 0.7]})[0]
    assert first.endswith(
        "0.200 higher than sft over 3 seeds: not tested, as the difference is the same on every seed."
    )


def test_equal_to_the_baseline_is_no_better():
    first = sentences({"sft": [0.5, 0.6, 0.7], "dft": [0.5, 0.6, 0.7], "eksft": [0.1, 0.2, 0.3]})[0]
    assert "sft and dft share the best" in first
    for level in (0.5, 0.4, 0.7):
        alone = sentences({"dft": [level] * 3}, baseline="dft", base=level)[0]
        assert "dft reaches" in alone, "as good as the base model, whatever the rounding"
        assert "no better than the base model over 3 seeds, Holm-adjusted p = 1.000: within noise" in alone


def test_what_other_items_could_undo_is_said_of_the_base_model_too():
    made = source(FIRST)
    to_base = made.summary.rows[2].stages[BEFORE].tasks["test"]["accuracy"].to_start.plain()
    to_base["over_both"] = {**to_base["over_seeds"], "low": -0.01, "high": 0.65}
    made = report_records.changed(made, lambda summary: before(summary, "dft", to_start=to_base))
    assert answer(made, ACCURACY)[0].endswith(
        "beyond noise, and 0.320 (−0.010 to +0.650) higher than the base model over 3 seeds, Holm-adjusted p = 0.003: "
        "beyond noise across seeds, but not across items."
    )


def test_the_fifth_gap_is_the_last_that_is_named():
    made = source({"sft": [0.5], "dft": [0.7]})
    assert answer(made, ACCURACY)[2] == (
        "Not measured: results after reinforcement learning, other seeds, other learning rates, "
        "drift from the base model and forgetting; more below."
    )


def test_small_shares_have_three_decimals():
    first = sentences({"sft": [0.0004], "dft": [0.0008]}, base=0.0002)[0]
    assert "dft has the best test accuracy with 0.001 (base model: 0.000), 0.0004 higher than sft" in first


def test_nothing_measured_is_said():
    assert sentences({})[0] == "After fine-tuning, nothing has been measured yet."
    assert answer(source(FIRST), None)[0].startswith("After fine-tuning, nothing")


def test_shares_differ_by_no_more_than_one():
    wild = source({"sft": [0.0, 0.5, 0.1], "dft": [0.9, 0.5, 0.9]})
    assert wild.summary.rows[2].stages[BEFORE].tasks["test"]["accuracy"].to_baseline.over_seeds.high > 1
    assert "(−0.659 to +1.000) higher" in answer(wild, ACCURACY)[0]


@pytest.mark.parametrize(("metric", "unbounded"), [(ACCURACY, False), (NLL, True)])
def test_only_shares_are_cut(metric, unbounded):
    values = {"sft": [0.0, 0.5, 0.1], "dft": [0.9, 0.5, 0.9]}
    first = answer(source(values, metric=metric, base=None), metric)[0]
    assert ("1.792" in first) == unbounded
