"""What the sections of a report show: tables and charts against the records, by other ways than the report's own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import report_records
from ballast.compare.statistics import holm, over_both, over_items
from ballast.report import curves, figures, settings
from ballast.report.charts import BASE, RL, SFT, Line, LineChart
from ballast.report.figures import Metric
from ballast.report.others import everything
from ballast.report.pairs import against_start
from ballast.report.results import results
from ballast.report.source import load
from ballast.report.sweep import sweep
from ballast.report.view import build

BEFORE, AFTER = "before_rl", "after_rl"
ACCURACY = Metric("greedy", "accuracy", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four rows, RL after three of them, random weights."""
    made = report_records.comparison(
        tmp_path_factory.mktemp("sections") / "lab",
        random=True,
        leave_out=lambda path: path.endswith("/rl") and "random" in path,
    )
    for path in made.glob("**/metrics.jsonl"):
        logs = [json.loads(line) for line in path.read_text().splitlines()]
        if path.parent.name.startswith("random"):
            logs = [{**log, "nll": log["nll"] + 5} if "nll" in log else log for log in logs]
        logs = [{**log, "correct": log["reward"]} if "reward" in log else log for log in logs]
        path.write_text("".join(json.dumps(log) + "\n" for log in logs))
    return made


@pytest.fixture(scope="module")
def source(folder):
    return load([folder])


def scores(folder, path, model="after_rl"):
    file = next((folder / path / "evals").glob(f"{model.replace('_', '*')}/greedy.jsonl"))
    return np.array([json.loads(line)["scores"][0] for line in file.read_text().splitlines()])


def section(report, name):
    return next(one for one in report.sections if one.id == name)


def test_differences_to_rl_from_the_start_are_of_the_same_seed_and_item(source, folder):
    found = against_start(source, AFTER, ACCURACY)
    assert list(found) == ["sft", "prift-mass", "eksft"]
    tables = {}
    for label in found:
        cells = {seed: f"cells/{label}-lr0.0003-s{seed}/rl" for seed in (42, 43, 44)}
        pairs = [(scores(folder, cell), scores(folder, f"base/rl/s{seed}")) for seed, cell in cells.items()]
        tables[label] = np.stack([mine - theirs for mine, theirs in pairs])
    tested = [stats.ttest_1samp(table.mean(axis=1), 0.0).pvalue for table in tables.values()]
    for (label, one), p, adjusted in zip(found.items(), tested, holm(tested), strict=True):
        table = tables[label]
        assert one["seeds"] == [42, 43, 44]
        assert one["values"] == pytest.approx(table.mean(axis=1))
        assert one["over_items"] == over_items(table).to_dict()
        assert one["over_both"] == over_both(table).to_dict()
        assert (one["p"], one["p_holm"]) == (pytest.approx(p), pytest.approx(adjusted))


def test_before_rl_they_are_the_summarys_own(source):
    found = against_start(source, BEFORE, ACCURACY)
    rows = {row["label"]: row for row in source.summary["rows"]}
    own = {label: rows[label]["stages"][BEFORE]["tasks"]["greedy"]["accuracy"]["to_start"] for label in found}
    assert {label: one["over_both"] for label, one in found.items()} == {k: one["over_both"] for k, one in own.items()}
    assert [one["p_holm"] for one in found.values()] == holm([one["p"] for one in own.values()])


def test_without_scores_they_are_over_seeds_alone(source):
    bare = replace(source, runs=())
    for label, one in against_start(bare, AFTER, ACCURACY).items():
        assert (one["over_items"], one["over_both"]) == (None, None)
        assert one["values"] == against_start(source, AFTER, ACCURACY)[label]["values"]


def test_scores_of_other_items_are_not_paired(source):
    moved = [
        replace(run, measured={name: replace(one, prompts={}) for name, one in run.measured.items()})
        if run.label == "sft"
        else run
        for run in source.runs
    ]
    found = against_start(replace(source, runs=tuple(moved)), AFTER, ACCURACY)
    assert found["sft"]["over_both"] is None
    assert found["eksft"]["over_both"] is not None


def test_a_seed_that_the_start_lacks_is_no_pair(folder, tmp_path):
    less = report_records.comparison(tmp_path / "less", leave_out=lambda path: path == "base/rl/s44")
    found = against_start(load([less]), AFTER, ACCURACY)
    assert [one["seeds"] for one in found.values()] == [[42, 43]] * 3
    none = report_records.comparison(tmp_path / "none", leave_out=lambda path: path.startswith("base/rl"))
    made = load([none])
    assert against_start(made, AFTER, ACCURACY) == {}
    table = results(made, ACCURACY).tables[0]
    assert not [head for head in table.columns if "base + RL" in head]


