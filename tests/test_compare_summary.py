"""From records to the summary: by hand on few numbers, and what must not leak into it."""

import dataclasses
import json
from io import StringIO

import numpy as np
import pytest

from ballast.compare.plan import Plan
from ballast.compare.statistics import holm, over_both, over_items, over_seeds, paired_p
from ballast.compare.summary import summarise
from ballast.compare.view import markdown, notes, sheets, show
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.evaluation.metrics import mean
from ballast.records.folder import AFTER, BASE, BEFORE, REPORT, TUNING
from ballast.records.schema import Estimate
from ballast.records.summary import Summary
from compare_tools import cell, stored_run, task_record

SEEDS, ITEMS = (7, 8, 9), 12
LABELS = ("sft", "dft", "ift")


def plan(**compare):
    section = {"objectives": list(LABELS), "rates": [1e-4, 3e-4], "seeds": 3, "tuning_seeds": 1, **compare}
    section.setdefault("choose_by", {"task": "validation", "metric": "accuracy"})
    tasks = [{"name": name, "data": "lab:test"} for name in ("validation", "test", "text")]
    return Plan(Recipe.model_validate({"model": "lab", "compare": section, "seed": 7, "evaluation": {"tasks": tasks}}))


def measured(scores):
    """A task's record as `evaluate` writes it, of 0/1 scores per item."""
    accuracy = Estimate.of(mean([float(score) for score in scores]))
    return task_record({"accuracy": accuracy}, kind="generate", settings={"seed": 3, "samples": 1})


def entropy(value):
    return task_record({"entropy": value})


def run(of, scores, *, stage=BEFORE, nats=1.0, path="", **facts):
    reported = of.role != TUNING
    name = "test" if reported else "validation"
    after = f"base/rl/s{of.seed}" if of.label == BASE else f"cells/{of.name}/rl"
    return stored_run(
        of,
        stage,
        {name: measured(scores), **({"text": entropy(nats)} if reported else {})},
        path=path or (after if stage == AFTER else f"cells/{of.name}"),
        items={name: {"accuracy": np.asarray(scores, dtype=float)}},
        prompts={name: tuple(f"p{i}" for i in range(len(scores)))},
        **{
            "objective": {"name": of.label, "with": "defaults"},
            "versions": {"torch": "2"},
            "commit": "c" * 40,
            **facts,
        },
        device="cpu",
    )


def start(scores):
    return run(cell(BASE, None, 0), scores, path="base", objective=None)


def changed(one, **parts):
    """Return a run with other measurements."""
    return dataclasses.replace(one, result=dataclasses.replace(one.result, **parts))


@pytest.fixture
def scores():
    rng = np.random.default_rng(2)
    chance = {"sft": 0.5, "dft": 0.6, "ift": 0.8}
    return {(label, seed): (rng.random(ITEMS) < chance[label]).astype(float) for label in LABELS for seed in SEEDS}


@pytest.fixture
def runs(scores):
    cells = [cell for label in LABELS for cell in plan().tuning(label)]
    tuning = [run(cell, [1, 1, 0, 0] if cell.rate == 3e-4 else [1, 0, 0, 0]) for cell in cells]
    report = [run(cell(label, 3e-4, seed), given, nats=seed / 10) for (label, seed), given in scores.items()]
    return [*tuning, *report, start([1.0, 0.0] * 6)]


def result(summary, label, task="test", metric="accuracy", stage=BEFORE):
    return row_of(summary, label).result(stage, task, metric).plain()


def row_of(summary, label):
    return next(row for row in summary.rows if row.label == label)


def table(scores, label, seeds=SEEDS):
    return np.stack([scores[label, seed] for seed in seeds])


def test_means_and_intervals_are_those_of_the_statistics(runs, scores):
    summary = summarise(plan(), runs)
    found = result(summary, "dft")
    ours = table(scores, "dft")
    assert found["values"] == pytest.approx(ours.mean(axis=1).tolist())
    assert found["over_seeds"] == over_seeds(ours.mean(axis=1)).to_dict()
    assert found["over_items"] == mean(ours.mean(axis=0)).to_dict()
    assert found["over_both"] == over_both(ours).to_dict()
    assert summary.seeds.plain() == {"report": [7, 8, 9], "tuning": [1007]}


def test_differences_are_paired_by_seed_and_by_item(runs, scores):
    found = result(summarise(plan(), runs), "ift")["to_baseline"]
    difference = table(scores, "ift") - table(scores, "sft")
    assert found["values"] == pytest.approx(difference.mean(axis=1).tolist())
    assert found["over_seeds"] == over_seeds(difference.mean(axis=1)).to_dict()
    assert found["over_items"] == over_items(difference).to_dict()
    assert found["over_both"] == over_both(difference).to_dict()
    assert found["p"] == paired_p(difference.mean(axis=1))


