"""The pages in a real browser: nothing logged, nothing asked for, readable on a phone and in the dark."""

import json

import pytest

import browser as chromium
import report_records
from ballast.report import write_report
from ballast.report.render import tokens_html

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
    return {"report": report, "inspect": inspected, "wide": wide(folder / "wide")}


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
    outside = """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(text => {
            const own = text.getBoundingClientRect();
            return own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1;
        }).map(text => text.textContent);
    })"""
    assert browser.open(pages[name], width=width).evaluate(outside) == []


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
