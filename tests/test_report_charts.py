"""Charts: every value is where its scale puts it, text is inert, styles differ without colour and for all eyes."""

import itertools
import re
import xml.etree.ElementTree as ET
from importlib import resources

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ballast.compare.figures import RL, SFT, Value
from ballast.records.folder import BASE
from ballast.report.charts import shapes, svg
from ballast.report.charts.data import Dot, DotChart, Histogram, IntervalChart, IntervalRow, Line, LineChart
from ballast.report.charts.scales import linear, logarithmic

LABELS = ("sft", "dft", "prift-prob", "prift-mass", "eksft", "ift", "gft", "x", "ninth")
STYLES = shapes.styles_of(LABELS)


def parsed(chart):
    return ET.fromstring(str(svg.draw(chart, STYLES)))


def titles(drawing):
    return [one.text for one in drawing.iter("title")]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_a_linear_scale_holds_every_value_between_round_ticks(values):
    scale = linear(values, 0.0, 100.0)
    rounding = 1e-8 * max(map(abs, values))
    assert scale.low <= min(values) + rounding
    assert scale.high >= max(values) - rounding
    assert 2 <= len(scale.ticks) <= 12
    assert scale(scale.low) == 0.0
    assert scale(scale.high) == pytest.approx(100.0)
    assert list(scale.ticks) == sorted(set(scale.ticks))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_ticks_between_whole_numbers_are_whole(values):
    scale = linear(values, 0.0, 100.0, whole=True)
    assert all(tick == int(tick) for tick in scale.ticks)
    assert scale.low <= min(values) <= max(values) <= scale.high


@given(st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=6, unique=True))
def test_a_logarithmic_scale_is_even_in_ratios(places):
    low, high = min(places), max(places)
    assume(high / low > 1.001)
    scale = logarithmic(places, 0.0, 100.0)
    assert scale(low) == pytest.approx(0.0, abs=1e-6)
    assert scale((low * high) ** 0.5) == pytest.approx(50.0, abs=0.1)


def test_a_line_chart_puts_points_where_they_belong_and_breaks_at_gaps():
    points = ((1.0, 0.0), (2.0, None), (3.0, 0.5), (4.0, 1.0))
    drawing = parsed(LineChart("t", "step", "nats", (Line("sft", points, ()),)))
    lines = [one for one in drawing.iter("path") if one.get("class") == "line"]
    assert len(lines) == 1
    assert "sft: 0.500 at 3" in titles(drawing)
    assert not [title for title in titles(drawing) if "at 2" in title]
    y = [float(pair.split()[1]) for pair in lines[0].get("d")[1:].split("L")]
    low, high = shapes.HEIGHT - shapes.BOTTOM, shapes.TOP
    assert y == pytest.approx([(low + high) / 2, high], abs=0.1)


def test_a_band_is_a_closed_shape_between_its_bounds():
    line = Line("sft", ((1.0, 0.5), (2.0, 0.5)), ((1.0, 0.0, 1.0), (2.0, 0.0, 1.0)))
    [band] = [one for one in parsed(LineChart("t", "x", "y", (line,))).iter("path") if one.get("class") == "band"]
    assert band.get("d").endswith("Z")
    assert band.get("d").count("L") == 3


def test_stages_differ_by_full_and_hollow_marks():
    dots = (
        Dot("sft", SFT, Value(0.1, 0.0, 0.2), Value(0.5)),
        Dot("sft", RL, Value(0.2), Value(0.6, 0.5, 0.7)),
    )
    drawing = parsed(DotChart("t", "x", "y", dots, (0.0, 0.0)))
    kinds = [one.get("class") for one in drawing.iter("path")]
    assert kinds.count("mark") == 2, "the base model and the full mark"
    assert kinds.count("mark hollow") == 1
    assert kinds.count("whisker") == 2
    assert kinds.count("join") == 1