def test_the_order_of_the_records_does_not_matter(runs):
    assert summarise(plan(), runs[::-1]) == summarise(plan(), runs)
    json.dumps(summarise(plan(), runs).plain(), allow_nan=False)


def test_p_values_are_adjusted_over_the_methods_of_one_metric(runs):
    summary = summarise(plan(), runs)
    found = [result(summary, label)["to_baseline"] for label in ("dft", "ift")]
    assert [one["p_holm"] for one in found] == holm([one["p"] for one in found])
    assert [one["p_holm"] for one in found] != [one["p"] for one in found]
    assert result(summary, "sft")["to_baseline"] is None
    assert result(summary, BASE)["to_baseline"] is None


def test_the_start_is_the_partner_of_every_seed(runs, scores):
    summary = summarise(plan(), runs)
    found = result(summary, "sft")["to_start"]
    assert found["seeds"] == [7, 8, 9]
    assert found["values"] == pytest.approx((table(scores, "sft").mean(axis=1) - 0.5).tolist())
    assert result(summary, BASE)["to_start"] is None
    base = result(summary, BASE)
    assert (base["values"], base["over_seeds"]["low"], base["over_items"]["method"]) == ([0.5], None, "wilson")


def test_only_seeds_that_both_have_are_compared(runs, scores):
    summary = summarise(plan(), [one for one in runs if (one.label, one.seed) != ("sft", 8)])
    found = result(summary, "dft")["to_baseline"]
    assert found["seeds"] == [7, 9]
    difference = table(scores, "dft", (7, 9)) - table(scores, "sft", (7, 9))
    assert found["over_items"] == over_items(difference).to_dict()
    assert result(summary, "dft")["over_seeds"]["n"] == 3
    assert summary.missing == ("cells/sft-lr0.0003-s8",)
    assert not summary.complete


def test_metrics_without_scores_of_items_have_an_interval_over_seeds_alone(runs):
    found = result(summarise(plan(), runs), "dft", "text", "entropy")
    assert found["values"] == [0.7, 0.8, 0.9]
    assert found["over_items"] is None
    assert found["over_both"] is None
    assert found["over_seeds"]["low"] < 0.8 < found["over_seeds"]["high"]
    assert found["to_baseline"]["values"] == [0.0, 0.0, 0.0]
    assert found["to_baseline"]["p"] == 1.0


def test_tuning_is_shown_and_never_reported(runs):
    summary = summarise(plan(), runs)
    row = row_of(summary, "dft")
    assert [(one.rate, one.seeds, one.values) for one in row.tuning] == [
        (1e-4, (1007,), (0.25,)),
        (3e-4, (1007,), (0.5,)),
    ]
    assert (row.rate, row.edge) == (3e-4, "highest")
    assert [task.name for task in summary.tasks] == ["test", "text"]
    assert all("1007" not in path for path in row.stages[BEFORE].runs)
    assert "validation" not in row.stages[BEFORE].tasks


def test_runs_at_other_rates_and_seeds_change_nothing(runs):
    stray = [run(cell("dft", rate, seed), [1.0] * ITEMS) for rate, seed in ((1e-4, 7), (3e-4, 77), (9e-4, 8))]
    stray.append(run(cell("unknown", 3e-4, 7), [1.0] * ITEMS))
    assert summarise(plan(), [*runs, *stray]) == summarise(plan(), runs)


def test_a_rate_within_the_sweep_has_no_edge(runs):
    made = plan(rates=[1e-4, 3e-4, 1e-3])
    cells = [cell for label in LABELS for cell in made.tuning(label)]
    tuning = [run(cell, [1, 1, 0, 0] if cell.rate == 3e-4 else [1, 0, 0, 0]) for cell in cells]
    summary = summarise(made, [*tuning, *(one for one in runs if one.role != TUNING)])
    assert {row.edge for row in summary.rows} == {None}
    assert {row.rate for row in summary.rows[1:]} == {3e-4}


def test_runs_on_other_items_do_not_pair(runs):
    other = [f"q{i}" for i in range(ITEMS)]
    moved = [changed(one, prompts={"test": tuple(other)}) if one.label == "dft" else one for one in runs]
    with pytest.raises(BallastError, match=r"measured on other items than .* do not pair"):
        summarise(plan(), moved)


