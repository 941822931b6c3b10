"""What the sections of a report show: tables and charts against the records, by other ways than the report's own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import report_records
from ballast.compare.figures import RL, SFT, Metric
from ballast.compare.statistics import holm, over_both, over_items
from ballast.report.sections.results import drift, learning_rates, results
from ballast.report.sections.tasks import describes, heading, task_sections
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
    chart, _, differences = results(source, ACCURACY).charts
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


def upright(table):
    """The cells of a table by (label, metric), whichever side its labels are on."""
    heads = [line[0].text for line in table.rows]
    cells = {
        (head, column): cell
        for head, line in zip(heads, table.rows, strict=True)
        for column, cell in zip(table.columns[1:], line[1:], strict=True)
    }
    return cells if "base" in heads else {(label, metric): cell for (metric, label), cell in cells.items()}


def test_each_task_has_its_other_metrics_and_the_best_of_the_objectives(source):
    sections = {one.id: one for one in task_sections(source.summary, ACCURACY)}
    assert list(sections) == ["task-2", "task-3"], "the first task has the deciding metric alone"
    for task, name in (("sampled", "task-2"), ("forgetting", "task-3")):
        assert sections[name].title == f"{task}: all metrics"
        assert [table.caption for table in sections[name].tables] == ["after SFT", "after RL"]
        for table, stage in zip(sections[name].tables, (BEFORE, AFTER), strict=True):
            cells = upright(table)
            labels = list(dict.fromkeys(label for label, _ in cells))
            assert labels == ["base", "sft", "prift-mass", "eksft", *(["random"] if stage == BEFORE else [])]
            for metric in dict.fromkeys(metric for _, metric in cells):
                found = {row.label: row.result(stage, task, metric.split()[0]) for row in source.summary.rows}
                values = {label: one.over_seeds.value for label, one in found.items() if one is not None}
                assert {label: cells[label, metric].text for label in values} == {
                    label: f"{value:.3f}" for label, value in values.items()
                }
                best = {label: values[label] for label in ("sft", "prift-mass", "eksft")}
                least = min if "↓" in metric else max
                marked = [label for label in labels if cells[label, metric].best]
                assert marked == [label for label in best if best[label] == least(best.values())]


def test_the_longer_side_of_a_tasks_table_goes_down_the_page(source):
    [few, _] = task_sections(source.summary, ACCURACY)
    assert [line[0].text for line in few.tables[0].rows] == ["base", "sft", "prift-mass", "eksft", "random"]

    def more(summary):
        metrics = summary["tasks"][1]["metrics"]
        metrics |= {f"metric_{place}": metrics["pass@4"] for place in range(4)}
        for row in summary["rows"]:
            for stage in row["stages"].values():
                one = stage["tasks"]["sampled"]
                one |= {f"metric_{place}": one["pass@4"] for place in range(4)}

    [many, _] = task_sections(report_records.changed(source, more).summary, ACCURACY)
    for table in many.tables:
        assert [line[0].text for line in table.rows][:2] == ["mean@4 ↑", "pass@4 ↑"]
        assert len(table.rows) == 6
        assert table.columns[:3] == ("", "base", "sft")


def test_pass_at_k_is_ordered_by_k(source):
    names = ["answer_tokens", "pass@1", "pass@8", "pass@2", "entropy", "pass@4"]

    def many(summary):
        summary["tasks"] = [summary["tasks"][1]]
        [task] = summary["tasks"]
        task["metrics"] = {name: {"better": "higher" if "@" in name else None} for name in names}
        for row in summary["rows"]:
            for stage in row["stages"].values():
                stage["tasks"]["sampled"] = dict.fromkeys(names, stage["tasks"]["sampled"]["pass@4"])

    [section] = task_sections(report_records.changed(source, many).summary, None)
    shown = [row[0].text.removesuffix(" ↑") for row in section.tables[0].rows]
    assert shown == ["answer_tokens", "pass@1", "pass@2", "pass@4", "pass@8", "entropy"]


def with_answers(source, task="sampled", total=2400, cut=(0, 3, 1, 600, 0)):
    """The source with the answers of a task counted: of each row so many were cut off, twice as many after RL."""

    def change(summary):
        for row, count in zip(summary["rows"], cut, strict=True):
            for times, stage in enumerate(row["stages"].values(), start=1):
                stage["answers"] = {task: {"total": total, "cut_off": count * times, "right": 7}}

    return report_records.changed(source, change)


def test_cut_off_answers_have_a_column_and_a_chart_beside_accuracy(source):
    counted = with_answers(source)
    [section, _] = task_sections(counted.summary, ACCURACY)
    cells = upright(section.tables[0])
    shown = {label: (cell.text, cell.detail) for (label, metric), cell in cells.items() if metric == "answers cut off"}
    assert shown == {
        "base": ("0.0%", "0 of 2,400"),
        "sft": ("0.1%", "3 of 2,400"),
        "prift-mass": ("< 0.1%", "1 of 2,400"),
        "eksft": ("25.0%", "600 of 2,400"),
        "random": ("0.0%", "0 of 2,400"),
    }
    own, kl, cut, _ = results(counted, ACCURACY).charts
    assert cut.title == "sampled: answers cut off before they ended"
    assert [(row.label, row.stage) for row in cut.rows] == [(row.label, row.stage) for row in own.rows]
    assert [(row.label, row.stage) for row in kl.rows] == [(row.label, row.stage) for row in own.rows]
    values = {(row.label, row.stage): row.value.value for row in cut.rows}
    assert (values["eksft", SFT], values["eksft", RL]) == (0.25, 0.5)
    assert cut.references == ((0.0, "base"), (0.0, "base + RL"))
    assert next(row.note for row in cut.rows if row.label == "eksft") == "600 of 2,400 answers cut off"
    assert own.names == kl.names == cut.names == 2, "so that their rows lie at one height"


def test_no_chart_of_cut_off_answers_where_all_ended_but_a_note(source):
    ended = with_answers(source, cut=(0,) * 5)
    made = results(ended, ACCURACY)
    assert not [chart for chart in made.charts if "cut off" in chart.title]
    assert "No answer was cut off: all ended by themselves." in made.notes
    assert not [note for note in results(source, ACCURACY).notes if "cut off" in note], "nobody counted"


def test_the_kl_to_the_base_model_stands_beside_accuracy(source):
    [_, kl, _] = results(source, ACCURACY).charts
    assert (kl.title, kl.x) == ("KL to base on forgetting", "nats per token")
    found = {(row.label, row.stage): row for row in kl.rows}
    for row in source.summary.rows:
        for stage, name in ((BEFORE, SFT), (AFTER, RL)):
            if stage in row.stages and (row.label, stage) != ("base", BEFORE):
                one = row.result(stage, "forgetting", "base_kl")
                assert found[row.label, name].value.value == one.over_seeds.value
    assert found["sft", SFT].note == "3 seeds"
    assert found["base", "before any training"].note == ""
    assert 0.0 in kl.holds


def test_a_row_that_lacks_a_metric_keeps_its_place(source):
    def without(summary):
        for stage in summary["rows"][2]["stages"].values():
            del stage["tasks"]["forgetting"]["base_kl"]

    own, kl, *_ = results(report_records.changed(source, without), ACCURACY).charts
    assert [row.label for row in kl.rows] == [row.label for row in own.rows]
    assert [row.value for row in kl.rows if row.label == "prift-mass"] == [None, None]


def test_tasks_are_headed_by_their_title_and_say_what_they_measure(source):
    greedy, sampled, forgetting = source.summary.tasks
    assert describes(greedy) == (
        "Task greedy: answers judged by a verifier (ballast.lab.arithmetic:verify), 24 items of lab:test, "
        "temperature 0, up to 256 tokens."
    )
    assert "4 samples of each, temperature 1" in describes(sampled)
    assert describes(forgetting) == "Task forgetting: likelihood of given text, 24 items of lab:forgetting."
    assert heading(greedy) == "greedy"

    def titled(summary):
        summary["tasks"][0]["settings"]["title"] = "Sums of two digits"
        summary["tasks"][1]["settings"]["title"] = "The same, sampled"

    named = report_records.changed(source, titled)
    made = results(named, ACCURACY)
    assert made.title == made.charts[0].title == "Sums of two digits: accuracy"
    assert made.lead.startswith("Task greedy: ")
    assert task_sections(named.summary, ACCURACY)[0].title == "The same, sampled: all metrics"


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
