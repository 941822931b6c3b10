"""Comparisons that were stopped, broke off, or are small: a page each, with no claim that the records do not hold."""

import json
import shutil

import pytest

import report_records
from ballast.report.build import build
from ballast.report.render import html, markdown_text
from ballast.report.source import load


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return report_records.comparison(tmp_path_factory.mktemp("whole") / "lab", random=True)


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "lab")
    (tmp_path / "lab" / "summary.json").unlink()
    return tmp_path / "lab"


def shown(folder):
    """The report, written out both ways."""
    report = build(load([folder]))
    assert html(report).endswith("</html>\n")
    assert markdown_text(report).startswith("# lab")
    return report


def gaps(report):
    return " ".join(next(one for one in report.sections if one.id == "gaps").notes)


def gone(folder, *patterns):
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path)


def test_a_plan_alone(folder):
    gone(folder, "cells", "base")
    report = shown(folder)
    assert report.answer[0] == "After fine-tuning, nothing has been measured yet."
    assert report.answer[2].startswith("Not measured: 22 planned runs, ")
    assert report.status.endswith("0 runs finished, 22 planned but missing")
    assert [section.id for section in report.sections] == ["gaps", "settings"]


def test_the_base_model_alone(folder):
    gone(folder, "cells", "base/rl")
    report = shown(folder)
    assert report.answer[0].startswith("After fine-tuning, nothing has been measured")
    [table] = next(one for one in report.sections if one.id == "results").tables
    assert [row[0].text for row in table.rows] == ["base", "sft", "prift-mass", "eksft", "random"]


def test_stopped_before_the_baseline_was_run(folder):
    gone(folder, "cells/sft-*", "cells/prift-mass-*s44", "base/rl")
    report = shown(folder)
    assert "sft, which differences are taken to, was not measured; finish its runs" in report.answer[0]
    assert report.cautions == ("Unfinished: the figures are of the finished runs, and may change.",)
    assert "cells/prift-mass-lr0.0003-s44" in gaps(report)
    assert "and 3 more" not in gaps(report)


def test_many_missing_runs_are_counted_and_some_named(folder):
    gone(folder, "cells/*-s4?")
    named = gaps(shown(folder)).partition("0.0003-s43 and ")
    assert named[0].startswith("21 runs not finished: cells/sft-lr0.0003-s42, cells/prift-mass-lr0.0003-s42, ")
    assert named[0].count("cells/") == 8
    assert named[2].startswith("13 more. ")


def test_rl_of_some_seeds_and_some_objectives(folder):
    gone(folder, "cells/eksft-*/rl", "cells/prift-mass-*s43/rl", "base/rl/s44")
    report = shown(folder)
    assert "eksft was not measured here" in report.answer[1]
    assert "eksft after RL" in report.answer[2]
    [table] = next(one for one in report.sections if one.id == "results").tables
    rows = {row[0].text: row for row in table.rows}
    assert rows["prift-mass"][2].detail.endswith(", 2 seeds")
    assert rows["eksft"][2].text == "–"
    assert "1 seed" not in report.answer[1]


def test_every_run_broke_off(folder):
    for path in (folder / "cells").glob("*/run.json"):
        mark = json.loads(path.read_text())["cell"]
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        path.write_text(json.dumps({"schema": 1, "status": "failed", "error": "Error: no", "recipe": {}, "cell": mark}))
        (path.parent / "error.txt").write_text("Traceback (most recent call last): …")
    gone(folder, "base/rl")
    report = shown(folder)
    assert "24 failed" in report.status
    assert "sft (seed 42, rate 3e-4) failed: Error: no" in gaps(report)
    assert report.answer[0].startswith("After fine-tuning, nothing has been measured")


def test_a_diverged_objective_without_figures(folder):
    for path in folder.glob("cells/eksft-*"):
        for file in (path / "evals.jsonl", path / "rl" / "evals.jsonl"):
            if file.exists():
                lines = [json.loads(line) for line in file.read_text().splitlines()]
                for task in lines[-1]["tasks"]:
                    if "nll" in task["metrics"]:
                        task["metrics"]["nll"] |= {"value": None, "low": None, "high": None}
                file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        logs = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        logs = [{**log, "nll": float("nan")} if log.get("step", 0) > 24 and "nll" in log else log for log in logs]
        (path / "metrics.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
    report = shown(folder)
    assert report.cautions[0].startswith("eksft in fine-tuning logged values that are not finite")
    before, _ = next(one for one in report.sections if one.title == "forgetting: all metrics").tables
    [eksft] = [row for row in before.rows if row[0].text == "eksft"]
    assert eksft[before.columns.index("nll ↓")].text == "–"


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ({"objectives": ["prift-mass"]}, "the base model"),
        ({"objectives": ["sft"], "seeds": 1, "then": None}, "one seed cannot tell"),
        (
            {"objectives": ["sft", "eksft"], "seeds": 1, "rates": [1e-4], "choose_by": None},
            "one seed cannot tell luck from a difference",
        ),
    ],
)
def test_the_smallest_comparisons(tmp_path, compare, words):
    report = shown(report_records.comparison(tmp_path / "lab", **compare))
    assert words in report.answer[0] or "no objective beats the base model" in report.answer[0]
    charts = [chart for section in report.sections for chart in section.charts]
    assert charts
