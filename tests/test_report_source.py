"""What a report takes: comparisons, runs, folders of runs, unfinished ones; and what it refuses, naming the file."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import report_records
from ballast.cli import app
from ballast.compare.plan import Plan
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.records import write as records
from ballast.report.build import build
from ballast.report.render import html
from ballast.report.source import load


@pytest.fixture
def run(tmp_path):
    return report_records.run(tmp_path / "sft", "sft")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "small"
    return report_records.comparison(folder, objectives=["sft", "eksft"], seeds=2, rates=[1e-4], choose_by=None)


def test_runs_are_compared_with_sft_on_the_same_items(tmp_path):
    for label, skill in (("dft", 0.6), ("sft", 0.4), ("prift-mass", 0.8)):
        report_records.run(tmp_path / label, label, base=label == "dft", skill=skill)
    report = build(load([tmp_path / "dft", tmp_path / "sft", tmp_path / "prift-mass"]))
    assert report.answer[0].startswith("After fine-tuning, nothing can be concluded from greedy accuracy: one seed")
    assert "Reinforcement learning was not run" in report.answer[1]
    assert "other seeds" in report.answer[2]
    table = report.sections[0].tables[0]
    assert [row[0].text for row in table.rows] == ["base", "dft", "sft", "prift-mass"]
    [against] = [row[table.columns.index("after SFT, against sft")] for row in table.rows if row[0].text == "dft"]
    assert " to " in against.detail, "an interval over items"
    assert against.note == "", "nothing was tested"


def test_seeds_of_one_setting_share_a_row(tmp_path):
    for seed in (1, 2, 3):
        report_records.run(tmp_path / f"run{seed}", "sft", seed=seed, base=seed == 1)
    source = load([tmp_path])
    assert [row.label for row in source.summary.rows] == ["base", "sft"]
    assert source.summary.rows[1].stages["before_rl"].seeds == (1, 2, 3)
    assert "over the base model" in build(source).answer[0]


def test_two_settings_of_one_objective_go_by_their_folders(tmp_path):
    report_records.run(tmp_path / "low", "sft", seed=1)
    report_records.run(tmp_path / "high", "sft", seed=1, training={"learning_rate": 1e-3})
    source = load([tmp_path / "low", tmp_path / "high"])
    assert [row.label for row in source.summary.rows][1:] == ["low", "high"]


def test_a_folder_of_runs_stands_for_its_runs(tmp_path):
    for label in ("sft", "dft"):
        report_records.run(tmp_path / label, label, base=label == "sft")
    (tmp_path / "reference").mkdir()
    (tmp_path / "results.json").write_text("{}")
    assert {run.label for run in load([tmp_path]).runs} == {"sft", "dft"}


def test_an_unfinished_run_is_shown_as_unfinished_with_its_curves(tmp_path, run):
    report_records.run(tmp_path / "dft", "dft", status="running", base=False)
    with (tmp_path / "dft" / records.METRICS).open("a") as file:
        file.write('{"loss": 0.1, "st')
    report = build(load([tmp_path / "sft", tmp_path / "dft"]))
    assert report.status == "lab on lab:train (64 rows): 2 objectives, 1 seed; 1 run finished, 1 unfinished"
    assert report.cautions[0].startswith("Unfinished")
    assert any(
        "1 run not finished, with curves up to where they stopped: dft." in note
        for section in report.sections
        for note in section.notes
    )
    training = next(section for section in report.sections if section.id == "training")
    assert {line.label for line in training.charts[0].lines} == {"sft", "dft"}
    assert "dft was not measured here" in report.answer[0]
    [row] = [row for row in report.sections[0].tables[0].rows if row[0].text == "dft"]
    assert {cell.text for cell in row[1:-1]} == {"–"}


def test_a_run_that_was_not_measured_yet_counts_as_unfinished(run):
    (run / records.EVALS).write_text("")
    report = build(load([run]))
    assert report.status.endswith("; 0 runs finished, 1 unfinished")
    assert report.answer[0] == "After fine-tuning, nothing has been measured yet."


def test_the_result_of_a_single_rl_run_is_not_what_it_started_from(run):
    lines = (run / records.EVALS).read_text().splitlines()
    before, after = ({**json.loads(lines[-1]), "model": name} for name in ("before rl", "after rl"))
    report_records.change(run / records.RUN, rl={"steps": 30})
    (run / records.EVALS).write_text(json.dumps(before) + "\n")
    assert [one.done for one in load([run]).runs] == [False]
    (run / records.EVALS).write_text("".join(json.dumps(one) + "\n" for one in (before, after)))
    source = load([run])
    assert [(one.stage, one.done) for one in source.runs] == [("after_rl", True)]
    assert build(source).answer[0].startswith("After fine-tuning, nothing has been measured")
    assert build(source).answer[1].startswith("After reinforcement learning, nothing can be concluded")
    [table] = build(source).sections[0].tables
    assert table.columns == ("", "after RL", "gain by RL", "rate")
    assert [row[2].text for row in table.rows] == ["–", "–"], "no fine-tuning to gain over"


def test_a_diverged_run_has_gaps_in_its_curves(run):
    lines = [json.loads(line) for line in (run / records.METRICS).read_text().splitlines()]
    lines[2]["nll"] = float("nan")
    lines[3]["nll"] = float("inf")
    (run / records.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = next(section for section in build(load([run])).sections if section.id == "training")
    values = [value for _, value in training.charts[0].lines[0].points]
    assert [value is None for value in values] == [False, False, True, True, False, False]


def test_missing_and_failed_cells_are_named(compared, tmp_path):
    folder = tmp_path / "part"
    shutil.copytree(compared, folder)
    gone, broken = "eksft-lr0.0001-s43", "eksft-lr0.0001-s42"
    shutil.rmtree(folder / "cells" / gone)
    path = folder / "cells" / broken / records.RUN
    mark = json.loads(path.read_text())["cell"]
    shutil.rmtree(path.parent)
    failed = {"schema": 1, "status": "failed", "error": "RuntimeError: out of memory", "recipe": {}, "cell": mark}
    records.write_json(path, failed)
    report = build(load([folder]))
    assert "1 failed" in report.status
    assert "4 planned but missing" in report.status
    notes = " ".join(note for section in report.sections for note in section.notes)
    assert f"cells/{gone}" in notes
    assert "RuntimeError: out of memory" in notes
    assert "4 planned runs" in report.answer[2]


def test_a_stopped_cell_leaves_the_report_as_it_was_but_for_the_gap(compared, tmp_path):
    folder = tmp_path / "stopped"
    shutil.copytree(compared, folder)
    path = folder / "cells" / "sft-lr0.0001-s42" / records.RUN
    report_records.change(path, status="running")
    (folder / "summary.json").unlink()
    report = build(load([folder]))
    assert "1 unfinished" in report.status
    assert any("cells/sft-lr0.0001-s42" in gap for gap in report.sections[-2].notes)


def test_different_models_or_data_are_cautions(tmp_path):
    report_records.run(tmp_path / "a", "sft")
    report_records.run(tmp_path / "b", "dft", model={"path": "other"}, data={"train": ["more.jsonl"]})
    cautions = build(load([tmp_path / "a", tmp_path / "b"])).cautions
    assert any("different models" in caution for caution in cautions)
    assert any("different data" in caution for caution in cautions)


def broken(change):
    """A refusal case: what is done to a run's folder."""
    return pytest.param(change, id=change.__name__)