def test_runs_of_one_row_on_other_items_do_not_make_a_table(runs):
    moved = [
        changed(one, prompts={"test": ("q",) * ITEMS}) if (one.label, one.seed) == ("sft", 8) else one for one in runs
    ]
    with pytest.raises(BallastError, match=r"^cells/sft-lr0.0003-s8: .* measured on other items than cells/sft-"):
        summarise(plan(), moved)


def test_a_run_that_kept_no_scores_leaves_its_row_without_intervals_over_items(runs):
    bare = [changed(one, items={}, prompts={}) if (one.label, one.seed) == ("dft", 8) else one for one in runs]
    summary = summarise(plan(), bare)
    found = result(summary, "dft")
    assert (found["over_items"], found["over_both"], found["over_seeds"]["n"]) == (None, None, 3)
    assert (found["to_baseline"]["over_items"], found["to_baseline"]["seeds"]) == (None, [7, 8, 9])
    assert result(summary, "ift") == result(summarise(plan(), runs), "ift")


def test_each_metric_is_a_family_of_its_own(runs):
    two = []
    for one in runs:
        tasks = dict(one.result.tasks)
        if "test" in tasks:
            metrics = tasks["test"].metrics
            half = Estimate.of(mean([metrics["accuracy"].value / 2 + one.seed / 1e3]))
            tasks["test"] = task_record({**metrics, "half": half})
        two.append(changed(one, tasks=tasks))
    summary = summarise(plan(), two)
    assert result(summary, "dft") == result(summarise(plan(), runs), "dft")
    found = [result(summary, label, metric="half")["to_baseline"] for label in ("dft", "ift")]
    assert [one["p_holm"] for one in found] == holm([one["p"] for one in found])


def test_what_is_described_of_a_task_is_the_same_for_every_seed(runs):
    [about, _] = summarise(plan(), runs).tasks
    assert about.settings == {"samples": 1}
    assert (about.kind, about.n, about.metrics["accuracy"].better) == ("generate", ITEMS, "higher")


def test_a_start_that_is_not_asked_for_is_not_missing(runs):
    made = plan()
    evaluation = made.recipe.evaluation.model_copy(update={"base": False})
    made = Plan(made.recipe.model_copy(update={"evaluation": evaluation}))
    summary = summarise(made, [one for one in runs if not one.is_base])
    assert summary.complete
    assert result(summary, "dft")["to_start"] is None


def after_rl(runs, gain=1.0):
    reported = [one for one in runs if one.role == REPORT]
    best = [run(cell(one.label, one.rate, one.seed), [gain] * ITEMS, stage=AFTER) for one in reported]
    return best + [run(cell(BASE, None, seed), [1.0] * 9 + [0.0] * 3, stage=AFTER) for seed in SEEDS]


def test_after_rl_is_a_stage_of_its_own_with_its_gain(runs, scores):
    made = plan(then={"rl": {"steps": 1}})
    summary = summarise(made, [*runs, *after_rl(runs)])
    assert summary.complete
    found = result(summary, "dft", stage=AFTER)
    assert found["gain"]["values"] == pytest.approx((1 - table(scores, "dft").mean(axis=1)).tolist())
    assert found["to_baseline"]["values"] == [0.0, 0.0, 0.0]
    assert found["to_start"]["values"] == [0.5, 0.5, 0.5]
    assert "gain" not in result(summary, "dft")
    base = result(summary, BASE, stage=AFTER)
    assert (base["values"], base["gain"]["values"]) == ([0.75] * 3, [0.25] * 3)
    assert base["to_baseline"] is None
    # Before RL nothing has moved.
    plain = summarise(plan(), runs)
    assert result(summary, "dft") == result(plain, "dft")


def test_missing_rl_is_said(runs):
    summary = summarise(plan(then={"rl": {"steps": 1}}), [*runs, *after_rl(runs)[1:-1]])
    assert summary.missing == ("cells/sft-lr0.0003-s7/rl", "base/rl/s9")


def test_a_row_without_its_rate_has_no_results_yet(runs):
    some = [one for one in runs if not (one.label == "ift" and one.role == TUNING)]
    summary = summarise(plan(), some)
    row = row_of(summary, "ift")
    assert (row.rate, row.stages) == (None, {})
    assert "cells/ift-lr…" in summary.missing
    # The family of tests is smaller by one.
    assert result(summary, "dft")["to_baseline"]["p_holm"] == result(summary, "dft")["to_baseline"]["p"]


