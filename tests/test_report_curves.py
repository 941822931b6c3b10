"""Curves of training and RL, and what the records leave open: figures by other ways than the report's own."""

import json
from dataclasses import replace

import numpy as np
import pytest

import report_records
from ballast.records.folder import BASE
from ballast.report.build import build
from ballast.report.charts.data import Line, LineChart
from ballast.report.sections import curves
from ballast.report.sections.answer import gaps
from ballast.report.source import load

BEFORE, AFTER = "before_rl", "after_rl"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four rows, RL after three of them, random weights."""
    return load([report_records.with_random(tmp_path_factory.mktemp("curves") / "lab")])


def section(report, name):
    return next(one for one in report.sections if one.id == name)


def gap(source):
    return {one.short: one.long for one in gaps(source)}


def test_random_weights_are_omitted_where_they_flatten_the_others(source):
    training = section(build(source), "training")
    drawn = {chart.title: [line.label for line in chart.lines] for chart in training.charts}
    assert drawn["Negative log-likelihood of trained tokens"] == ["sft", "prift-mass", "eksft"]
    assert drawn["Entropy at trained tokens"] == ["sft", "prift-mass", "eksft", "random"]
    logs = [run.log for run in source.reported(BEFORE) if run.label == "random"]
    ends = [sum(log[at].values["nll"] for log in logs) / 3 for at in (0, 5)]
    assert training.notes == (
        "random is omitted where it would flatten the other lines; Negative log-likelihood of trained tokens: "
        f"from {ends[0]:.3f} to {ends[1]:.3f}.",
    )


@pytest.mark.parametrize(("height", "kept"), [(1.7, True), (1.9, False)])
def test_how_far_is_too_far_is_relative(source, height, kept):
    others = Line("sft", ((1.0, 0.0), (2.0, 1.0)))
    chart = LineChart("t", "x", "y", (others, Line("random", ((1.0, 0.5), (2.0, height)))))
    shown, left = curves._without_outliers(source, chart)
    assert [line.label for line in shown.lines] == ["sft", "random"][: 1 + kept]
    assert [line.label for line in left] == ["random"][kept:]
    alone = LineChart("t", "x", "y", (Line("random", ((1.0, 0.5), (2.0, 9.0))),))
    assert curves._without_outliers(source, alone) == (alone, ())


def test_a_curve_of_rewards_is_not_drawn_twice(source):
    titles = [chart.title for chart in section(build(source), "rl").charts]
    assert titles == ["Reward of samples", "Prompts with answers of different reward"]


def test_many_steps_are_means_of_blocks_of_one_size(source):
    [chart, _] = section(build(source), "rl").charts
    logs = [[line.values["reward"] for line in run.log] for run in source.reported(AFTER) if run.label == "sft"]
    assert len(logs[0]) == 30
    [line] = [line for line in chart.lines if line.label == "sft"]
    blocks = np.array(logs).reshape(3, 15, 2).mean(axis=2)
    assert [at for at, _ in line.points] == [1.5 + 2 * place for place in range(15)]
    assert [value for _, value in line.points] == pytest.approx(blocks.mean(axis=0))
    assert [low for _, low, _ in line.band] == pytest.approx(blocks.min(axis=0))
    assert [high for _, _, high in line.band] == pytest.approx(blocks.max(axis=0))
    assert "each point is the mean of up to 2 logged steps" in section(build(source), "rl").lead
    assert "logged steps" not in section(build(source), "training").lead


@pytest.mark.parametrize(
    ("logged", "sizes"), [(15, [1] * 15), (16, [2] * 8), (40, [3] * 12 + [2] * 2), (31, [3] * 9 + [2] * 2)]
)
def test_blocks_differ_by_one_step_at_most(logged, sizes):
    line, block = curves._line("sft", [{float(step): 1.0 for step in range(logged)}])
    assert len(line.points) == len(sizes)
    assert block == max(sizes)
    assert sorted(map(len, curves._blocks(list(range(logged)), block)), reverse=True) == sizes


def test_a_value_that_is_not_finite_is_a_gap_of_its_block_and_a_caution(source, tmp_path):
    run = report_records.run(tmp_path / "run")
    logs = [{"step": step, "nll": 1.0, "loss": 1.0} for step in range(1, 31)]
    logs[4]["nll"] = float("nan")
    (run / "metrics.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
    report = build(load([run]))
    [line] = section(report, "training").charts[0].lines
    assert [place for place, (_, value) in enumerate(line.points) if value is None] == [2]
    assert line.band == ()
    assert report.cautions == (
        "sft in fine-tuning logged values that are not finite: training diverged; the curves have gaps there.",
    )
    assert build(source).cautions == ()


def test_the_base_after_fine_tuning_is_in_no_chart_of_rl(source):
    bare = replace(source, runs=tuple(run for run in source.runs if run.label != BASE))
    before, after = section(build(bare), "pass").charts
    assert "base" in [line.label for line in before.lines]
    assert "base" not in [line.label for line in after.lines]


def test_rates_at_the_end_of_the_sweep_are_named_with_their_rows(source):
    every = "learning rates outside the sweep (the best rate is at its end for every objective)"
    assert every in gap(source)

    def inside(summary):
        summary["rows"][1]["edge"] = None

    two = gap(report_records.changed(source, inside))
    assert "learning rates outside the sweep (the best rate is at its end for prift-mass and eksft)" in two
    assert "prift-mass (highest, 3e-4) and eksft (highest, 3e-4)" in " ".join(two.values())

    def another(summary):
        inside(summary)
        summary["rows"][2]["edge"] = None

    assert "learning rates outside the sweep (the best rate is at its end for eksft)" in gap(
        report_records.changed(source, another)
    )


def test_one_seed_anywhere_is_a_gap(source):
    assert "other seeds" not in gap(source)

    def once(summary):
        summary["rows"][2]["stages"][AFTER]["seeds"] = [42]

    def planned(summary):
        summary["seeds"]["report"] = [42]
        for row in summary["rows"]:
            row["stages"] = {}

    assert "other seeds" in gap(report_records.changed(source, once))
    assert "other seeds" in gap(report_records.changed(source, planned))


@pytest.mark.parametrize(
    ("renamed", "open_"),
    [
        ({}, set()),
        ({"base_kl": "x"}, {"drift from the base model"}),
        ({"base_kl": "demonstrations_kl"}, set()),
        ({"nll": "x"}, {"forgetting"}),
        ({"nll": "forgetting"}, set()),
        ({"nll": "bits_per_character"}, set()),
        ({"pass@4": "x"}, {"pass@k"}),
    ],
)
def test_abilities_are_known_by_the_names_of_metrics(source, renamed, open_):
    def rename(summary):
        for task in summary["tasks"]:
            task["metrics"] = {renamed.get(name, name): facts for name, facts in task["metrics"].items()}

    assert {"drift from the base model", "forgetting", "pass@k"} & set(
        gap(report_records.changed(source, rename))
    ) == open_


def test_curves_of_seeds_are_averaged_where_all_have_them():
    first = {1.0: 1.0, 2.0: 2.0, 3.0: 3.0}
    second = {1.0: 3.0, 3.0: 5.0, 4.0: 9.0}
    line, _ = curves._line("sft", [first, second])
    assert line.points == ((1.0, 2.0), (3.0, 4.0))
    assert line.band == ((1.0, 1.0, 3.0), (3.0, 3.0, 5.0))
    broken, _ = curves._line("sft", [first, second, {1.0: None, 3.0: 1.0}])
    assert broken.points == ((1.0, None), (3.0, 3.0))
    assert broken.band == (), "a shade would close over the gap"


def with_scores(source, by_seed, last="finished"):
    """The source with fine-tuning by sft alone and these scores, its last run of a status."""
    runs = [run for run in source.reported(BEFORE) if run.label == "sft"]
    made = []
    for run, scores in zip(runs, by_seed, strict=True):
        record = run.record.model_copy(update={"status": last if run is runs[-1] else "finished"})
        made.append(replace(run, result=replace(run.result, scores={"sampled": scores}), record=record))
    return replace(source, runs=tuple(made), base=None)


def test_pass_at_k_counts_whole_scores_at_powers_of_two_and_the_largest(source):
    half = ((1.0, 0.5, 0.0, 0.0, 0.0, 0.9), (0.5, 0.5, 0.5, 0.5, 0.5, 0.5))
    all_right = ((1.0,) * 6, (1.0,) * 6)
    [chart] = curves.pass_curves(with_scores(source, [half, all_right, all_right])).charts
    assert chart.x_ticks == (1.0, 2.0, 4.0, 6.0)
    [line] = chart.lines
    # Of six samples one is right: k of them hold it with a chance of k / 6; the other problem is never solved.
    assert [value for _, value in line.points] == pytest.approx([(k / 6 / 2 + 2) / 3 for k in (1, 2, 4, 6)])
    assert [high for _, _, high in line.band] == [1.0] * 4
    assert all(0.0 <= low < value for (_, low, _), (_, value) in zip(line.band, line.points, strict=True))
    wrong = ((0.0,) * 6, (0.0,) * 6)
    [chart] = curves.pass_curves(with_scores(source, [half, wrong, wrong])).charts
    assert [low for _, low, _ in chart.lines[0].band] == [0.0] * 4


def test_unfinished_runs_are_in_no_curve_of_pass_at_k(source):
    right, wrong = ((1.0, 1.0),), ((0.0, 0.0),)
    [chart] = curves.pass_curves(with_scores(source, [right, right, wrong], "running")).charts
    assert [value for _, value in chart.lines[0].points] == [1.0, 1.0]
    [chart] = curves.pass_curves(with_scores(source, [right, right, wrong])).charts
    assert [value for _, value in chart.lines[0].points] == pytest.approx([2 / 3, 2 / 3])