def no_folder(run):
    shutil.rmtree(run)
    return "no such folder"


def a_file(run):
    shutil.rmtree(run)
    run.write_text("x")
    return "is a file"


def no_records(run):
    (run / records.RUN).unlink()
    return "holds no records of runs"


def cut_short(run):
    path = run / records.RUN
    path.write_text(path.read_text()[:200])
    return r"run\.json: is not JSON.*cut short"


def a_list(run):
    (run / records.RUN).write_text("[1, 2]")
    return r"run\.json: holds \[1, 2\], not a record"


def no_status(run):
    (run / records.RUN).write_text('{"schema": 1}')
    return r"run\.json: status is missing"


def no_schema(run):
    (run / records.RUN).write_text('{"status": "finished"}')
    return r"run\.json: has no `schema`, so another version of ballast wrote it"


def a_learning_rate_in_words(run):
    report_records.change(run / records.RUN, recipe__training__learning_rate="fast")
    return "recipe.training.learning_rate is 'fast', not a number"


def metrics_cut_short_in_a_finished_run(run):
    with (run / records.METRICS).open("a") as file:
        file.write('{"step": 9')
    return r"metrics\.jsonl:8: is not JSON"


def nan_in_a_result(run):
    report_records.change(run / records.EVALS, tasks__0__metrics__accuracy__value=float("nan"))
    return r"evals\.jsonl:1: tasks\.0\.metrics\.accuracy\.value: should be a finite number; got nan"


