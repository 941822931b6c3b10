"""The pages in a real browser: nothing logged, nothing asked for, readable on a phone and in the dark."""

import base64
import json
import re

import pytest

import browser as chromium
import report_records
from ballast.report import write_report
from ballast.report.build import build
from ballast.report.render import html, tokens_html
from ballast.report.source import load

NASTY = "</script><script>console.error('acted')</script><img src='http://e.example/x.png'>"
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = chromium.find()
    if program is None:
        pytest.skip("no Chromium here: install it (Debian: apt-get install chromium) or set BALLAST_TEST_CHROMIUM")
    with chromium.browser(tmp_path_factory.mktemp("profile"), program) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    made = report_records.comparison(folder / "lab", objectives=["sft", "prift-mass"], seeds=2, tuning_seeds=1)
    texts = [("6", "+", "8", "=", "1", "4", "#", "14"), (NASTY, "a", NASTY, "b" * 300)]
    (made / "tokens.json").write_text(json.dumps(report_records.tokens(texts)))
    report, _ = write_report([made])
    inspected = folder / "tokens.html"
    inspected.write_text(tokens_html(report_records.tokens_record(texts)))
    many = folder / "many.html"
    many.write_text(html(build(grown(load([made])))))
    single, _ = write_report([report_records.run(folder / "single")])
    found = {"report": report, "inspect": inspected, "wide": wide(folder / "wide"), "many": many}
    return found | {"single": single, "outlier": outlier(folder)}


def grown(source):
    """32 rows, whose names are HTML, long or alike, with answers cut off; eight tasks, one of them with such a name."""
    names = [NASTY, "W漢" * 60, "a" * 200, "prift-mass-with-a-long-label-0.0003", "prift-mass-with-a-long-label-0.001"]
    names += [f"objective-{place}" for place in range(26)]

    def change(summary):
        base, sft, other = summary["rows"][:3]
        other["stages"]["before_rl"]["answers"] = {"greedy": {"total": 2400, "cut_off": 31, "right": 9}}
        summary["rows"] = [base, sft, *({**json.loads(json.dumps(other)), "label": name} for name in names)]
        for place, row in enumerate(summary["rows"][2:]):
            for stage in row["stages"].values():
                for metric in [one for task in stage["tasks"].values() for one in task.values()]:
                    for known in (metric, metric.get("to_start") or {}):
                        for key in ("over_seeds", "over_items", "over_both"):
                            shift(known.get(key), place / 100)
        sampled = summary["tasks"][1]
        for name in (NASTY, *(f"task_{place}" for place in range(4))):
            summary["tasks"].append({**sampled, "name": name})
            for stage in [stage for row in summary["rows"] for stage in row["stages"].values()]:
                stage["tasks"][name] = stage["tasks"]["sampled"]

    return report_records.changed(source, change)


def shift(estimate, by):
    for key in ("value", "low", "high"):
        if estimate and estimate[key] is not None:
            estimate[key] += by


def outlier(folder):
    """A report with one row that has figures far off, and one run that diverged."""
    made = report_records.comparison(folder / "far", objectives=["sft", "dft", "ift", "eksft", "prift-mass"], then=None)

    def far(summary):
        [row] = [row for row in summary["rows"] if row["label"] == "eksft"]
        for task, name, by in (("forgetting", "base_kl", 7.0), ("forgetting", "nll", 9.0)):
            metric = row["stages"]["before_rl"]["tasks"][task][name]
            for one in (metric, metric["to_start"], metric["to_baseline"]):
                for key in ("over_seeds", "over_items", "over_both"):
                    shift(one.get(key), by)

    for path in made.glob("cells/eksft*/metrics.jsonl"):
        logs = [json.loads(line) for line in path.read_text().splitlines()]
        logs = [{**log, "nll": 1.8 ** log["step"]} if "nll" in log else log for log in logs]
        path.write_text("".join(json.dumps(log) + "\n" for log in logs))
    page = folder / "outlier.html"
    page.write_text(html(build(report_records.changed(load([made]), far))))
    return page


