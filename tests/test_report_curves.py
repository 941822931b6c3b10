"""Curves of training and RL, and what the records leave open: figures by other ways than the report's own."""

import json
from dataclasses import replace

import numpy as np
import pytest

import report_records
from ballast.report.build import build
from ballast.report.charts.data import BASE, Line, LineChart
from ballast.report.gaps import gaps
from ballast.report.sections import curves
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


def changed(source, change):
    """The source with its summary's rows and tasks changed in place by a function."""
    summary = json.loads(json.dumps(source.summary))
    change(summary)
    return replace(source, summary=summary)


def test_random_weights_are_left_out_where_they_press_the_others_flat(source):
    training = section(build(source), "training")
    drawn = {chart.title: [line.label for line in chart.lines] for chart in training.charts}
    assert drawn["Negative log-likelihood of what is trained on"] == ["sft", "prift-mass", "eksft"]
    assert drawn["Entropy on what is trained on"] == ["sft", "prift-mass", "eksft", "random"]
    logged = [run.metrics for run in source.reported(BEFORE) if run.label == "random"]
    ends = [sum(logs[at]["nll"] for logs in logged) / 3 for at in (0, 5)]
    assert training.notes == (
        "random is left out where it would press the others flat; Negative log-likelihood of what is trained on: "
        f"from {ends[0]:.3f} to {ends[1]:.3f}.",
    )


@pytest.mark.parametrize(("height", "kept"), [(1.7, True), (1.9, False)])
def test_how_far_is_too_far_is_relative(source, height, kept):
    others = Line("sft", ((1.0, 0.0), (2.0, 1.0)))
    chart = LineChart("t", "x", "y", (others, Line("random", ((1.0, 0.5), (2.0, height)))))
    shown, left = curves._readable(source, chart)
    assert [line.label for line in shown.lines] == ["sft", "random"][: 1 + kept]
    assert [line.label for line in left] == ["random"][kept:]
    alone = LineChart("t", "x", "y", (Line("random", ((1.0, 0.5), (2.0, 9.0))),))
    assert curves._readable(source, alone) == (alone, ())


def test_a_curve_of_rewards_is_not_drawn_twice(source):
    titles = [chart.title for chart in section(build(source), "rl").charts]
    assert titles == ["Reward of the samples", "Prompts whose answers differ in reward"]


def test_many_steps_are_means_of_blocks_of_one_size(source):
    [chart, _] = section(build(source), "rl").charts
    logs = [[log["reward"] for log in run.metrics] for run in source.reported(AFTER) if run.label == "sft"]
    assert len(logs[0]) == 30
    [line] = [line for line in chart.lines if line.label == "sft"]
    blocks = np.array(logs).reshape(3, 15, 2).mean(axis=2)
    assert [at for at, _ in line.points] == [1.5 + 2 * place for place in range(15)]
    assert [value for _, value in line.points] == pytest.approx(blocks.mean(axis=0))
    assert [low for _, low, _ in line.band] == pytest.approx(blocks.min(axis=0))
    assert [high for _, _, high in line.band] == pytest.approx(blocks.max(axis=0))
    assert "a point is the mean of up to 2 logged steps" in section(build(source), "rl").lead
    assert "logged steps" not in section(build(source), "training").lead


@pytest.mark.parametrize(
    ("logged", "sizes"), [(15, [1] * 15), (16, [2] * 8), (40, [3] * 12 + [2] * 2), (31, [3] * 9 + [2] * 2)]
)
def test_blocks_differ_by_one_step_at_most(logged, sizes):
    line, block = curves._line("sft", [{float(step): 1.0 for step in range(logged)}])
    assert len(line.points) == len(sizes)
    assert block == max(sizes)
    assert sorted(map(len, curves._blocks(list(range(logged)), block)), reverse=True) == sizes


