"""Differences of some runs: to the base model at the same stage, from figures alone and with intervals over items."""

import dataclasses

import numpy as np
import pytest

from ballast.compare.results import against_base, difference, result
from ballast.compare.statistics import holm, over_both, over_items, over_seeds, paired_p
from ballast.compare.summary import BASE_ROW, tabulate
from ballast.records.folder import AFTER, BASE, BEFORE
from ballast.records.summary import SeedsSummary
from compare_tools import cell, stored_run, task_record

SEEDS, ITEMS = (1, 2, 3), 8
CHANCE = {BASE: 0.4, "sft": 0.5, "dft": 0.9}


def run(label, seed, stage, scores, **facts):
    where = cell(label, None if label == BASE else 1e-3, seed)
    return stored_run(
        where,
        stage,
        {"test": task_record({"accuracy": float(np.mean(scores)), "entropy": float(seed + len(label))})},
        path=f"{label}-{seed}-{stage}",
        items={"test": {"accuracy": scores}},
        prompts={"test": tuple(map(str, range(ITEMS)))},
        **facts,
    )


@pytest.fixture
def runs():
    chance = np.random.default_rng(4)
    made = [run(BASE, 0, BEFORE, (chance.random(ITEMS) < CHANCE[BASE]).astype(float))]
    for stage in (BEFORE, AFTER):
        for label in (BASE, "sft", "dft")[stage == BEFORE :]:
            made += [run(label, seed, stage, (chance.random(ITEMS) < CHANCE[label]).astype(float)) for seed in SEEDS]
    return made


@pytest.fixture
def summary(runs):
    rows = [BASE_ROW, *(BASE_ROW.model_copy(update={"label": label, "kind": "method"}) for label in ("sft", "dft"))]
    return tabulate(rows, runs, baseline="sft", tasks=["test"], seeds=SeedsSummary(report=SEEDS, tuning=()))


def scores_of(runs, label, stage):
    there = [run for run in runs if (run.label, run.stage) == (label, stage)]
    return np.stack([run.result.items["test"]["accuracy"] for run in there])


def test_after_rl_it_is_to_rl_from_the_base_model_by_seed_and_item(runs, summary):
    found = against_base(summary, runs, AFTER, "test", "accuracy")
    assert list(found) == ["sft", "dft"]
    for label, one in found.items():
        apart = scores_of(runs, label, AFTER) - scores_of(runs, BASE, AFTER)
        assert one.seeds == SEEDS
        assert one.over_seeds.plain() == over_seeds(np.array(one.values)).to_dict()
        assert one.values == pytest.approx(apart.mean(axis=1))
        assert one.over_items.plain() == over_items(apart).to_dict()
        assert one.over_both.plain() == over_both(apart).to_dict()
        assert one.p == paired_p(one.values)
    assert [one.p_holm for one in found.values()] == holm([one.p for one in found.values()])


def test_before_rl_it_is_what_the_summary_has(runs, summary):
    found = against_base(summary, runs, BEFORE, "test", "accuracy")
    for label, one in found.items():
        row = next(row for row in summary.rows if row.label == label)
        assert one.model_copy(update={"p_holm": None}) == row.result(BEFORE, "test", "accuracy").to_start


def test_without_the_runs_the_figures_are_the_same_and_items_have_no_interval(runs, summary):
    with_runs = against_base(summary, runs, AFTER, "test", "accuracy")
    for label, one in against_base(summary, [], AFTER, "test", "accuracy").items():
        assert (one.values, one.p_holm) == (with_runs[label].values, with_runs[label].p_holm)
        assert (one.over_items, one.over_both) == (None, None)


def test_scores_of_other_items_make_no_interval(runs, summary):
    def on_other_items(one):
        return dataclasses.replace(one, result=dataclasses.replace(one.result, prompts={"test": ("x",) * ITEMS}))

    some = [on_other_items(one) if (one.label, one.seed) == ("dft", 2) else one for one in runs]
    found = against_base(summary, some, AFTER, "test", "accuracy")
    assert found["dft"].over_items is None
    assert found["sft"].over_items is not None


def test_without_the_base_model_there_is_no_difference_to_it(runs, summary):
    rows = tuple(row for row in summary.rows if row.label != BASE)
    assert against_base(summary.model_copy(update={"rows": rows}), runs, AFTER, "test", "accuracy") == {}
    assert against_base(summary, runs, AFTER, "test", "nll") == {}


def test_seeds_that_one_side_lacks_are_left_out(runs):
    mine = [one for one in runs if (one.label, one.stage) == ("dft", AFTER)]
    theirs = [one for one in runs if (one.label, one.stage) == ("sft", AFTER) and one.seed != 2]
    assert difference(mine, theirs, "test", "accuracy").seeds == (1, 3)
    assert difference(mine, theirs, "test", "unknown") is None
    assert difference(mine, [], "test", "accuracy") is None


def test_a_metric_without_scores_of_items_has_no_interval_over_them(runs):
    mine = [one for one in runs if (one.label, one.stage) == ("dft", AFTER)]
    found = result(mine, "test", "entropy")
    assert (found.values, found.over_items, found.over_both) == ((4.0, 5.0, 6.0), None, None)
    assert found.over_seeds.low < 5.0 < found.over_seeds.high