def wide(folder):
    """A report with twelve metrics, small negative figures and a label that is one long word."""
    for label in ("prift-mass", "W漢" * 60):
        run = report_records.run(folder / label[:9], label, base=label == "prift-mass")
        lines = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
        for line in lines:
            found = line["tasks"][0]["metrics"]
            found |= {f"metric_with_a_long_name_{place}": found["accuracy"] for place in range(12)}
        (run / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        logs = [{"step": step, "log_ratio": -0.0075 * step / 2} for step in (1, 2)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
    return write_report([folder])[0]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "inspect", "wide"])
def test_a_page_logs_nothing_asks_for_nothing_and_fits(browser, pages, name, width, dark):
    page = browser.open(pages[name], width=WIDTHS[width], dark=dark)
    seen = page.seen()
    assert seen.console == []
    assert seen.requests == []
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], (
        "the page itself never scrolls sideways"
    )
    assert page.evaluate("document.scripts.length + document.images.length") == 0
    assert page.evaluate("document.querySelectorAll('svg.chart').length") >= 2
    light = sum(map(int, page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)")))
    assert (light < 200) == dark


def test_text_can_be_read_on_a_phone(browser, pages):
    page = browser.open(pages["report"], width=390)
    shrunk = "[...document.querySelectorAll('svg.chart')].map(s => s.getBoundingClientRect().width / 360)"
    scales = page.evaluate(shrunk)
    assert min(scales) * 11 >= 9, "labels of charts, in pixels"
    smallest = (
        "[...document.querySelectorAll('p, td, th, small, li')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(page.evaluate(smallest)) >= 11
    answer = page.evaluate("document.querySelector('.answer').getBoundingClientRect().bottom")
    assert answer < 2 * 844, "the answer comes within two screens"


@pytest.mark.parametrize("width", WIDTHS.values())
@pytest.mark.parametrize("name", ["report", "wide"])
def test_the_labels_of_charts_lie_inside_them(browser, pages, name, width):
    assert browser.open(pages[name], width=width).evaluate(OUTSIDE) == []


OUTSIDE = """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(text => {
            const own = text.getBoundingClientRect();
            return own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1;
        }).map(text => text.textContent);
    })"""


@pytest.mark.parametrize("width", WIDTHS.values())
def test_short_labels_of_rows_are_not_broken(browser, pages, width):
    tall = """[...document.querySelectorAll('tbody th bdi')].filter(e => e.textContent.length < 12 &&
        e.getBoundingClientRect().height > 2 * parseFloat(getComputedStyle(e).lineHeight) + 1).map(e => e.innerText)"""
    assert browser.open(pages["wide"], width=width).evaluate(tall) == []


BROKEN = """[...document.querySelectorAll('th, td, th *, td *')].flatMap(cell => [...cell.childNodes]
    .filter(node => node.nodeType === 3)
    .flatMap(node => [...node.data.matchAll(/[A-Za-z0-9.@]+/g)].filter(word => {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        return word[0].length < 16 && new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1;
    }).map(word => word[0])))"""


@pytest.mark.parametrize("width", WIDTHS.values())
@pytest.mark.parametrize("name", ["report", "inspect", "wide"])
def test_no_word_of_a_table_is_broken(browser, pages, name, width):
    page = browser.open(pages[name], width=width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(BROKEN) == []


OVERLAPPING = """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    // Glyphs are lower than their line.
    const inner = r => [r.left + 0.5, r.top + r.height * 0.2, r.right - 0.5, r.bottom - r.height * 0.2];
    return texts.flatMap(([one, box], place) => texts.slice(place + 1).filter(([, other]) => {
        const [l, t, r, b] = inner(box), [left, top, right, bottom] = inner(other);
        return l < right && left < r && t < bottom && top < b;
    }).map(([other]) => one + ' / ' + other));
})"""


@pytest.mark.parametrize("width", [1680, 390])
@pytest.mark.parametrize("name", ["report", "many", "outlier", "single"])
def test_no_text_of_a_chart_lies_on_another_and_pages_fit(browser, pages, name, width):
    page = browser.open(pages[name], width=width, dark=width == 390)
    seen = page.seen()
    assert (seen.console, seen.requests) == ([], [])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPPING) == []
    assert page.evaluate("document.querySelectorAll('svg text.point').length") >= 8, "names at points"


def test_texts_that_overlap_would_be_told(browser, tmp_path):
    texts = "<text x='5' y='20'>one</text><text x='12' y='22'>other</text><text x='5' y='60'>third</text>"
    (tmp_path / "bad.html").write_text(f"<svg class='chart' width='200' height='90'>{texts}</svg>")
    assert browser.open(tmp_path / "bad.html", width=390).evaluate(OVERLAPPING) == ["one / other"]


def test_values_far_off_are_written_at_the_edge(browser, pages):
    page = browser.open(pages["outlier"], width=1280)
    edges = page.evaluate("[...document.querySelectorAll('svg text.edge')].map(e => e.textContent)")
    assert len(edges) >= 2
    assert any(float(edge.replace(",", "")) > 1000 for edge in edges), "the diverged run"
    inside = """[...document.querySelectorAll('svg .beyond')].every(e => {
        const own = e.getBoundingClientRect(), box = e.closest('svg').getBoundingClientRect();
        return own.left >= box.left - 1 && own.right <= box.right + 1 && own.top >= box.top - 1;
    })"""
    assert page.evaluate(inside)


def test_a_wide_screen_is_used_without_long_lines(browser, pages):
    page = browser.open(pages["outlier"], width=1680)
    right = "Math.max(...[...document.querySelectorAll('{}')].map(e => e.getBoundingClientRect().right))"
    assert page.evaluate(right.format("figure")) > 0.9 * 1680
    top = "document.querySelector('#results {}').getBoundingClientRect()"
    table, charts = (
        page.evaluate(f"(b => [b.left, b.top, b.right])({top.format(one)})") for one in (".table", ".drawn")
    )
    assert table[1] == charts[1], "the charts stand beside the table"
    assert table[2] < charts[0]
    beside = "document.querySelector('nav').getBoundingClientRect()"
    assert page.evaluate(f"{beside}.left > document.querySelector('.answer').getBoundingClientRect().right")
    characters = """Math.max(...[...document.querySelectorAll('p, li')].map(e => {
        const range = document.createRange();
        range.selectNodeContents(e);
        const lines = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
        return e.textContent.length / Math.max(lines.size, 1);
    }))"""
    assert page.evaluate(characters) <= 110, "letters of a line"
    for width, columns in ((1280, 3), (390, 1)):
        shown = "getComputedStyle(document.querySelector('.n3 .charts')).gridTemplateColumns.split(' ').length"
        assert browser.open(pages["report"], width=width).evaluate(shown) == columns


def test_rows_of_charts_side_by_side_lie_at_one_height(browser, pages):
    heights = """[...document.querySelectorAll('#results svg.chart')].slice(0, 3).map(svg =>
        [...svg.querySelectorAll('text.label')].map(e => Math.round(e.getBoundingClientRect().top)))"""
    own, kl, cut = browser.open(pages["many"], width=1280).evaluate(heights)
    assert len(own) == 33
    apart = [abs(one - other) for others in (kl, cut) for one, other in zip(own, others, strict=True)]
    assert max(apart) <= 1, "pixels"


def test_every_task_is_in_the_contents_and_has_a_heading(browser, pages):
    page = browser.open(pages["many"], width=1280)
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(e => [e.hash.slice(1), e.textContent])")
    heads = page.evaluate(
        "[...document.querySelectorAll('section')].map(e => [e.id, e.querySelector('h2').textContent])"
    )
    assert links == heads
    assert len([one for one, _ in links if one.startswith("task-")]) == 8
    assert [title for _, title in links if title == f"{NASTY}: all metrics"]


CONTRAST = """(() => {
    const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
    const over = (top, below) => top.slice(0, 3).map((v, i) => v * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
    const behind = e => {
        const layers = [];
        for (let one = e; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
        return layers.reverse().reduce((below, top) => top.length ? over(top, below) : below, [255, 255, 255]);
    };
    const linear = v => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
    return [...document.querySelectorAll('body *')].filter(e => !e.closest('title, style') &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
        const style = getComputedStyle(e), paper = behind(e);
        const ink = over(parse(e.closest('svg') ? style.fill : style.color), paper);
        const [low, high] = [light(ink), light(paper)].sort((a, b) => a - b);
        return [(high + 0.05) / (low + 0.05), e.tagName + ' ' + e.textContent.slice(0, 30)];
    }).filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["report", "inspect"])
def test_all_text_stands_out(browser, pages, name, dark):
    page = browser.open(pages[name], width=1280, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(CONTRAST) == []


def test_faint_text_would_be_told(browser, tmp_path):
    (tmp_path / "bad.html").write_text("<body style='background:#fff'><p style='color:#999'>faint</p><p>ink</p>")
    assert [text for _, text in browser.open(tmp_path / "bad.html", width=390).evaluate(CONTRAST)] == ["P faint"]


PAPER_WIDTH, PAPER_HEIGHT = 703, 1024
"""Pixels of an A4 page within the margins of the style sheet."""


@pytest.mark.parametrize("name", ["report", "many"])
def test_a_page_prints_whole(browser, pages, name):
    """In the dark too: paper is white, no chart is cut by its end, tables are as wide as the page at most."""
    paper = browser.open(pages[name], width=PAPER_WIDTH, media="print", dark=True)
    assert paper.evaluate("document.documentElement.scrollWidth") <= PAPER_WIDTH
    colours = "['backgroundColor', 'color'].map(key => getComputedStyle(document.body)[key])"
    assert paper.evaluate(colours) == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"]
    tall = "Math.max(...[...document.querySelectorAll('figure')].map(e => e.getBoundingClientRect().height))"
    assert paper.evaluate(tall) <= PAPER_HEIGHT
    kept = "[...document.querySelectorAll('figure, tr')].every(e => getComputedStyle(e).breakInside === 'avoid')"
    assert paper.evaluate(kept)
    assert paper.evaluate(OVERLAPPING) == []


def test_it_prints_as_a_pdf_of_a4_pages(browser, pages):
    page = browser.open(pages["report"], width=PAPER_WIDTH, media="print")
    made = browser.call("Page.printToPDF", page.session, preferCSSPageSize=True)
    pdf = base64.b64decode(made["data"])
    boxes = {tuple(round(float(one)) for one in box.split()[2:]) for box in re.findall(rb"/MediaBox \[([^\]]+)\]", pdf)}
    assert boxes == {(595, 842)}
    assert 3 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 9


def test_tables_and_charts_lie_on_the_paper(browser, pages):
    paper = browser.open(pages["report"], width=718, media="print")
    assert paper.evaluate("document.documentElement.scrollWidth") <= 718
    wide = "Math.max(...[...document.querySelectorAll('table, figure')].map(e => e.getBoundingClientRect().right))"
    assert paper.evaluate(wide) <= 718
    assert paper.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_the_base_model_stands_out_of_the_table(browser, pages):
    for dark in (False, True):
        page = browser.open(pages["report"], width=1280, dark=dark)
        colour = "getComputedStyle(document.querySelector('tr{} > td')).backgroundColor"
        assert page.evaluate(colour.format(".base")) != page.evaluate(colour.format(":not(.base)"))
        shown = "document.querySelector('tr.base th bdi').textContent"
        assert page.evaluate(shown) == "base"


def test_a_broken_word_would_be_told(browser, tmp_path):
    cell = "<th style='overflow-wrap:anywhere;width:1px'>rate</th><td>3e-4</td>"
    (tmp_path / "bad.html").write_text(f"<table style='table-layout:fixed;width:30px'><tr>{cell}</tr></table>")
    assert "rate" in browser.open(tmp_path / "bad.html", width=390).evaluate(BROKEN)


def test_the_browser_would_have_told(browser, tmp_path):
    """That the checks above can fail: a page that asks for an image, logs and throws."""
    bad = "<body style='width:900px'><img src='http://e.example/x.png'><script>console.error('a'); throw 1</script>"
    (tmp_path / "bad.html").write_text(bad)
    page = browser.open(tmp_path / "bad.html", width=390)
    seen = page.seen()
    assert seen.requests == ["http://e.example/x.png"]
    assert len(seen.console) >= 2
    assert page.evaluate("document.documentElement.scrollWidth") > 390
