"""The report of a comparison: the answer, figures equal to the records', one page that holds everything, inert text."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import report_records
from ballast.records.tokens import TokensRecord
from ballast.report import write_report
from ballast.report.build import build
from ballast.report.render import html, markdown_text, tokens_html
from ballast.report.source import load

VOID = {"meta", "link", "br", "wbr"}
KNOWN = """html head meta link title style body header footer section nav div p h1 h2 h3 ul li a table thead tbody tr th
td small span b bdi pre figure figcaption svg g path text rect details summary wbr"""
NASTY = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "javascript:alert(1)",
    "[x](javascript:alert(1))",
    "\u202egnp.exe",
    "{{ 7 * 7 }}",
    "a | b\n# head",
    "</style><style>*{display:none}</style>",
    "</title></pre></details>`a` ``b & <b> 'c' \"d",
)


class Page(HTMLParser):
    """Elements, attributes and text of a page; complains where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = report_records.comparison(tmp_path_factory.mktemp("report") / "lab")
    (made / "tokens.json").write_text(json.dumps(report_records.tokens()))
    return made


@pytest.fixture(scope="module")
def source(folder):
    return load([folder])


@pytest.fixture(scope="module")
def report(source):
    return build(source)


def accuracy(summary, label):
    """The accuracy of a label after SFT, in a summary as plain data."""
    [row] = [row for row in summary["rows"] if row["label"] == label]
    return row["stages"]["before_rl"]["tasks"]["greedy"]["accuracy"]


def test_the_answer_says_what_to_do_with_the_figures_of_the_summary(report, source):
    after_sft, after_rl, unmeasured = report.answer
    rows = {row.label: row for row in source.summary.rows}
    result, base = (rows[label].result("before_rl", "greedy", "accuracy") for label in ("prift-mass", "base"))
    gain, wide = result.to_baseline.over_seeds.value, result.to_baseline.over_both
    assert after_sft.startswith(
        f"After fine-tuning, use prift-mass: +{gain:.3f} ({wide.low:.3f} to {wide.high:.3f}) greedy accuracy over sft, "
        "3 seeds; sft is the runner-up. "
    )
    assert f"prift-mass {result.over_seeds.value:.3f}" in after_sft
    assert f"base model {base.over_seeds.value:.3f}" in after_sft
    assert after_rl.startswith("After reinforcement learning, ")
    assert unmeasured.startswith("Not measured: ")
    assert all(sentence.endswith(".") for sentence in report.answer)


def test_terminal_page_and_summary_say_the_same(report, source):
    from ballast.compare.view import verdict_lines

    assert verdict_lines(source.summary) == list(report.answer[:2])


def test_answers_stand_beside_every_accuracy(source):
    def cut(summary):
        for row in summary["rows"]:
            row["stages"]["before_rl"]["answers"] = {"greedy": {"total": 72, "cut_off": 9, "right": 0}}

    table = build(report_records.changed(source, cut)).sections[0].tables[0]
    column = table.columns.index("after SFT")
    assert {row[column].note for row in table.rows} == {"12.5% cut off, 0 of 72 right"}


def test_equal_rows_have_no_best(source):
    def level(summary):
        for row in summary["rows"]:
            row["stages"]["before_rl"]["tasks"]["greedy"]["accuracy"]["over_seeds"]["value"] = 0.0

    table = build(report_records.changed(source, level)).sections[0].tables[0]
    column = table.columns.index("after SFT")
    assert not any(row[column].best for row in table.rows)


def test_another_metric_decides_where_asked(source):
    assert "sampled pass@4" in build(source, metric="sampled/pass@4").answer[0]
    report = build(source, metric="forgetting/nll")
    assert "forgetting nll" in report.answer[0]
    assert "Lower is better" in report.sections[0].lead


def test_the_best_of_a_metric_where_less_is_better_has_the_least(source):
    table = build(source, metric="forgetting/nll").sections[0].tables[0]
    column = table.columns.index("after SFT")
    values = {row[0].text: row[column] for row in table.rows if row[0].text != "base"}
    [best] = [label for label, cell in values.items() if cell.best]
    assert float(values[best].text) == min(float(cell.text) for cell in values.values())


@pytest.mark.parametrize(("stage", "head"), [("before_rl", "after SFT"), ("after_rl", "after RL")])
def test_the_table_has_every_row_with_its_interval(report, source, stage, head):
    table = report.sections[0].tables[0]
    column = table.columns.index(head)
    for row, shown in zip(source.summary.rows, table.rows, strict=True):
        found = row.result(stage, "greedy", "accuracy")
        interval = found.over_both or found.over_items
        low, high = max(interval.low, 0.0), min(interval.high, 1.0)
        assert shown[0].text == row.label
        assert shown[column].text == f"{found.over_seeds.value:.3f}"
        assert shown[column].detail == f"{low:.3f} to {high:.3f}"