def infinity_in_an_interval(run):
    report_records.change(run / records.EVALS, tasks__0__metrics__accuracy__high=float("inf"))
    return r"accuracy\.high: should be a finite number; got inf"


BOUNDS = {"low": 0.9, "high": 0.1}


def an_interval_upside_down(run):
    report_records.change(
        run / records.EVALS, tasks__0__metrics__accuracy__low=0.9, tasks__0__metrics__accuracy__high=0.1
    )
    return "goes from 0.9 down to 0.1"


def a_result_that_is_a_number(run):
    report_records.change(run / records.EVALS, tasks__0__metrics__accuracy=0.5)
    return r"tasks\.0\.metrics\.accuracy: .*got 0\.5"


def tasks_that_are_text(run):
    report_records.change(run / records.EVALS, tasks="all of them")
    return r"evals\.jsonl:1: tasks: should be a valid array"


def a_score_in_words(run):
    path = next((run / "evals" / "trained").glob("greedy.jsonl"))
    report_records.change(path, scores=["right"])
    return r"greedy\.jsonl:1: scores\.0: .*got 'right'"


def no_text(run):
    (run / records.RUN).write_bytes(b"\xff\xfe\x00")
    return r"run\.json: is not JSON"


def brackets_in_thousands(run):
    (run / records.RUN).write_text("[" * 100_000)
    return r"run\.json: is not JSON"


def tokens_that_do_not_fit(run):
    record = report_records.tokens()
    record["rows"][0]["entropy"] = [0.1]
    (run / "tokens.json").write_text(json.dumps(record))
    return r"tokens\.json: rows\.0: row 1: 5 trained tokens, and not as many statistics"


def tokens_with_nan(run):
    record = report_records.tokens()
    record["objectives"][0]["rows"][0]["weight"][0] = float("nan")
    (run / "tokens.json").write_text(json.dumps(record))
    return r"tokens\.json: objectives\.0\.rows\.0\.weight\.0: should be a finite number; got nan"


REFUSED = (
    no_folder,
    a_file,
    no_records,
    cut_short,
    a_list,
    no_status,
    no_schema,
    a_learning_rate_in_words,
    metrics_cut_short_in_a_finished_run,
    nan_in_a_result,
    infinity_in_an_interval,
    an_interval_upside_down,
    a_result_that_is_a_number,
    tasks_that_are_text,
    a_score_in_words,
    no_text,
    brackets_in_thousands,
    tokens_that_do_not_fit,
    tokens_with_nan,
)


@pytest.mark.parametrize("change", [broken(change) for change in REFUSED])
def test_records_that_cannot_be_used_are_refused_by_name(change, run):
    words = change(run)
    before = sorted(run.parent.rglob("*"))
    with pytest.raises(BallastError, match=words) as caught:
        load([run])
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(run.parent.rglob("*")) == before


def test_a_folder_named_twice_is_refused(run):
    with pytest.raises(BallastError, match="is named twice"):
        load([run, run.parent / "." / run.name])


def test_the_same_run_in_two_folders_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "again")
    with pytest.raises(BallastError, match="same setting with the same seed"):
        load([run, tmp_path / "again"])