def test_the_main_table_has_the_start_to_beat_beside_the_baseline(source):
    made = results(source, ACCURACY)
    [table] = made.tables
    assert table.columns == (
        "",
        "after SFT",
        "after RL",
        "gain by RL",
        "after SFT, against sft",
        "after RL, against sft",
        "after RL, against base + RL",
        "rate",
    )
    rows = {row[0].text: row for row in table.rows}
    assert list(rows) == ["base", "sft", "prift-mass", "eksft", "random"]
    assert [rows[label][0].detail for label in rows] == ["the start", "", "", "", "from random weights"]
    found = against_start(source, AFTER, ACCURACY)
    for label, one in found.items():
        cell = rows[label][6]
        assert cell.text == f"{one['over_seeds']['value']:+.3f}".replace("-", "−")
        assert cell.note.startswith(f"p {one['p_holm']:.3f}, ")
    assert {rows["base"][at].text for at in (4, 5, 6)} == {rows["random"][at].text for at in (2, 3, 4, 5, 6)} == {"–"}
    gains = {row["label"]: row["stages"][AFTER]["tasks"]["greedy"]["accuracy"] for row in source.summary["rows"][:4]}
    assert rows["base"][3].text == f"+{gains['base']['to_start']['over_seeds']['value']:.3f}"
    assert rows["eksft"][3].text == f"+{gains['eksft']['gain']['over_seeds']['value']:.3f}"
    assert (rows["sft"][7].text, rows["sft"][7].detail) == ("3e-4", "highest tried")


def test_the_words_of_the_table_are_explained(source):
    notes = results(source, ACCURACY).notes
    assert notes[0].startswith("“after SFT” is after fine-tuning with the row's objective, “after RL” after GRPO")
    assert "which fine-tuning has to beat" in notes[1]
    assert notes[2] == "random is sft from random weights: what the demonstrations teach without the start."
    assert notes[3] == (
        "Small figures are 95% intervals for other seeds and other items (3 seeds each); "
        "of base for other items with these runs."
    )
    assert "adjusted by Holm for the number of objectives" in notes[4]
    plain = results(replace(source, summary={**source.summary, "rows": source.summary["rows"][1:2]}), ACCURACY)
    assert not [note for note in plain.notes if note.startswith(("base", "random", "Differences"))]
    assert plain.tables[0].columns == ("", "after SFT", "after RL", "gain by RL", "rate"), "nothing to compare with"


def test_the_chart_draws_both_starts_as_lines(source):
    chart, differences = results(source, ACCURACY).charts
    base = source.summary["rows"][0]["stages"]
    values = [base[stage]["tasks"]["greedy"]["accuracy"]["over_seeds"]["value"] for stage in (BEFORE, AFTER)]
    assert chart.lines == ((values[0], "base"), (values[1], "base + RL"))
    assert [row[:2] for row in chart.rows][:3] == [("base", "before any training"), ("base", RL), ("sft", SFT)]
    assert differences.lines == ((0.0, "sft"),)
    assert {label for label, _, _ in differences.rows} == {"prift-mass", "eksft"}


def test_rl_from_the_start_is_in_gain_and_drift(source):
    for chart in section(build(source), "drift").charts:
        assert [(dot.label, dot.stage) for dot in chart.dots][:2] == [("base", RL), ("sft", SFT)]
    [dot, *_] = section(build(source), "drift").charts[0].dots
    found = source.summary["rows"][0]["stages"][AFTER]["tasks"]
    assert dot.y.value == found["greedy"]["accuracy"]["to_start"]["over_seeds"]["value"]
    assert dot.x.value == found["forgetting"]["base_kl"]["over_seeds"]["value"]
    rises = section(build(source), "drift").charts[1].dots
    assert rises[0].x.value == found["forgetting"]["nll"]["to_start"]["over_seeds"]["value"]