def test_pass_at_k_comes_from_the_scores_by_enumeration(report, source):
    from itertools import combinations

    section = next(section for section in report.sections if section.id == "pass")
    [chart] = [chart for chart in section.charts if "after SFT" in chart.title]
    runs = [run for run in source.reported("before_rl") if run.label == "sft"]
    expected = []
    for run in runs:
        chosen = [[any(pair) for pair in combinations(given, 2)] for given in run.result.scores["sampled"]]
        expected.append(sum(sum(one) / len(one) for one in chosen) / len(chosen))
    [line] = [line for line in chart.lines if line.label == "sft"]
    assert dict(line.points)[2.0] == pytest.approx(sum(expected) / len(expected))
    assert [line.label for line in chart.lines] == ["sft", "prift-mass", "eksft", "base"]


def test_curves_are_means_over_seeds_and_span_them(report, source):
    section = next(section for section in report.sections if section.id == "training")
    [chart] = [chart for chart in section.charts if chart.title == "Negative log-likelihood of trained tokens"]
    [line] = [line for line in chart.lines if line.label == "sft"]
    logged = [run.log[0].values["nll"] for run in source.reported("before_rl") if run.label == "sft"]
    assert len(logged) == 3
    assert line.points[0] == (8.0, pytest.approx(sum(logged) / 3))
    assert line.band[0] == (8.0, min(logged), max(logged))


@pytest.mark.parametrize(("metric", "sign"), [("greedy/accuracy", 1), ("forgetting/nll", -1)])
def test_gains_point_up_where_the_metric_is_better(source, metric, sign):
    task, name = metric.split("/")
    drift = next(section for section in build(source, metric=metric).sections if section.id == "drift")
    [dot] = [dot for dot in drift.charts[0].dots if (dot.label, dot.stage) == ("eksft", "after RL")]
    [row] = [row for row in source.summary.rows if row.label == "eksft"]
    tasks = row.stages["after_rl"].tasks
    assert dot.y.value == pytest.approx(sign * tasks[task][name].to_start.over_seeds.value)
    assert dot.y.low < dot.y.value < dot.y.high
    assert dot.x.value == pytest.approx(tasks["forgetting"]["base_kl"].over_seeds.value)
    assert drift.charts[0].base == (0.0, 0.0)


def test_what_was_not_measured_is_read_off_the_records(source, tmp_path):
    notes = " ".join(next(section for section in build(source).sections if section.id == "gaps").notes)
    assert "The best rate is at the end of the sweep for sft (highest, 3e-4)" in notes
    assert "No reinforcement learning" not in notes
    assert "pass@k" not in notes
    bare = report_records.comparison(tmp_path / "bare", then=None, seeds=1, rates=[1e-4], choose_by=None)
    for path in bare.glob("**/evals.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [{**line, "tasks": [task for task in line["tasks"] if task["name"] == "greedy"]} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (bare / "summary.json").unlink()
    report = build(load([bare]))
    notes = " ".join(next(section for section in report.sections if section.id == "gaps").notes)
    for words in ("No reinforcement learning", "a single seed", "one learning rate", "base_kl", "kind: nll", "pass@k"):
        assert words in notes
    assert report.answer[2].endswith("; more below.")


def test_every_section_of_a_whole_comparison_is_there(report):
    ids = [section.id for section in report.sections]
    assert ids == [
        *("results", "drift", "pass", "task-2", "task-3", "training", "rl", "rates", "weights", "gaps", "settings"),
    ]


def test_the_page_is_whole_and_loads_nothing(folder, tmp_path):
    page, text = write_report([folder], output=tmp_path)
    written = page.read_text()
    parsed = Page(written)
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "img", "iframe", "object", "embed", "form", "base")]
    addresses = [given[key] for _, given in parsed.tags for key in ("src", "href", "srcset", "action") if key in given]
    assert [one for one in addresses if not one.startswith("#")] == ["data:,"]
    assert "default-src 'none'" in written
    assert not re.search(r"@import|url\(|https?:", written)
    assert 'font: 16px/1.5 -apple-system, "Segoe UI"' in written, "the style sheet as it is, not escaped"
    ids = {given["id"] for _, given in parsed.tags if "id" in given}
    assert {one[1:] for one in addresses if one.startswith("#")} <= ids
    assert len(written) < 400_000
    assert text.read_text().startswith("# lab: comparison of objectives")


def test_the_same_records_give_the_same_bytes(folder, tmp_path):
    first = [path.read_bytes() for path in write_report([folder], output=tmp_path / "a")]
    assert first == [path.read_bytes() for path in write_report([folder], output=tmp_path / "b")]


def test_markdown_tables_have_as_many_cells_in_every_row(report):
    text = markdown_text(report)
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert len(tables) >= 8
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(widths) == 1, table[0]
    for sentence in report.answer:
        assert sentence.split(",")[0] in text


def test_the_recipe_in_the_report_loads_as_the_recipe_that_was_run(report, folder, tmp_path):
    from ballast.config.recipe import load_recipe

    [settings] = [section for section in report.sections if section.id == "settings"]
    [(heading, text)] = settings.code
    (tmp_path / "again.yaml").write_text(text)
    assert heading.startswith("ballast compare")
    assert load_recipe(tmp_path / "again.yaml").resolved() == report_records.recipe(folder).resolved()