def test_tasks_that_share_a_name_only_are_refused(run, tmp_path):
    other = report_records.run(tmp_path / "dft", "dft", base=False)
    report_records.change(other / records.EVALS, tasks__0__settings__limit=5)
    with pytest.raises(BallastError, match="task 'greedy' was measured with other settings"):
        load([run, other])


def test_other_items_under_one_name_are_refused(run, tmp_path):
    other = report_records.run(tmp_path / "dft", "dft", base=False)
    path = other / "evals" / "trained" / "greedy.jsonl"
    path.write_text(path.read_text().replace("greedy 3", "another 3"))
    with pytest.raises(BallastError, match="other items"):
        load([run, other])


def test_a_comparison_shares_no_table_with_others(compared, run):
    with pytest.raises(BallastError, match="is a comparison"):
        load([compared, run])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"rows__1__stages__before_rl__tasks__greedy__accuracy__over_seeds__value": float("nan")},
            r"over_seeds\.value: should be a finite number; got nan",
        ),
        ({"rows": "many"}, "rows: should be a valid array"),
        ({"rows__1__label": 7}, r"rows\.1\.label: should be a valid string; got 7"),
    ],
)
def test_a_summary_that_cannot_be_shown_is_refused(compared, tmp_path, change, words):
    for name in ("compare.json", "summary.json"):
        shutil.copy(compared / name, tmp_path / name)
    report_records.change(tmp_path / "summary.json", **change)
    with pytest.raises(BallastError, match=words) as caught:
        load([tmp_path])
    assert "summary.json" in str(caught.value)


def test_a_comparison_with_a_broken_recipe_and_no_summary_is_refused(compared, tmp_path):
    shutil.copytree(compared, tmp_path / "copy")
    (tmp_path / "copy" / "summary.json").unlink()
    report_records.change(tmp_path / "copy" / "compare.json", recipe={"model": 7})
    with pytest.raises(BallastError, match=r"compare\.json: its recipe cannot be read"):
        load([tmp_path / "copy"])


def test_the_command_writes_both_files_and_says_where(run, tmp_path):
    done = CliRunner().invoke(app, ["report", str(run), "--output", str(tmp_path / "there")])
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(tmp_path / "there" / name) for name in ("report.html", "report.md")]
    assert all(Path(line).is_file() for line in done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "--metric", "greedy"], "--metric greedy: was not measured"),
        (["{run}", "--output", "{run}/run.json"], "is a file; name a folder"),
        (["{run}/evals"], "holds no records"),
    ],
)
def test_the_command_refuses_in_one_line_and_leaves_nothing(run, arguments, words):
    before = sorted(run.rglob("*"))
    done = CliRunner().invoke(app, ["report", *(one.format(run=run) for one in arguments)])
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(run.rglob("*")) == before


def test_tasks_may_be_titled_in_one_run_and_not_in_another(run, tmp_path):
    other = report_records.run(tmp_path / "other", "dft", base=False)
    lines = [json.loads(line) for line in (other / "evals.jsonl").read_text().splitlines()]
    for task in (task for line in lines for task in line["tasks"]):
        task["settings"]["title"] = "Sums"
    (other / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [row.label for row in load([run, other]).summary.rows] == ["base", "sft", "dft"]


def test_a_title_that_is_given_later_heads_the_page_of_the_same_runs(compared, tmp_path):
    from ballast.compare.run import write_summary
    from ballast.records.folder import Store

    there = tmp_path / "copy"
    shutil.copytree(compared, there)
    assert build(load([there]), metric="greedy/accuracy").sections[0].title == "greedy: accuracy"
    titled = json.loads((there / "compare.json").read_text())["recipe"]
    [greedy] = [task for task in titled["evaluation"]["tasks"] if task["name"] == "greedy"]
    greedy["title"] = "Sums </h2>"
    report_records.change(there / "compare.json", recipe=titled)
    plan = Plan(Recipe.model_validate({key: value for key, value in titled.items() if value is not None}))
    write_summary(Store(there), plan)
    report = build(load([there]), metric="greedy/accuracy")
    assert report.sections[0].title == "Sums </h2>: accuracy"
    assert "<h2>Sums &lt;/h2&gt;: accuracy</h2>" in html(report)