def test_random_weights_are_no_method(runs):
    made = plan(random=True)
    report = [run(cell("random", 3e-4, seed), [0.0] * ITEMS) for seed in SEEDS]
    summary = summarise(made, [*runs, *report])
    assert summary.complete
    assert [row.kind for row in summary.rows] == ["start", "method", "method", "method", "random"]
    followed = summarise(plan(random=True, then={"rl": {}}), [*runs, *report, *after_rl(runs)])
    assert followed.missing == ()
    assert result(summary, "random")["to_baseline"] is None
    assert result(summary, "dft") == result(summarise(plan(), runs), "dft")


def test_failures_and_provenance(runs):
    broken = run(cell("dft", 1e-4, 1007, TUNING), [], status="failed", error="boom")
    summary = summarise(plan(), [broken if one.path == broken.path else one for one in runs])
    assert [one.plain() for one in summary.failed] == [{"run": "cells/dft-lr0.0001-s1007", "error": "boom"}]
    assert summary.missing == ("cells/dft-lr0.0001-s1007",)
    assert summary.provenance.plain() == {"versions": [{"torch": "2"}], "commits": ["c" * 40], "devices": ["cpu"]}
    row = row_of(summary, "dft")
    assert [one.failed for one in row.tuning] == [(1007,), ()]
    assert row.objective == {"name": "dft", "with": "defaults"}


def test_only_planned_runs_that_failed_count(runs):
    """A run that the recipe no longer has cannot be mended by running it again, so it must not fail the command."""
    stale = [
        run(cell("gone", 3e-4, 7), [], status="failed", error="boom"),
        run(cell("dft", 1e-3, 1007, TUNING), [], status="failed", error="boom"),
        run(cell("dft", 3e-4, 99), [], status="failed", error="boom"),
        run(cell("dft", 3e-4, 7), [], stage=AFTER, status="failed", error="boom"),
    ]
    summary = summarise(plan(), [*runs, *stale])
    assert summary.failed == ()
    assert [one.run for one in summary.unplanned] == [one.path for one in stale]
    said = [line for line in notes(summary) if "no longer has" in line]
    assert said == [
        "4 runs that the recipe no longer has broke off (cells/gone-lr0.0003-s7, …); remove the folders to be rid of "
        "this line."
    ]


def test_tuning_runs_of_another_choosing_task_choose_nothing(runs):
    made = plan(choose_by={"task": "text", "metric": "accuracy"})
    summary = summarise(made, [one for one in runs if one.role == TUNING or one.is_base])
    assert [one.rate for one in summary.rows] == [None] * 4
    assert {point.failed for row in summary.rows for point in row.tuning} == {()}
    assert "cells/sft-lr…" in summary.missing


def test_a_rate_at_the_end_that_others_equal_is_no_edge(runs):
    level = [run(cell(one.label, one.rate, one.seed, TUNING), [0.0] * 4) for one in runs if one.role == TUNING]
    report = [run(cell(label, 1e-4, seed), [0.0] * ITEMS) for label in LABELS for seed in SEEDS]
    summary = summarise(plan(), [*level, *report, start([0.0] * ITEMS)])
    assert [(row.rate, row.edge) for row in summary.rows[1:]] == [(1e-4, None)] * 3
    assert "sft: every learning rate scored 0.000, so the smallest was taken" in "\n".join(notes(summary))
    assert summary.verdicts[0].kind == "open"


def test_warnings_of_runs_come_to_the_end(runs):
    warned = [
        dataclasses.replace(one, record=one.record.model_copy(update={"warnings": ("no group had mixed rewards",)}))
        if one.path.startswith("cells/ift-lr0.0003")
        else one
        for one in runs
    ]
    assert "cells/ift-lr0.0003-s7, cells/ift-lr0.0003-s8 and 1 more: no group had mixed rewards" in notes(
        summarise(plan(), warned)
    )


def test_tables_show_every_mean_with_an_interval(runs):
    summary = summarise(plan(then={"rl": {"steps": 1}}), [*runs, *after_rl(runs, gain=0.0)])
    [accuracy, nats] = list(sheets(summary))
    assert accuracy.title == "test: accuracy (12 items, higher is better)"
    assert accuracy.columns == ("", "rate", "seeds", "after SFT", "Δ", "p", "after RL", "Δ", "p", "gain")
    dft = next(row for row in accuracy.rows if row[0] == "dft")
    over = result(summary, "dft")["over_both"]
    low, high = max(over["low"], 0.0), min(over["high"], 1.0)
    assert dft[1:4] == ("0.0003", "3", f"{over['value']:.3f} [{low:.3f}, {high:.3f}]")
    base = next(row for row in accuracy.rows if row[0] == BASE)
    assert base[3].startswith("0.500 [0.25")
    assert base[3].endswith("] i")
    assert all("[" in row[3] for sheet in (accuracy, nats) for row in sheet.rows)