def test_intervals_name_each_label_once_and_draw_the_reference():
    rows = (
        IntervalRow("sft", SFT, Value(0.5, 0.4, 0.6)),
        IntervalRow("sft", RL, Value(0.6)),
        IntervalRow("dft", SFT, Value(0.7, 0.6, 0.8)),
    )
    drawing = parsed(IntervalChart("t", "accuracy", rows, ((0.45, "base"), (0.7, "base + RL"))))
    assert [one.text for one in drawing.iter("text") if one.get("class") == "label"] == ["sft", "dft"]
    assert len([one for one in drawing.iter("path") if one.get("class") == "reference"]) == 2
    assert [one.text for one in drawing.iter("text") if one.get("class") == "name"] == ["base", "base + RL"]
    assert "sft, after SFT: 0.500 (0.400 to 0.600)" in titles(drawing)
    marks = [one.get("class") for one in drawing.iter("path") if one.get("class").startswith("mark")]
    assert marks == ["mark", "mark hollow", "mark"], "hollow after RL"


def test_bars_are_as_high_as_their_share():
    drawing = parsed(Histogram("t", "weight", "sft", (0.0, 0.5, 1.0), (1, 3)))
    heights = [float(bar.get("height")) for bar in drawing.iter("rect")]
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.01)
    assert titles(drawing)[-1] == "0.500 to 1.000: 75.0% of tokens"


@pytest.mark.parametrize("nasty", ["</svg><script>alert(1)</script>", '" onload="alert(1)', "a\u202eb", "&lt;", "]]>"])
def test_text_in_charts_is_inert(nasty):
    value = Value(0.5, 0.4, 0.6)
    charts = (
        LineChart(nasty, nasty, nasty, (Line(nasty, ((1.0, 0.1), (2.0, 0.2))),)),
        DotChart(nasty, nasty, nasty, (Dot(nasty, SFT, value, value),)),
        IntervalChart(nasty, nasty, (IntervalRow(nasty, SFT, value),), ((0.1, nasty),)),
        Histogram(nasty, nasty, nasty, (0.0, 1.0), (1,)),
    )
    for chart in charts:
        drawing = parsed(chart)
        assert {one.tag for one in drawing.iter()} <= {"svg", "g", "path", "text", "title", "rect"}
        assert not [one for one in drawing.iter() if any(name.startswith("on") for name in one.attrib)]
        assert "\u202e" not in str(svg.draw(chart, STYLES))


def test_every_label_has_a_style_of_its_own_without_colour():
    seen = {(str(shapes.MARKS[STYLES[label] % 8](0, 0)), shapes.dashes(label, STYLES)) for label in LABELS}
    assert len(seen) == len(LABELS)
    assert shapes.dashes("ninth", STYLES) != shapes.dashes("sft", STYLES)
    assert shapes.css_class("ninth", STYLES) == shapes.css_class("sft", STYLES)
    assert shapes.css_class(BASE, STYLES) == "s-base"


def palettes():
    """The colours of the light and of the dark page, and what they lie on."""
    style = resources.files("ballast.report").joinpath("templates/style.css").read_text()
    light, dark = style.split("@media screen and (prefers-color-scheme: dark)")
    for part in (light, dark.split("* {")[0]):
        found = dict(re.findall(r"--(s\d|s-base|panel|ink|soft|paper|accent|warn-paper|warn-ink): (#\w{6})", part))
        yield {name: np.array([int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)]) for name, code in found.items()}


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
EYES = {
    "all": np.eye(3),
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear_rgb(colour):
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    light = sorted(linear_rgb(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


def lab(colour):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ colour / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(np.maximum(xyz, 0)), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_text_and_marks_stand_out_on_both_pages():
    for colours in palettes():
        for name in ("ink", "soft", "accent"):
            assert contrast(colours[name], colours["paper"]) >= 4.5
            assert contrast(colours[name], colours["panel"]) >= 4.5
        assert contrast(colours["warn-ink"], colours["warn-paper"]) >= 4.5
        for name in (*(f"s{place}" for place in range(8)), "s-base"):
            assert contrast(colours[name], colours["panel"]) >= 3.0, name


@pytest.mark.parametrize("eye", EYES)
def test_colours_differ_for_all_eyes(eye):
    for colours in palettes():
        seen = {f"s{n}": lab(np.clip(EYES[eye] @ linear_rgb(colours[f"s{n}"]), 0, 1)) for n in range(8)}
        near = {(a, b): round(float(np.linalg.norm(seen[a] - seen[b])), 1) for a, b in itertools.combinations(seen, 2)}
        assert min(near.values()) >= 12, min(near.items(), key=lambda pair: pair[1])
