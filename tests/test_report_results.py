"""What the sections of a report show: tables and charts against the records, by other ways than the report's own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import report_records
from ballast.compare.figures import RL, SFT, Metric
from ballast.compare.statistics import holm, over_both, over_items
from ballast.report.sections.results import drift, learning_rates, other_metrics, results
from ballast.report.source import load

BEFORE, AFTER = "before_rl", "after_rl"
ACCURACY = Metric("greedy", "accuracy", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four rows, RL after three of them, random weights."""
    return report_records.with_random(tmp_path_factory.mktemp("sections") / "lab")


@pytest.fixture(scope="module")
def source(folder):
    return load([folder])


def scores(folder, path, model="after_rl"):
    file = next((folder / path / "evals").glob(f"{model.replace('_', '*')}/greedy.jsonl"))
    return np.array([json.loads(line)["scores"][0] for line in file.read_text().splitlines()])


def section(report, name):
    return next(one for one in report.sections if one.id == name)


def accuracy(row, stage):
    return row.stages[stage].tasks["greedy"]["accuracy"]


def test_differences_to_rl_from_the_base_model_are_of_the_same_seed_and_item(source, folder):
    differences = source.against_base(AFTER, "greedy", "accuracy")
    assert list(differences) == ["sft", "prift-mass", "eksft"]
    tables = {}
    for label in differences:
        cells = {seed: f"cells/{label}-lr0.0003-s{seed}/rl" for seed in (42, 43, 44)}
        pairs = [(scores(folder, cell), scores(folder, f"base/rl/s{seed}")) for seed, cell in cells.items()]
        tables[label] = np.stack([mine - theirs for mine, theirs in pairs])
    tested = [stats.ttest_1samp(table.mean(axis=1), 0.0).pvalue for table in tables.values()]
    for (label, one), p, adjusted in zip(differences.items(), tested, holm(tested), strict=True):
        table = tables[label]
        assert one.seeds == (42, 43, 44)
        assert one.values == pytest.approx(table.mean(axis=1))
        assert one.over_items.plain() == over_items(table).to_dict()
        assert one.over_both.plain() == over_both(table).to_dict()
        assert (one.p, one.p_holm) == (pytest.approx(p), pytest.approx(adjusted))


def test_before_rl_they_are_the_summarys_own(source):
    differences = source.against_base(BEFORE, "greedy", "accuracy")
    own = {row.label: accuracy(row, BEFORE).to_start for row in source.summary.rows if row.label in differences}
    assert list(own) == ["sft", "prift-mass", "eksft"]
    assert {k: one.over_both for k, one in differences.items()} == {k: one.over_both for k, one in own.items()}
    assert [one.p_holm for one in differences.values()] == holm([one.p for one in own.values()])


def test_without_scores_they_are_over_seeds_alone(source):
    bare = replace(source, runs=()).against_base(AFTER, "greedy", "accuracy")
    for label, one in source.against_base(AFTER, "greedy", "accuracy").items():
        assert (bare[label].over_items, bare[label].over_both) == (None, None)
        assert bare[label].values == one.values


def test_scores_of_other_items_are_not_paired(source):
    runs = [replace(one, result=replace(one.result, prompts={})) if one.label == "sft" else one for one in source.runs]
    differences = replace(source, runs=tuple(runs)).against_base(AFTER, "greedy", "accuracy")
    assert differences["sft"].over_both is None
    assert differences["eksft"].over_both is not None


def test_a_seed_that_the_base_model_lacks_is_no_pair(folder, tmp_path):
    less = report_records.comparison(tmp_path / "less", leave_out=lambda path: path == "base/rl/s44")
    differences = load([less]).against_base(AFTER, "greedy", "accuracy")
    assert [one.seeds for one in differences.values()] == [(42, 43)] * 3
    none = load([report_records.comparison(tmp_path / "none", leave_out=lambda path: path.startswith("base/rl"))])
    assert none.against_base(AFTER, "greedy", "accuracy") == {}
    assert not [column for column in results(none, ACCURACY).tables[0].columns if "base + RL" in column]