def test_other_metrics_have_a_line_each_and_the_best_of_the_objectives(source):
    before, after = everything(source.summary, ACCURACY).tables
    assert before.columns == ("", "base", "sft", "prift-mass", "eksft", "random")
    assert after.columns == ("", "base", "sft", "prift-mass", "eksft")
    for table, stage in ((before, BEFORE), (after, AFTER)):
        for line in table.rows:
            name, task = line[0].text.split()[0], line[0].detail
            values = {}
            for label, cell in zip(table.columns[1:], line[1:], strict=True):
                [row] = [row for row in source.summary["rows"] if row["label"] == label]
                values[label] = row["stages"][stage]["tasks"][task][name]["over_seeds"]["value"]
                assert cell.text == f"{values[label]:.3f}"
            best = {label: values[label] for label in ("sft", "prift-mass", "eksft")}
            least = min if "↓" in line[0].text else max
            marked = [label for label, cell in zip(table.columns[1:], line[1:], strict=True) if cell.best]
            assert marked == [label for label in best if best[label] == least(best.values())]


def test_pass_at_k_is_ordered_by_k():
    names = ["answer_tokens", "pass@1", "pass@8", "pass@2", "entropy", "pass@4"]
    facts = {name: {"better": "higher" if "@" in name else None} for name in names}
    tasks = [{"name": task, "metrics": facts} for task in ("a", "b")]
    made = everything({"tasks": tasks, "rows": []}, None)
    shown = [row[0].text.removesuffix(" ↑") for row in made.tables[0].rows]
    ordered = ["answer_tokens", "pass@1", "pass@2", "pass@4", "pass@8", "entropy"]
    assert shown == ordered + ordered


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


def test_a_value_that_is_no_number_is_a_gap_of_its_block_and_told(source, folder, tmp_path):
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


def test_the_base_after_fine_tuning_is_in_no_chart_of_rl(source, tmp_path):
    bare = replace(source, runs=tuple(run for run in source.runs if run.label != BASE))
    before, after = section(build(bare), "pass").charts
    assert "base" in [line.label for line in before.lines]
    assert "base" not in [line.label for line in after.lines]


def test_rates_show_every_score_and_mark_the_one_taken(source):
    made = sweep(source.summary)
    [table] = made.tables
    assert table.columns == ("", "1e-4", "3e-4")
    rows = {row["label"]: row for row in source.summary["rows"]}
    for label, *cells in table.rows:
        scored = [tried["score"]["value"] for tried in rows[label.text]["tuning"]]
        assert [cell.text for cell in cells] == [f"{value:.3f}" for value in scored]
        assert [cell.best for cell in cells] == [
            tried["rate"] == rows[label.text]["rate"] for tried in rows[label.text]["tuning"]
        ]
    assert made.charts[0].places == (1e-4, 3e-4)
    assert "(1042, 1043)" in made.lead


def test_settings_name_rl_and_what_few_objectives_have_of_their_own(source):
    made = settings.settings(source)
    facts = {row[0].text: row[1] for row in made.tables[0].rows}
    assert "steps 30" in facts["RL"].text
    assert "verifier ballast.lab.arithmetic:verify" in facts["RL"].text
    assert facts["training"].text == "num_train_epochs 4, per_device_train_batch_size 32"
    assert (facts["model"].text, facts["model"].detail) == ("lab", "llama, 1,217,280 parameters")
    runs = []
    for run in source.runs:
        own = dict(run.record["recipe"]["training"])
        if run.label == "eksft":
            own = {"max_steps": 10, "learning_rate": 1e-4, "num_train_epochs": 4}
        runs.append(replace(run, record={**run.record, "recipe": {**run.record["recipe"], "training": own}}))
    changed = settings.settings(replace(source, runs=tuple(runs)))
    objectives = {row[0].text: row[1] for row in changed.tables[1].rows}
    assert objectives["eksft"].note == "training: max_steps 10, per_device_train_batch_size as by default"
    assert [objectives[label].note for label in ("sft", "prift-mass", "random")] == ["", "", ""]
    assert [row[0].detail for row in changed.tables[1].rows] == ["rate 3e-4"] * 4


def test_the_status_says_what_was_trained_on_what(source, folder):
    assert build(source).status == (
        "lab on lab:train (64 rows): 3 objectives at 2 learning rates, 3 seeds, RL after each; 36 runs finished"
    )


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("accuracy", True),
        ("accuracy_x", True),
        ("chance", True),
        ("pass@8", True),
        ("mean@4", True),
        ("mixed@8", True),
        ("distinct@8", False),
        ("entropy", False),
        ("nll", False),
        ("surpass@8", False),
    ],
)
def test_shares_are_known_by_their_names(name, share):
    assert Metric("task", name, 1).share == share
    cut = figures.bounded(figures.Value(0.5, -0.2, 1.3), Metric("task", name, 1))
    assert (cut.low, cut.high) == (0.0, 1.0 if share else 1.3)