@pytest.mark.parametrize("nasty", NASTY)
def test_text_from_records_is_inert(nasty, tmp_path):
    run = report_records.run(tmp_path / "run", "sft", status="finished")
    report_records.run(tmp_path / "other", "dft", base=False)
    report_records.change(run / "run.json", objective={"name": nasty, "note": nasty}, commit=nasty, device=nasty)
    report_records.change(run / "run.json", recipe__model__path=nasty, recipe__training__optim=nasty)
    (tmp_path / "run" / "tokens.json").write_text(json.dumps(report_records.tokens([(nasty, "a", nasty, "b", nasty)])))
    report = build(load([tmp_path / "run", tmp_path / "other"]))
    page = html(report)
    parsed = Page(page)
    assert {tag for tag, _ in parsed.tags} <= set(re.findall(r"\w+", KNOWN))
    assert not [name for _, given in parsed.tags for name in given if name.startswith("on")]
    addresses = {given["href"] for _, given in parsed.tags if "href" in given}
    assert {one for one in addresses if not one.startswith("#")} == {"data:,"}
    assert "\u202e" not in page
    shown = "".join(parsed.text)
    assert all(part in shown for part in nasty.replace("\u202e", "⟨U+202E⟩").splitlines())
    text = markdown_text(report)
    assert "\u202e" not in text
    outside = re.sub(r"^(`{3,})yaml\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\)<\w|(?<!\\)\]\(|^# head", outside, re.MULTILINE)


@pytest.mark.parametrize("nasty", NASTY)
def test_text_from_a_record_of_tokens_is_inert(nasty):
    record = report_records.tokens([(nasty, "a", nasty, "b", nasty)])
    record |= {"live": nasty, "reference": nasty}
    for one in record["objectives"]:
        one |= {"label": f"{one['label']} {nasty}", "note": nasty}
        one["rows"][0]["selected"] = [nasty] * len(one["rows"][0]["selected"])
    page = tokens_html(TokensRecord.model_validate_json(json.dumps(record)))
    parsed = Page(page)
    assert {tag for tag, _ in parsed.tags} <= set(re.findall(r"\w+", KNOWN))
    assert not [name for _, given in parsed.tags for name in given if name.startswith("on")]
    assert [tag for tag, _ in parsed.tags].count("style") == 1
    assert "\u202e" not in page
    classes = {given.get("class") for tag, given in parsed.tags if tag == "span"}
    assert classes <= {"of", "none", "t negative", *(f"t w{shade}" for shade in range(10))}


def test_a_page_of_tokens_has_one_table_for_each_objective_and_row():
    record = report_records.tokens_record([("a", "b", "c"), ("</span><script>", "b", "<b>", "d")])
    parsed = Page(tokens_html(record))
    tables = [given for tag, given in parsed.tags if tag == "table"]
    assert len(tables) == 4
    assert "script" not in {tag for tag, _ in parsed.tags}
    shades = [given["class"] for tag, given in parsed.tags if tag == "span" and given.get("class", "").startswith("t ")]
    assert {"t w0", "t w5"} <= set(shades)


def test_the_package_brings_its_templates(folder):
    from importlib import resources

    there = {file.name for file in resources.files("ballast.report").joinpath("templates").iterdir()}
    assert {"page.html.j2", "parts.html.j2", "report.html.j2", "report.md.j2", "style.css", "tokens.html.j2"} <= there


def test_importing_the_report_loads_no_torch():
    import subprocess
    import sys

    modules = "ballast.report.source, ballast.report.render, ballast.report.build, ballast.pipeline.inspect"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_summary_that_lacks_a_finished_run_is_made_again(folder, tmp_path):
    there = tmp_path / "copy"
    shutil.copytree(folder, there)
    partial = report_records.comparison(tmp_path / "less", leave_out=lambda path: path.startswith("cells/eksft"))
    shutil.copy(partial / "summary.json", there / "summary.json")
    fresh, stale = load([there]).summary, json.loads((partial / "summary.json").read_text())
    assert [row["label"] for row in stale["rows"] if row["stages"]] == ["base", "sft", "prift-mass"]
    assert [row.label for row in fresh.rows if row.stages] == ["base", "sft", "prift-mass", "eksft"]


def test_a_summary_of_the_runs_that_are_there_is_taken_as_it_is(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "summary.json"
    report_records.change(path, rows__1__stages__before_rl__tasks__greedy__accuracy__over_seeds__value=0.125)
    assert load([path.parent]).summary.rows[1].result("before_rl", "greedy", "accuracy").over_seeds.value == 0.125


def test_a_summary_without_its_cells_is_enough(folder, tmp_path):
    for name in ("compare.json", "summary.json"):
        shutil.copy(folder / name, Path(tmp_path) / name)
    report = build(load([tmp_path]))
    assert report.answer[0] == build(load([folder])).answer[0]
    assert "training" not in [section.id for section in report.sections]