def test_the_main_table_has_the_base_model_to_beat_beside_the_baseline(source):
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
    assert [rows[label][0].detail for label in rows] == ["not fine-tuned", "", "", "", "from random weights"]
    for label, one in source.against_base(AFTER, "greedy", "accuracy").items():
        cell = rows[label][6]
        assert cell.text == f"{one.over_seeds.value:+.3f}".replace("-", "−")
        assert cell.note.startswith(f"p {one.p_holm:.3f}, ")
    assert {rows["base"][at].text for at in (4, 5, 6)} == {rows["random"][at].text for at in (2, 3, 4, 5, 6)} == {"–"}
    gains = {row.label: accuracy(row, AFTER) for row in source.summary.rows[:4]}
    assert rows["base"][3].text == f"+{gains['base'].to_start.over_seeds.value:.3f}"
    assert rows["eksft"][3].text == f"+{gains['eksft'].gain.over_seeds.value:.3f}"
    assert (rows["sft"][7].text, rows["sft"][7].detail) == ("3e-4", "highest tried")

    def without(summary):
        summary["rows"][3]["stages"][AFTER]["tasks"]["greedy"]["accuracy"]["gain"] = None

    [bare] = results(report_records.changed(source, without), ACCURACY).tables
    assert bare.rows[3][3].text == "–", "what it gained over the base model is no gain by RL"


def test_the_words_of_the_table_are_explained(source):
    notes = results(source, ACCURACY).notes
    assert notes[0].startswith("“after SFT” is after fine-tuning with the row's objective, “after RL” after GRPO")
    assert "which fine-tuning has to beat" in notes[1]
    assert notes[2] == "random is sft from random weights: what the demonstrations teach without the base model."
    assert notes[3] == "Intervals: 95%, over seeds and items (3 seeds each); for base: over items, for these runs."
    assert "Holm-adjusted for the number of objectives" in notes[4]
    alone = source.summary.model_copy(update={"rows": source.summary.rows[1:2]})
    plain = results(replace(source, summary=alone), ACCURACY)
    assert not [note for note in plain.notes if note.startswith(("base", "random", "Differences"))]
    assert plain.tables[0].columns == ("", "after SFT", "after RL", "gain by RL", "rate"), "nothing to compare with"


def test_the_chart_draws_the_base_model_as_lines(source):
    chart, differences = results(source, ACCURACY).charts
    values = [accuracy(source.summary.rows[0], stage).over_seeds.value for stage in (BEFORE, AFTER)]
    assert chart.references == ((values[0], "base"), (values[1], "base + RL"))
    named = [(row.label, row.stage) for row in chart.rows]
    assert named[:3] == [("base", "before any training"), ("base", RL), ("sft", SFT)]
    assert differences.references == ((0.0, "sft"),)
    assert set(differences.labels) == {"prift-mass", "eksft"}


def test_rl_from_the_base_model_is_in_gain_and_drift(source):
    against_kl, against_forgetting = drift(source.summary, ACCURACY).charts
    for chart in (against_kl, against_forgetting):
        assert [(dot.label, dot.stage) for dot in chart.dots][:2] == [("base", RL), ("sft", SFT)]
    tasks = source.summary.rows[0].stages[AFTER].tasks
    assert against_kl.dots[0].y.value == tasks["greedy"]["accuracy"].to_start.over_seeds.value
    assert against_kl.dots[0].x.value == tasks["forgetting"]["base_kl"].over_seeds.value
    assert against_forgetting.dots[0].x.value == tasks["forgetting"]["nll"].to_start.over_seeds.value


