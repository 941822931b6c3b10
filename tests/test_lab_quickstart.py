"""The quickstart, cut down to a few problems and one epoch: every row, its metrics, and what it leaves behind."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ballast import BallastError, quickstart


@pytest.fixture
def small(monkeypatch):
    """A recipe of seconds: one epoch, eight problems each."""
    recipe = json.loads(json.dumps(quickstart.RECIPE))
    recipe["training"] |= {"num_train_epochs": 1, "logging_steps": 1}
    recipe["data"]["limit"] = 64
    for task in recipe["evaluation"]["tasks"]:
        task["limit"] = 8
    monkeypatch.setattr(quickstart, "RECIPE", recipe)


def test_every_objective_has_a_row_and_the_base_comes_first(small, tmp_path):
    shown = Console(file=StringIO(), width=200)
    output = tmp_path / "runs"
    results = quickstart.run_quickstart(output=output, seed=3, say=shown.print, rows=("prift-mass", "eksft"))
    assert [row["name"] for row in results["rows"]] == ["base", "prift-mass", "eksft"]
    for row in results["rows"]:
        for column in quickstart.COLUMNS:
            assert row["tasks"][column.task][column.metric]["value"] is not None, (row["name"], column)
    values = [row["tasks"]["sampled"]["base_kl"]["value"] for row in results["rows"]]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert min(values[1:]) > 1e-5
    assert json.loads((output / quickstart.RESULTS).read_text())["rows"] == results["rows"]
    logged = [json.loads(line) for line in (output / "prift-mass" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < logged[0]["weight_zero_share"] < 1
    lines = [line.split()[0] for line in shown.file.getvalue().splitlines() if re.match(r" *\S+ +\d\.\d", line)]
    assert lines == ["base", "prift-mass", "eksft"]
    # The last line says where the report is; it shows a row through both, the wrong result in it among its tokens.
    assert shown.file.getvalue().splitlines()[-1] == f"report: {output / 'report.html'}"
    page = (output / "report.html").read_text()
    assert "prift-mass" in page
    looked = json.loads((output / "tokens.json").read_text())
    assert [one["label"] for one in looked["objectives"]] == ["prift-mass", "eksft"]
    assert "".join(looked["rows"][0]["text"]).startswith("18+10+18-17=?")


def test_runs_go_unasked_into_the_first_free_folder(small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    for name in ("runs/quickstart", "runs/quickstart-2"):
        said = []
        quickstart.run_quickstart(say=said.append, rows=("sft",))
        assert said[-1] == f"report: {name}/report.html"
        assert (tmp_path / name / "report.html").is_file()
        assert (tmp_path / name / quickstart.RESULTS).is_file()


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(BallastError, match="not an empty folder"):
        quickstart.run_quickstart(output=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_every_system_has_its_row_or_its_line():
    expected = ["sft", "dft", "prift-prob", "prift-mass", "eksft", "ift", "gft", "self-train", "irft", "sft-half"]
    assert list(quickstart.ROWS) == expected
    for name in ("Self-Refine", "SEFT", "SPIN", "RFT", "ReFT", "code tasks"):
        assert name in quickstart.MORE
    for page in re.findall(r"docs/\S+\.md", quickstart.MORE):
        assert (Path(__file__).parent.parent / page).is_file(), page


def test_groups_are_judged_by_the_labs_own_verifier(small, monkeypatch, tmp_path):
    own = json.loads(json.dumps(quickstart.ROWS))
    own["gft"]["training"] |= {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 8}
    monkeypatch.setattr(quickstart, "ROWS", own)
    output = tmp_path / "runs"
    results = quickstart.run_quickstart(output=output, say=lambda _: None, rows=("gft",))
    assert [row["name"] for row in results["rows"]] == ["base", "gft"]
    logged = json.loads((output / "gft" / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["expert/reward"] == 1
    assert 0 < logged["own/reward"] < 1


def test_the_table_shows_no_markup_on_a_console_that_reads_none():
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    tasks = {column.task: {} for column in quickstart.COLUMNS}
    for column in quickstart.COLUMNS:
        tasks[column.task][column.metric] = estimate
    shown = Console(file=StringIO(), width=200, markup=False)
    shown.print(quickstart.table([{"name": "base", "tasks": tasks}]))
    assert "0.500 ±.100" in shown.file.getvalue()
    assert "[" not in shown.file.getvalue()