def test_a_value_that_is_no_number_is_a_gap_of_its_block_and_told(source, tmp_path):
    run = report_records.run(tmp_path / "run")
    logs = [{"step": step, "nll": 1.0, "loss": 1.0} for step in range(1, 31)]
    logs[4]["nll"] = float("nan")
    (run / "metrics.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
    report = build(load([run]))
    [line] = section(report, "training").charts[0].lines
    assert [place for place, (_, value) in enumerate(line.points) if value is None] == [2]
    assert line.band == ()
    assert report.cautions == (
        "sft in fine-tuning logged values that are no finite number, as training that diverges does; "
        "the curves have gaps there.",
    )
    assert build(source).cautions == ()


def test_the_base_after_fine_tuning_is_in_no_chart_of_rl(source):
    bare = replace(source, runs=tuple(run for run in source.runs if run.label != BASE))
    before, after = section(build(bare), "pass").charts
    assert "base" in [line.label for line in before.lines]
    assert "base" not in [line.label for line in after.lines]


def test_rates_at_the_end_are_said_of_those_that_have_them(source):
    every = "rates beyond the ends of the sweep (where every objective was best)"
    assert every in gap(source)

    def inside(summary):
        summary["rows"][1]["edge"] = None

    two = gap(changed(source, inside))
    assert "rates beyond the ends of the sweep (where prift-mass and eksft were best)" in two
    assert "prift-mass (highest, 3e-4) and eksft (highest, 3e-4)" in " ".join(two.values())

    def another(summary):
        inside(summary)
        summary["rows"][2]["edge"] = None

    assert "rates beyond the ends of the sweep (where eksft was best)" in gap(changed(source, another))


def test_one_seed_anywhere_is_a_gap(source):
    assert "other seeds" not in gap(source)

    def once(summary):
        summary["rows"][2]["stages"][AFTER]["seeds"] = [42]

    def planned(summary):
        summary["seeds"]["report"] = [42]
        for row in summary["rows"]:
            row["stages"] = {}

    assert "other seeds" in gap(changed(source, once))
    assert "other seeds" in gap(changed(source, planned))


@pytest.mark.parametrize(
    ("renamed", "open_"),
    [
        ({}, set()),
        ({"base_kl": "x"}, {"drift from the start"}),
        ({"base_kl": "demonstrations_kl"}, set()),
        ({"nll": "x"}, {"forgetting"}),
        ({"nll": "forgetting"}, set()),
        ({"nll": "bits_per_character"}, set()),
        ({"pass@4": "x"}, {"pass@k"}),
    ],
)
def test_abilities_are_told_by_the_names_of_metrics(source, renamed, open_):
    def rename(summary):
        for task in summary["tasks"]:
            task["metrics"] = {renamed.get(name, name): facts for name, facts in task["metrics"].items()}

    assert {"drift from the start", "forgetting", "pass@k"} & set(gap(changed(source, rename))) == open_


def test_curves_of_seeds_are_averaged_where_all_have_them():
    first = {1.0: 1.0, 2.0: 2.0, 3.0: 3.0}
    second = {1.0: 3.0, 3.0: 5.0, 4.0: 9.0}
    line, _ = curves._line("sft", [first, second])
    assert line.points == ((1.0, 2.0), (3.0, 4.0))
    assert line.band == ((1.0, 1.0, 3.0), (3.0, 3.0, 5.0))
    broken, _ = curves._line("sft", [first, second, {1.0: None, 3.0: 1.0}])
    assert broken.points == ((1.0, None), (3.0, 3.0))
    assert broken.band == (), "a shade would close over the gap"


def with_scores(source, by_seed, status="finished"):
    """The source with fine-tuning by sft alone, its samples scored so."""
    runs = [run for run in source.reported(BEFORE) if run.label == "sft"]
    made = []
    for run, scores in zip(runs, by_seed, strict=True):
        [measured] = run.measured.values()
        given = replace(measured, scores={"sampled": scores})
        made.append(replace(run, measured={"trained": given}, status=status if run is runs[-1] else "finished"))
    return replace(source, runs=tuple(made), start=None)


def test_pass_at_k_counts_whole_scores_at_powers_of_two_and_the_largest(source):
    half = ((1.0, 0.5, 0.0, 0.0, 0.0, 0.9), (0.5, 0.5, 0.5, 0.5, 0.5, 0.5))
    all_right = ((1.0,) * 6, (1.0,) * 6)
    [chart] = curves.pass_curves(with_scores(source, [half, all_right, all_right])).charts
    assert chart.places == (1.0, 2.0, 4.0, 6.0)
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
    [chart] = curves.pass_curves(with_scores(source, [right, right, wrong], "unfinished")).charts
    assert [value for _, value in chart.lines[0].points] == [1.0, 1.0]
    [chart] = curves.pass_curves(with_scores(source, [right, right, wrong])).charts
    assert [value for _, value in chart.lines[0].points] == pytest.approx([2 / 3, 2 / 3])