def test_other_metrics_have_a_line_each_and_the_best_of_the_objectives(source):
    before, after = other_metrics(source.summary, ACCURACY).tables
    assert before.columns == ("", "base", "sft", "prift-mass", "eksft", "random")
    assert after.columns == ("", "base", "sft", "prift-mass", "eksft")
    for table, stage in ((before, BEFORE), (after, AFTER)):
        for line in table.rows:
            name, task = line[0].text.split()[0], line[0].detail
            values = {}
            for label, cell in zip(table.columns[1:], line[1:], strict=True):
                [row] = [row for row in source.summary.rows if row.label == label]
                values[label] = row.stages[stage].tasks[task][name].over_seeds.value
                assert cell.text == f"{values[label]:.3f}"
            best = {label: values[label] for label in ("sft", "prift-mass", "eksft")}
            least = min if "↓" in line[0].text else max
            marked = [label for label, cell in zip(table.columns[1:], line[1:], strict=True) if cell.best]
            assert marked == [label for label in best if best[label] == least(best.values())]


def test_pass_at_k_is_ordered_by_k(source):
    names = ["answer_tokens", "pass@1", "pass@8", "pass@2", "entropy", "pass@4"]
    facts = {name: {"better": "higher" if "@" in name else None} for name in names}

    def two_tasks(summary):
        summary["tasks"] = [{**summary["tasks"][0], "name": task, "metrics": facts} for task in ("a", "b")]

    section = other_metrics(report_records.changed(source, two_tasks).summary, None)
    shown = [row[0].text.removesuffix(" ↑") for row in section.tables[0].rows]
    ordered = ["answer_tokens", "pass@1", "pass@2", "pass@4", "pass@8", "entropy"]
    assert shown == ordered + ordered


def test_rates_show_every_score_and_mark_the_one_taken(source):
    made = learning_rates(source.summary)
    [table] = made.tables
    assert table.columns == ("", "1e-4", "3e-4")
    rows = {row.label: row for row in source.summary.rows}
    for label, *cells in table.rows:
        row = rows[label.text]
        assert [cell.text for cell in cells] == [f"{point.score.value:.3f}" for point in row.tuning]
        assert [cell.best for cell in cells] == [point.rate == row.rate for point in row.tuning]
    assert made.charts[0].x_ticks == (1e-4, 3e-4)
    assert "(1042, 1043)" in made.lead


def test_objectives_that_share_the_best_mean_share_the_star(source):
    def equal(summary):
        accuracy = [row["stages"][BEFORE]["tasks"]["greedy"]["accuracy"] for row in summary["rows"]]
        accuracy[3]["over_seeds"]["value"] = accuracy[2]["over_seeds"]["value"]

    [table] = results(report_records.changed(source, equal), ACCURACY).tables
    assert [row[0].text for row in table.rows if row[1].best] == ["prift-mass", "eksft"]


def test_numbers_of_seeds_that_differ_are_in_the_cells_alone(source):
    def fewer(summary):
        for row in summary["rows"][:2]:
            row["stages"][AFTER]["seeds"] = [42]
            found = row["stages"][AFTER]["tasks"]["greedy"]["accuracy"]
            found["over_seeds"]["low"] = found["over_both"] = None

    made = results(report_records.changed(source, fewer), ACCURACY)
    assert "each" not in made.notes[3]
    assert made.notes[3].endswith("; for base, base after RL and sft after RL: over items, for these runs.")
    rows = {row[0].text: row for row in made.tables[0].rows}
    assert rows["sft"][2].detail.endswith(", 1 seed")
    assert rows["eksft"][2].detail.endswith(", 3 seeds")
    assert "seed" not in rows["base"][2].detail


def test_one_seed_leaves_nothing_to_test(tmp_path):
    made = load([report_records.comparison(tmp_path / "lab", seeds=1)])
    notes = results(made, ACCURACY).notes
    assert notes[-1].endswith("with one seed, or no spread over seeds, none can be tested.")
    assert not [note for note in notes if "Holm" in note]
    assert results(made, ACCURACY).tables[0].rows[2][4].note == ""
