"""What to do, situation by situation: what to use, against whom, and what stops a conclusion. Figures by hand."""

import json
import re

import pytest

from ballast.compare.figures import Metric
from ballast.compare.sentences import cautions, sentences
from ballast.compare.statistics import holm, over_seeds, paired_p
from ballast.compare.verdict import decide, verdicts
from ballast.records.summary import Provenance, RunWarning, Summary

BEFORE, AFTER = "before_rl", "after_rl"
ACCURACY = Metric("test", "accuracy", 1)
NLL = Metric("test", "nll", -1)
SEEDS = [1, 2, 3]
FIRST = {"sft": [0.50, 0.52, 0.54], "dft": [0.70, 0.73, 0.73], "eksft": [0.60, 0.60, 0.63]}


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


def summary(
    before, after=None, base=0.40, base_after=None, metric=ACCURACY, baseline="sft", cut=None, random=None, planned=None
):
    """A comparison with these values per seed; differences are t intervals over seeds."""
    stages = {BEFORE: before, AFTER: after or {}}
    rows = []
    if base is not None:
        rows.append({"label": "base", "kind": "start", "values": {BEFORE: [base], AFTER: base_after}})
    rows += [
        {"label": label, "kind": "method", "values": {stage: found.get(label) for stage, found in stages.items()}}
        for label in before
    ]
    rows += [{"label": "random", "kind": "random", "values": {BEFORE: random}}] if random else []
    rows += [{"label": label, "kind": "method", "values": {}} for label in planned or ()]
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
                "answers": {"test": {"total": 200, "cut_off": (cut or {}).get(row["label"], 0)}},
            }
    for stage in stages:
        results = [row["stages"][stage]["tasks"]["test"][metric.name] for row in rows if stage in row["stages"]]
        family = [one["to_baseline"] for one in results if one["to_baseline"]]
        for one, p in zip(family, holm([one["p"] for one in family]), strict=True):
            one["p_holm"] = p
    better = {1: "higher", -1: "lower"}[metric.sign]
    task = {
        "name": "test",
        "kind": "generate",
        "n": 9,
        "settings": {"max_new_tokens": 64},
        "metrics": {metric.name: {"better": better}},
    }
    made = {
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
    return Summary.model_validate_json(json.dumps(made))


def found(*values, stage=BEFORE, metric=ACCURACY, **options):
    return decide(summary(*values, metric=metric, **options), stage, metric)


def said(*values, stage=BEFORE, metric=ACCURACY, **options):
    made = summary(*values, metric=metric, **options)
    return sentences(decide(made, stage, metric), made)


ZEROS, ONES = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
LOW, MIDDLE, HIGH = [0.50, 0.52, 0.54], [0.60, 0.60, 0.63], [0.70, 0.73, 0.73]
UP = [0.1, 0.2, 0.3]
WILD = [0.30, 0.90, 0.99]
RL = {"sft": [0.80, 0.81, 0.79], "dft": [0.90, 0.92, 0.90]}

# name: (values, options, kind, winner, runner-up, a piece of every reason)
SITUATIONS = {
    "a winner over the baseline": (FIRST, {}, "use", "dft", "eksft", []),
    "a winner, the baseline next": ({"sft": LOW, "dft": HIGH}, {}, "use", "dft", "sft", []),
    "less is better": ({"sft": HIGH, "dft": LOW}, {"metric": NLL, "base": 0.9}, "use", "dft", "sft", []),
    "less is better, and the baseline is best": (
        {"sft": LOW, "dft": HIGH},
        {"metric": NLL, "base": 0.9},
        "baseline",
        "sft",
        "dft",
        [],
    ),
    "the baseline is best": ({"sft": HIGH, "dft": LOW}, {}, "baseline", "sft", "dft", []),
    "within noise": ({"sft": [0.5, 0.6, 0.7], "dft": [0.7, 0.6, 0.6]}, {}, "same", "sft", "dft", []),
    "the best mean is noise, the next is not": (
        {"sft": LOW, "dft": MIDDLE, "eksft": WILD},
        {},
        "use",
        "dft",
        "eksft",
        [],
    ),
    "two winners share the mean": (
        {"sft": LOW, "dft": HIGH, "eksft": [0.71, 0.72, 0.73]},
        {},
        "use",
        "dft",
        "eksft",
        [],
    ),
    "all rows equal": ({"sft": LOW, "dft": LOW}, {}, "same", "sft", "dft", []),
    "equal but for rounding": (
        {"sft": [0.1, 0.2, 0.3], "dft": [0.3, 0.2, 0.1]},
        {"base": 0.0},
        "same",
        "sft",
        "dft",
        [],
    ),
    "nobody solved anything": (
        {"sft": ZEROS, "dft": ZEROS},
        {"base": 0.0},
        "open",
        None,
        None,
        ["0 of 600 answers are right"],
    ),
    "nobody did after training, the base model did": (
        {"sft": ZEROS, "dft": ZEROS},
        {"base": 0.4},
        "base",
        None,
        "sft",
        [],
    ),
    "everything solved": ({"sft": ONES, "dft": ONES}, {}, "open", None, None, ["every answer of every objective"]),
    "zero loss is no failure": ({"sft": ZEROS, "dft": ZEROS}, {"metric": NLL, "base": 1.0}, "same", "sft", "dft", []),
    "one seed": ({"sft": [0.5], "dft": [0.7]}, {}, "open", None, None, ["one seed cannot tell"]),
    "the same difference on every seed": (
        {"sft": [0.5] * 3, "dft": [0.7] * 3},
        {},
        "open",
        None,
        None,
        ["the same on every seed"],
    ),
    "the baseline was not measured": (
        {"dft": HIGH, "eksft": LOW},
        {"planned": ["sft"]},
        "open",
        None,
        None,
        ["sft, which differences are taken to"],
    ),
    "no seed is shared": ({"sft": LOW, "dft": []}, {}, "open", None, None, ["only sft was measured"]),
    "only the baseline so far": ({"sft": LOW}, {"planned": ["dft"]}, "open", None, None, ["only sft was measured"]),
    "the base model is better": (FIRST, {"base": 0.8}, "base", None, "dft", []),
    "one objective, better than the base model": ({"sft": LOW}, {}, "use", "sft", None, []),
    "one objective, no better": ({"sft": [0.3, 0.6, 0.5]}, {}, "same", None, "sft", []),
    "one objective, worse": ({"sft": LOW}, {"base": 0.8}, "base", None, "sft", []),
    "one objective, no base model": ({"sft": LOW}, {"base": None}, "open", None, None, ["set evaluation.base: true"]),
    "no base model": (FIRST, {"base": None}, "use", "dft", "eksft", []),
    "the winner is cut off": (
        FIRST,
        {"cut": {"dft": 40}},
        "open",
        None,
        None,
        ["20% .* of dft were cut off.*max_new_tokens .*64"],
    ),
    "the baseline is cut off": (FIRST, {"cut": {"sft": 40}}, "open", None, None, ["20% of the answers of sft"]),
    "one that could lead is cut off": (
        FIRST,
        {"cut": {"eksft": 60}},
        "open",
        None,
        None,
        ["30% .* of eksft"],
    ),
    "one that could not is cut off": (
        {**FIRST, "ift": [0.1, 0.1, 0.12]},
        {"cut": {"ift": 60}},
        "use",
        "dft",
        "eksft",
        [],
    ),
    "a tenth is cut off": (FIRST, {"cut": {"dft": 20}}, "use", "dft", "eksft", []),
    "the base model is cut off": (FIRST, {"cut": {"base": 190}}, "use", "dft", "eksft", []),
    "two reasons": (
        {"sft": [0.5], "dft": [0.7]},
        {"cut": {"dft": 40}},
        "open",
        None,
        None,
        ["cut off", "one seed"],
    ),
    "random weights do as well": (FIRST, {"random": [0.72, 0.72, 0.72]}, "use", "dft", "eksft", []),
    "nothing measured": ({}, {}, "none", None, None, []),
    "RL was not run": (FIRST, {"stage": AFTER}, "none", None, None, []),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_to_do(name):
    values, options, kind, winner, runner_up, reasons = SITUATIONS[name]
    values = {label: one for label, one in values.items() if one}
    options = {"planned": [label for label, one in SITUATIONS[name][0].items() if not one], **options}
    one = found(values, **options)
    assert (one.kind, one.winner, one.runner_up) == (kind, winner, runner_up)
    assert len(one.reasons) == len(reasons)
    assert all(re.search(piece, reason) for piece, reason in zip(reasons, one.reasons, strict=True)), one.reasons
    assert said(values, **options)
    assert one.plain() == type(one).model_validate_json(json.dumps(one.plain())).plain()


@pytest.mark.parametrize(
    ("after", "base_after", "kind", "winner"),
    [
        (RL, [0.50, 0.56, 0.55], "use", "dft"),
        (RL, [0.95, 0.97, 0.96], "base", None),
        ({"sft": RL["sft"]}, [0.5, 0.5, 0.5], "open", None),
        ({"sft": [0.8], "dft": [0.9]}, [0.5], "open", None),
        (RL, None, "use", "dft"),
    ],
)
def test_after_rl_it_is_rl_from_the_base_model_that_has_to_be_beaten(after, base_after, kind, winner):
    before = {label: FIRST[label] for label in RL}
    one = found(before, after, base_after=base_after, stage=AFTER)
    assert (one.kind, one.winner) == (kind, winner)


def test_the_winner_comes_with_its_difference_and_with_its_lead():
    # 0.20, 0.21, 0.19 over sft and 0.10, 0.13, 0.10 over eksft: t = 4.303.
    assert said(FIRST) == (
        "After fine-tuning, use dft: +0.200 (0.175 to 0.225) test accuracy over sft, 3 seeds; over the runner-up eksft "
        "+0.110 (0.067 to 0.153): beyond noise (adjusted p = 0.008). "
        "Means: dft 0.720 (0.677 to 0.763), sft 0.520 (0.470 to 0.570), eksft 0.610 (0.567 to 0.653), base model 0.400."
    )


def test_no_difference_says_what_to_use_first():
    text = said({"sft": [0.5, 0.6, 0.7], "dft": [0.7, 0.6, 0.6]})
    assert text.startswith(
        "After fine-tuning, no objective differs from sft in test accuracy: use sft. The best of the others, dft, "
        "differs by +0.033 (−0.346 to +0.413) over 3 seeds: within noise (adjusted p = 0.742)."
    )
    assert "If the difference is what was seen, 167 seeds would show it with a chance of 80%: 164 more" in text
    assert "If the difference" not in said({"sft": LOW, "dft": LOW})
    assert "If the difference" not in said(FIRST)
    assert "use sft. The best of the others, dft, is equal to it on each of 3 seeds" in said({"sft": LOW, "dft": LOW})
    assert said({"sft": HIGH, "dft": LOW}).startswith(
        "After fine-tuning, no objective is better than sft in test accuracy: use sft. The best of the others, dft, "
        "differs by −0.200 (−0.225 to −0.175)"
    )


def test_where_less_is_better_it_is_said():
    text = said({"sft": HIGH, "dft": LOW}, metric=NLL, base=0.9)
    assert "use dft: −0.200 (−0.225 to −0.175) test nll over sft, where less is better, 3 seeds" in text


def test_what_stops_a_conclusion_is_the_first_sentence():
    text = said({"sft": ZEROS, "dft": ZEROS}, base=0.0)
    assert text.startswith("After fine-tuning, nothing can be concluded from test accuracy: 0 of 600 answers are right")
    assert "take easier rows." in text
    for word in ("best", "won", "use "):
        assert word not in text
    cut = said(FIRST, cut={"dft": 40})
    assert "20% of the answers of dft were cut off before they ended; raise max_new_tokens of task 'test' (64)" in cut


def test_a_base_model_that_is_ahead_is_kept():
    assert said(FIRST, base=0.8).startswith(
        "After fine-tuning, keep the base model: no objective beats the base model in test accuracy. The best of them, "
        "dft, differs by −0.080 (−0.123 to −0.037) over 3 seeds: beyond noise (adjusted p = 0.015)."
    )
    after = said({label: FIRST[label] for label in RL}, RL, base_after=[0.95, 0.97, 0.96], stage=AFTER)
    assert "leave fine-tuning out: no objective beats RL from the base model" in after


@pytest.mark.parametrize(
    ("options", "caution"),
    [
        ({"random": [0.72] * 3}, "random weights do as well"),
        ({"cut": {"base": 190}}, "95% of the base model's answers were cut off"),
        ({"planned": ["ift"]}, "ift was not measured here"),
        ({"base": 0.719}, "dft itself is no better than the base model beyond noise"),
    ],
)
def test_what_limits_a_conclusion_stands_beside_it(options, caution):
    assert f"But note: {caution}" in said(FIRST, **options)


@pytest.mark.parametrize("low", [0.2, -0.01, None])
def test_a_gain_over_the_base_that_is_the_same_on_every_seed_is_judged_over_items(low):
    plain = summary({"sft": LOW, "dft": [0.73] * 3}).plain()
    for row in plain["rows"][2:]:
        to_start = row["stages"][BEFORE]["tasks"]["test"]["accuracy"]["to_start"]
        assert (to_start["over_seeds"]["low"], to_start["p"]) == (None, None)
        to_start["over_items"] = {**to_start["over_seeds"], "low": low, "high": None if low is None else 0.4}
    made = Summary.model_validate_json(json.dumps(plain))
    text = sentences(decide(made, BEFORE, ACCURACY), made)
    assert "use dft" in text
    assert ("no better than the base" in text) == (low != 0.2)


def test_fewer_seeds_than_planned_are_named():
    assert "dft has fewer than the 3 planned seeds" in said({"sft": LOW, "dft": HIGH[:2]})


def test_shares_differ_by_no_more_than_one():
    wild = {"sft": [0.0, 0.5, 0.1], "dft": [0.9, 0.5, 0.9]}
    assert "(−0.659 to +1.000)" in said(wild)
    assert "(−0.659 to +1.792)" in said(wild, metric=NLL, base=None)


def test_other_items_can_undo_a_winner():
    made = summary(FIRST)
    plain = made.plain()
    for row in plain["rows"][2:]:
        to_baseline = row["stages"][BEFORE]["tasks"]["test"]["accuracy"]["to_baseline"]
        to_baseline["over_both"] = {**to_baseline["over_seeds"], "low": -0.01, "high": 0.65}
    made = Summary.model_validate_json(json.dumps(plain))
    assert decide(made, BEFORE, ACCURACY).kind == "same"
    assert "beyond noise across seeds, but not across items" in sentences(decide(made, BEFORE, ACCURACY), made)


def test_both_stages_have_a_verdict_by_the_deciding_metric():
    made = summary({label: FIRST[label] for label in RL}, RL, base_after=[0.5, 0.56, 0.55])
    assert [(one.stage, one.kind, one.metric) for one in verdicts(made)] == [
        (BEFORE, "use", "accuracy"),
        (AFTER, "use", "accuracy"),
    ]


def test_runs_that_are_hard_to_compare_are_named():
    made = summary(FIRST)
    assert list(cautions(made)) == []
    steps = {"steps": [10, 10], "tokens": [], "seconds": []}
    plain = made.plain()
    plain["rows"][1]["stages"][BEFORE]["budget"]["steps"] = [48, 48]
    plain["rows"][2]["stages"][BEFORE]["budget"] = steps
    score = over_seeds([0.0, 0.0]).to_dict()
    plain["rows"][1]["tuning"] = [
        {"rate": rate, "seeds": [7, 8], "values": [0.0, 0.0], "failed": [], "score": score} for rate in (1e-4, 3e-4)
    ]
    plain["provenance"] = Provenance(
        versions=({"torch": "2.1", "trl": "1"}, {"torch": "2.2", "trl": "1"}),
        commits=(),
        devices=("cpu", "cuda:0", "cuda:1"),
    ).plain()
    warning = RunWarning(run="cells/a/rl", warning="no group had mixed rewards")
    plain["warnings"] = [warning.plain(), {**warning.plain(), "run": "cells/b/rl"}]
    plain["unplanned"] = [{"run": "cells/old", "error": "boom"}]
    assert list(cautions(Summary.model_validate_json(json.dumps(plain)))) == [
        "The runs were made with different versions: torch 2.1, 2.2; a difference may be due to them.",
        "The runs were made on different devices (cpu, cuda); a difference may be due to them.",
        "After fine-tuning, steps differ: sft 48, dft 10.",
        "sft: every learning rate scored 0.000, so the smallest was taken; which is best is not known.",
        "cells/a/rl, cells/b/rl: no group had mixed rewards",
        "1 run that the recipe no longer has broke off (cells/old, …); remove the folders to be rid of this line.",
    ]


def test_the_next_step_is_the_winners_own_settings():
    from ballast.compare.next_steps import next_steps
    from ballast.config.recipe import Recipe

    compare = {
        "objectives": [
            "sft",
            {
                "name": "prift-mass",
                "label": "dft",
                "threshold": 0.3,
                "training": {"max_length": 64},
                "data": "a b.jsonl",
            },
            "eksft",
        ],
        "rates": 1e-4,
        "budget": {"steps": 24},
    }
    recipe = Recipe.model_validate({"model": {"path": "m", "lora": {"r": 4}}, "compare": compare, "output": "my out"})
    made = summary(FIRST)
    rows = tuple(row.model_copy(update={"rate": 3e-5}) for row in made.rows)
    made = made.model_copy(update={"verdicts": (decide(made, BEFORE, ACCURACY),), "rows": rows})
    train, merge, serve = next_steps(made, recipe, ["my recipe.yaml"])
    assert train == (
        "train it: ballast train 'my recipe.yaml' training.max_steps=24 "
        '\'objective={"name": "prift-mass", "threshold": 0.3}\' '
        "'data.train=[\"a b.jsonl\"]' training.max_length=64 training.learning_rate=3e-05 'output=my out-final'"
    )
    assert merge.endswith("ballast merge 'my out-final' --output 'my out-final-merged'")
    assert serve == "serve it: transformers serve 'my out-final-merged', or vllm serve 'my out-final-merged'"
    own = {"objectives": ["sft", {"name": "dft", "training": {"max_steps": 5}}], "budget": {"steps": 24}, "rates": 1}
    train, *_ = next_steps(made, Recipe.model_validate({"compare": own, "output": "out"}), ["r.yaml"])
    assert train.count("max_steps") == train.count("training.max_steps=5") == 1
    assert next_steps(summary(FIRST), recipe, ["r.yaml"]) == []


def test_the_next_step_knows_an_objective_of_ones_own_and_all_digits_of_its_rate():
    from ballast.compare.next_steps import next_steps
    from ballast.config.recipe import Recipe

    own = "ballast.objectives.dft:dft"
    recipe = Recipe.model_validate({"compare": {"objectives": ["sft", own], "rates": 1e-4}, "output": "out"})
    made = summary(FIRST)
    rows = tuple(row.model_copy(update={"rate": 1.2345678e-5}) for row in made.rows)
    made = made.model_copy(update={"verdicts": (decide(made, BEFORE, ACCURACY),), "rows": rows})
    train, *_ = next_steps(made, recipe, ["model=lab", "data.train=a b"])
    assert train == (
        f"train it: ballast train model=lab 'data.train=a b' objective={own} training.learning_rate=1.2345678e-05 "
        "output=out-final"
    )