def test_markdown_is_inert_and_whole(runs):
    made = plan(objectives=["sft", {"name": "dft", "label": "a_b.c"}, "ift"])
    renamed = [dataclasses.replace(one, label="a_b.c") if one.label == "dft" else one for one in runs]
    text = markdown(summarise(made, renamed))
    assert "a\\_b.c | 0.0003 | 3 |" in text
    assert "**test: accuracy (12 items, higher is better)**" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in rows} == {7}


def test_notes_say_how_rates_were_chosen_and_what_is_missing(runs):
    said = "\n".join(notes(summarise(plan(), runs[:-3])))
    assert "chosen by validation accuracy on 1 other seeds and on items that are not reported" in said
    assert "sft: the highest rate of the sweep was best; a larger one may be better" in said
    assert "Not done yet: 3 runs (cells/ift-lr0.0003-s8, cells/ift-lr0.0003-s9, base)" in said


@pytest.mark.parametrize("label", ["dft", "prift-mass", "a-label-of-twenty-six-signs"])
def test_tables_fit_a_terminal_and_break_no_number(runs, label):
    from rich.console import Console

    made = plan(objectives=["sft", {"name": "dft", "label": label}, "ift"], then={"rl": {"steps": 1}})
    renamed = [dataclasses.replace(one, label=label) if one.label == "dft" else one for one in runs]
    summary = summarise(made, [*renamed, *after_rl(renamed, gain=0.25)])
    console = Console(width=80, record=True, file=StringIO())
    show(summary, say=console.print)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert "test: accuracy (12 items, higher is better)" in lines
    assert max(map(len, lines)) <= 80
    [row] = [place for place, line in enumerate(lines) if line.startswith(f" {label[:17]}") and "0.0003" in line][:1]
    shown = label if len(label) <= 18 else f"{label[:17]}…"
    found, after = result(summary, label), result(summary, label, stage=AFTER)
    difference = found["to_baseline"]["over_both"]
    half = (difference["high"] - difference["low"]) / 2
    words = lines[row].split(), lines[row + 1].split()
    assert words[0][:5] == [shown, "0.0003", "3", f"{found['over_seeds']['value']:.3f}", f"{difference['value']:+.3f}"]
    assert words[0][-1] == f"{after['gain']['over_seeds']['value']:+.3f}"
    assert f"±{half:.3f}".replace("0.", ".") in words[1]


def test_wide_numbers_stay_whole_too(runs):
    from rich.console import Console

    wide = [
        changed(one, tasks={**one.result.tasks, "text": entropy(1e4 * one.seed + len(one.path))})
        if one.role == REPORT
        else one
        for one in [*runs, *after_rl(runs)]
    ]
    summary = summarise(plan(then={"rl": {"steps": 1}}), wide)
    console = Console(width=80, record=True, soft_wrap=True, file=StringIO())
    show(summary, say=console.print)
    words = console.export_text().split()
    over = result(summary, "ift", "text", "entropy")["over_seeds"]
    assert f"{over['value']:.3f}" in words
    assert f"±{(over['high'] - over['low']) / 2:.3f}" in words
    assert "s" in words, "likelihoods have no scores of items"


def test_small_p_values_and_rows_without_results(runs):
    nats = {("ift", 7): 0.999, ("ift", 8): 1.1, ("ift", 9): 1.2, ("sft", 7): 0.1, ("sft", 8): 0.2, ("sft", 9): 0.3}
    reported = [
        changed(one, tasks={**one.result.tasks, "text": entropy(nats[one.label, one.seed])})
        for one in runs
        if (one.label, one.seed) in nats
    ]
    summary = summarise(plan(), [*reported, *(one for one in runs if one.role == TUNING or one.is_base)])
    found = result(summary, "ift", "text", "entropy")["to_baseline"]
    shown = list(sheets(summary))[1].rows
    assert [row[0] for row in shown] == [BASE, "sft", "ift"]
    assert found["p_holm"] < 0.001
    assert shown[-1][-1] == "<.001"
    plain = summary.plain()
    plain["rows"][-1]["stages"][BEFORE]["tasks"]["text"]["entropy"]["to_baseline"]["p_holm"] = 0.0042
    assert list(sheets(Summary.model_validate_json(json.dumps(plain))))[1].rows[-1][-1] == "0.004"
