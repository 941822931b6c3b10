"""Where labels go and what an axis shows: no label on another, no chart squashed by one value, and that value told."""

import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ballast.compare.figures import RL, SFT, Value
from ballast.report.charts import shapes, svg
from ballast.report.charts.data import Dot, DotChart, Histogram, IntervalChart, IntervalRow, Line, LineChart
from ballast.report.charts.labels import LINE, Box, around, place, shortened, spread, text_width
from ballast.report.charts.lines import within
from ballast.report.charts.scales import linear, robust

AREA = Box(40.0, 10.0, 350.0, 260.0)
POINTS = st.lists(st.tuples(st.floats(45, 345), st.floats(20, 250)), min_size=1, max_size=32)
LABELS = ("sft", "dft", "prift-prob", "prift-mass", "eksft", "ift", "gft")
STYLES = shapes.styles_of(LABELS)


def parsed(chart, styles=STYLES):
    return ET.fromstring(str(svg.draw(chart, styles)))


def texts(drawing, kind):
    return [one for one in drawing.iter("text") if one.get("class") == kind]


def boxes(drawing, kinds=("point", "edge", "label", "name", "tick", "axis")):
    """The boxes of the texts of a drawing, by the widths that they have at most."""
    for one in drawing.iter("text"):
        if one.get("class") in kinds:
            width, x, y = text_width(one.text), float(one.get("x")), float(one.get("y"))
            left = x - {"start": 0, "middle": width / 2, "end": width}[one.get("text-anchor")]
            yield one.text, Box(left, y - 8, left + width, y + 1)


# Places of labels.


@settings(max_examples=60, deadline=None)
@given(POINTS, st.data())
def test_no_label_lies_on_another_or_on_a_mark(points, data):
    widths = data.draw(st.lists(st.floats(15, 110), min_size=len(points), max_size=len(points)))
    marks = [around(point, 5.5) for point in points]
    spots = place(points, widths, AREA, marks)
    assert len(spots) == len(points)
    found = [(spot.box, width) for spot, width in zip(spots, widths, strict=True) if spot]
    for (one, _), (other, _) in itertools.combinations(found, 2):
        assert not one.overlaps(other)
    for box, width in found:
        assert box.inside(AREA)
        assert box.right - box.left == pytest.approx(width)
        assert not any(box.overlaps(mark) for mark in marks)
    assert spots == place(points, widths, AREA, marks), "the same points give the same places"


def test_a_lone_label_lies_beside_its_point_and_one_in_a_crowd_is_joined_to_it():
    [alone] = place([(100.0, 100.0)], [40.0], AREA, [around((100.0, 100.0), 5.5)])
    assert alone.box == Box(107.0, 94.0, 147.0, 106.0)
    assert not alone.leader
    crowd = [(100.0, 100.0)] * 9
    spots = place(crowd, [40.0] * 9, AREA, [around(crowd[0], 5.5)])
    assert [spot.leader for spot in spots if spot] == [False] * 4 + [True] * (len(list(filter(None, spots))) - 4)
    for spot in filter(None, spots):
        x, y = spot.box.nearest((100.0, 100.0))
        assert np.hypot(x - 100, y - 100) <= 70


def test_a_label_without_room_is_left_out():
    small = Box(0.0, 0.0, 50.0, 14.0)
    first, second = place([(5.0, 7.0), (5.0, 7.0)], [38.0, 38.0], small)
    assert (first is not None, second) == (True, None)


@given(st.lists(st.floats(-50, 300), min_size=1, max_size=14))
def test_heights_are_a_gap_apart_and_keep_their_order(wanted):
    found = spread(wanted, 20.0, 200.0)
    ordered = [height for _, height in sorted(zip(wanted, found, strict=True))]
    assert all(later - earlier >= LINE - 1e-6 for earlier, later in itertools.pairwise(sorted(ordered)))
    assert 20 - 1e-6 <= min(found) <= max(found) <= 200 + 1e-6
    for (one, at), (other, there) in itertools.combinations(zip(wanted, found, strict=True), 2):
        assert one == other or (one < other) == (at < there)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(40, 160), min_size=2, max_size=6))
def test_heights_are_moved_as_little_as_can_be(wanted):
    """Against a solver of the same problem: least squares with a gap between neighbours."""
    found = np.array(spread(wanted, -1e6, 1e6))
    order = np.argsort(wanted, kind="stable")
    target = np.array(wanted)[order]
    gaps = [{"type": "ineq", "fun": lambda y, i=i: y[i + 1] - y[i] - LINE} for i in range(len(wanted) - 1)]
    start = target.mean() + LINE * (np.arange(len(wanted)) - len(wanted) / 2)
    best = minimize(lambda y: ((y - target) ** 2).sum(), start, constraints=gaps, method="SLSQP", tol=1e-10)
    assert ((found[order] - target) ** 2).sum() <= best.fun + 1e-3 * (1 + best.fun)


def test_heights_that_do_not_fit_are_none():
    assert spread([1.0] * 5, 0.0, 4 * LINE) is not None
    assert spread([1.0] * 6, 0.0, 4 * LINE) is None


@given(st.text(max_size=60), st.floats(20, 150))
def test_a_shortened_text_fits_and_keeps_both_ends(text, width):
    from ballast.report.text import one_line

    short, whole = shortened(text, width), one_line(text)
    assert text_width(short) <= width + 1e-6
    if short != whole:
        start, _, end = short.partition("…") if "…" not in whole else (short[:1], "", short[-1:])
        assert whole.startswith(start)
        assert whole.endswith(end) or end == "…"


def test_labels_that_differ_at_their_ends_stay_different():
    names = [f"prift-mass-with-a-long-name-{rate}" for rate in ("0.0003", "0.001")]
    assert len({shortened(name, 118.0) for name in names}) == 2


# What an axis shows.


def plain(values):
    return [(value, value, value) for value in values]


def test_one_outlier_does_not_squash_the_others():
    near = [0.50, 0.51, 0.52, 0.53, 0.54]
    assert robust(plain([*near, 40.0])) == (0.50, 0.54)
    assert robust(plain([-40.0, *near])) == (0.50, 0.54)
    assert robust(plain([0.30, *near])) == (0.50, 0.54)
    assert robust(plain([*near, 1e13])) == (0.50, 0.54)
    assert robust(plain([0.45, *near])) == (0.45, 0.54), "it stretches the axis by less than threefold"


def test_many_far_values_are_no_outliers():
    halves = [0.10, 0.11, 0.12, 0.90, 0.91, 0.92]
    assert robust(plain(halves)) == (0.10, 0.92)
    assert robust(plain([0.0, 0.0, 0.0, 0.0, 0.5])) == (0.0, 0.5), "equal values have no range to squash"
    assert robust(plain([0.1, 0.11, 0.9])) == (0.1, 0.9), "of three values none is left out"


def test_up_to_one_in_six_is_left_out():
    near = [0.5 + 0.01 * place for place in range(10)]
    assert robust(plain([*near, 7.0, 9.0])) == (0.5, pytest.approx(0.59))
    assert robust(plain([-9.0, *near, 9.0])) == (0.5, pytest.approx(0.59))
    assert robust(plain([*near, 7.0, 8.0, 9.0])) == (0.5, 9.0)


def test_what_is_near_is_not_left_out_with_what_is_far():
    values = [0.0, 0.45, 0.5, 0.55, 0.6, 0.65, 0.66, 0.67, 0.68, 0.71, 0.45, 0.5]
    assert robust(plain(values)) == (0.0, 0.71)
    assert robust(plain([-0.5, *values[1:]])) == (0.45, 0.71), "0.71 alone would not have been left out"


def test_an_interval_alone_does_not_squash_the_others():
    extents = [(value - 0.01, value, value + 0.01) for value in (0.50, 0.51, 0.52, 0.53)]
    wide = [*extents, (-3.0, 0.52, 4.0)]
    low, high = robust([*extents, *extents, wide[-1]])
    assert (low, high) == (pytest.approx(0.49), pytest.approx(0.54))
    assert robust(wide) == (pytest.approx(0.49), pytest.approx(0.54))
    assert robust(wide[1:4] + wide[4:]) == (pytest.approx(0.50), pytest.approx(0.54))
    assert robust(wide[2:]) == (-3.0, 4.0), "of three intervals none is left out"


def test_what_is_compared_with_is_always_shown():
    near = [0.50, 0.51, 0.52, 0.53, 0.54, 9.0]
    assert robust(plain(near), keep=[0.1]) == (0.1, 0.54)
    assert robust(plain(near), keep=[9.0]) == (0.5, 9.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.lists(st.floats(-1e6, 1e6), max_size=2))
def test_a_range_leaves_out_few_and_never_stretches(values, keep):
    low, high = robust(plain(values), keep)
    outside = [value for value in values if not low <= value <= high]
    assert len(outside) <= (max(len(values) // 6, 1) if len(values) >= 4 else 0)
    assert {low, high} <= {*values, *keep}
    assert all(low <= one <= high for one in keep)


def test_a_tight_scale_ends_at_its_values():
    scale = linear([6.0, 62.0], 0.0, 100.0, tight=True, whole=True)
    assert (scale.low, scale.high) == (6.0, 62.0)
    assert all(6 <= tick <= 62 for tick in scale.ticks)
    assert len(scale.ticks) >= 2


def test_zeros_alone_make_no_axis_below_zero():
    assert linear([0.0, 0.0], 0.0, 1.0).low == 0.0


def test_a_line_is_cut_where_it_leaves_the_axis():
    points = [(0.0, 0.0), (1.0, 2.0), (2.0, 0.0), (3.0, 0.5)]
    assert within(points, 0.0, 1.0) == [[(0.0, 0.0), (0.5, 1.0)], [(1.5, 1.0), (2.0, 0.0), (3.0, 0.5)]]
    assert within([(0.0, 5.0), (1.0, 6.0)], 0.0, 1.0) == []
    assert within([(0.0, 0.5), (1.0, 0.5)], 0.0, 1.0) == [[(0.0, 0.5), (1.0, 0.5)]]


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(-10, 10)), min_size=2, max_size=12, unique_by=lambda p: p[0]))
def test_what_is_left_of_a_line_lies_on_it_and_inside(points):
    points = sorted((float(x), y) for x, y in points)
    xs, ys = zip(*points, strict=True)
    for piece in within(points, -2.0, 3.0):
        assert len(piece) >= 2
        for x, y in piece:
            assert -2 - 1e-9 <= y <= 3 + 1e-9
            assert y == pytest.approx(np.interp(x, xs, ys), abs=1e-6)


# Charts.


def outlying(label="eksft"):
    """Differences of six labels, one of which is far off."""
    near = {"sft": 0.01, "dft": -0.02, "prift-prob": 0.0, "prift-mass": 0.03, "ift": -0.01}
    rows = [IntervalRow(one, SFT, Value(v, v - 0.02, v + 0.02), "3 seeds") for one, v in near.items()]
    return IntervalChart(
        "t", "x", (*rows, IntervalRow(label, SFT, Value(-0.9, -1.0, -0.8), "3 seeds")), ((0.0, "sft"),)
    )


def test_an_outlying_interval_is_at_the_edge_with_its_value():
    drawing = parsed(outlying())
    [edge] = texts(drawing, "edge")
    assert edge.text == "−0.900"
    ticks = [float(one.text.replace("−", "-")) for one in texts(drawing, "tick")]
    assert min(ticks) > -0.2, "the axis is that of the others"
    [arrow] = [one for one in drawing.iter("path") if one.get("class") == "beyond"]
    assert float(arrow.get("d")[1:].split()[0]) == min(float(one.get("x")) for one in texts(drawing, "tick"))
    assert "eksft, after SFT: −0.900 (−1.000 to −0.800), 3 seeds" in [one.text for one in drawing.iter("title")]


def test_an_interval_that_goes_on_beyond_the_edge_has_an_arrow_there():
    rows = [IntervalRow(f"{n}", SFT, Value(n / 100, n / 100 - 0.01, n / 100 + 0.01)) for n in range(8)]
    rows.append(IntervalRow("wide", SFT, Value(0.03, -2.0, 2.0)))
    drawing = parsed(IntervalChart("t", "x", tuple(rows)))
    assert len([one for one in drawing.iter("path") if one.get("class") == "beyond"]) == 2
    assert not texts(drawing, "edge"), "its value is on the axis"


def test_a_label_without_any_value_is_said_not_to_be_measured():
    rows = (IntervalRow("sft", SFT, Value(0.5)), IntervalRow("dft", SFT, None), IntervalRow("dft", RL, None))
    drawing = parsed(IntervalChart("t", "x", rows))
    assert [one.text for one in texts(drawing, "label")] == ["sft", "dft"]
    assert [one.text for one in texts(drawing, "name")] == ["not measured"]
    half = (IntervalRow("sft", SFT, Value(0.5)), IntervalRow("sft", RL, None))
    assert not texts(parsed(IntervalChart("t", "x", half)), "name")
    assert parsed(IntervalChart("t", "x", rows[1:])) is not None, "nothing measured at all"


def test_rows_of_charts_side_by_side_lie_at_one_height():
    rows = (IntervalRow("sft", SFT, Value(0.5)), IntervalRow("dft", SFT, Value(0.6)))
    two = parsed(IntervalChart("t", "x", rows, ((0.5, "base"), (0.6, "base + RL")), names=2))
    none = parsed(IntervalChart("t", "x", rows, names=2))
    assert [one.get("y") for one in texts(two, "label")] == [one.get("y") for one in texts(none, "label")]


def test_names_stand_at_their_dots_and_the_far_one_has_its_value():
    dots = [Dot(label, SFT, Value(0.01 * place), Value(0.1 + 0.01 * place)) for place, label in enumerate(LABELS[:6])]
    far = Dot("gft", SFT, Value(9.0), Value(0.12), "3 seeds")
    drawing = parsed(DotChart("t", "x", "y", (*dots, far), (0.0, 0.0)))
    names = [one.text for one in texts(drawing, "point")]
    assert names == ["base", *LABELS[:6], "gft 9.000"]
    found = list(boxes(drawing, ("point",)))
    for (one, box), (other, there) in itertools.combinations(found, 2):
        assert not box.overlaps(there), (one, other)
    assert "gft, after SFT: 0.120 at 9.000, 3 seeds" in [one.text for one in drawing.iter("title")]


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_lines_have_their_names_at_their_ends(count):
    labels = [f"objective-{place}" for place in range(count)]
    lines = tuple(Line(label, ((1.0, 0.1), (2.0, 0.5 + 0.001 * place))) for place, label in enumerate(labels))
    drawing = parsed(LineChart("t", "x", "y", lines), shapes.styles_of(labels))
    assert sorted(one.text for one in texts(drawing, "point")) == sorted(labels)
    found = list(boxes(drawing, ("point", "tick")))
    for (one, box), (other, there) in itertools.combinations(found, 2):
        assert not box.overlaps(there), (one, other)
    assert all(box.right <= shapes.WIDTH for _, box in found)


def test_more_lines_than_there_is_room_for_have_no_names():
    labels = [f"objective-{place}" for place in range(32)]
    lines = tuple(Line(label, ((1.0, 0.1), (2.0, 0.5))) for label in labels)
    drawing = parsed(LineChart("t", "x", "y", lines), shapes.styles_of(labels))
    assert not texts(drawing, "point"), "the legend has them"


def test_a_diverged_line_is_cut_with_its_value_at_the_edge():
    lines = [Line(label, ((1.0, 0.50), (2.0, 0.40 + place / 100))) for place, label in enumerate(LABELS[:5])]
    bad = Line("gft", ((1.0, 0.5), (2.0, 60.0)), note="3 seeds")
    drawing = parsed(LineChart("t", "x", "y", (*lines, bad)))
    assert max(float(one.text) for one in texts(drawing, "tick")) < 3
    assert [one.text for one in texts(drawing, "edge")] == ["60.00"]
    said = [one.text for one in drawing.iter("title") if one.text.startswith("gft: 60")]
    assert said == ["gft: 60.00 at 2, beyond the axis, 3 seeds"], "no mark where the value is not"
    top = min(float(one.get("y")) for one in texts(drawing, "tick")) - 3.5
    for one in drawing.iter("path"):
        if one.get("class") == "line":
            assert all(float(pair.split()[1]) >= top - 0.2 for pair in one.get("d")[1:].split("L"))


def test_rates_are_written_as_in_tables():
    line = Line("sft", ((1e-4, 0.1), (1e-3, 0.2)))
    drawing = parsed(LineChart("t", "learning rate", "y", (line,), (1e-4, 1e-3)))
    assert {"1e-4", "1e-3"} <= {one.text for one in texts(drawing, "tick")}


CHARTS = (
    outlying(),
    LineChart(
        "t", "step", "nats", (Line("sft", ((1.0, 0.1), (2.0, 0.2)), ((1.0, 0.0, 0.2), (2.0, 0.1, 0.3)), "2 seeds"),)
    ),
    DotChart("t", "KL", "gain", (Dot("sft", SFT, Value(0.1, 0.0, 0.2), Value(0.3, 0.2, 0.4), "2 seeds"),), (0.0, 0.0)),
    Histogram("t", "weight", "sft", (0.0, 0.5, 1.0), (1, 3)),
)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: type(chart).__name__)
def test_every_mark_has_words_and_every_chart_a_name(chart):
    drawing = parsed(chart)
    assert (drawing.get("role"), bool(drawing.get("aria-label"))) == ("img", True)
    assert drawing.get("aria-label").startswith("t: ")
    named = set()
    for parent in drawing.iter():
        if parent.find("title") is not None:
            assert parent.find("title").text
            named |= set(parent.iter())
    marks = [one for one in drawing.iter() if one.get("class", "").split()[0:1] in (["mark"], ["bar"], ["whisker"])]
    assert marks
    assert all(one in named for one in marks)
    assert drawing.find("title") is None, "a title of the whole would show everywhere"
    if not isinstance(chart, Histogram):
        assert any("2 seeds" in one.text or "3 seeds" in one.text for one in drawing.iter("title"))


def test_hover_text_has_the_interval():
    said = [one.text for chart in CHARTS[1:3] for one in parsed(chart).iter("title")]
    assert "sft: 0.100 (0.000 to 0.200) at 1, 2 seeds" in said
    assert "sft, after SFT: 0.300 (0.200 to 0.400) at 0.100 (0.000 to 0.200), 2 seeds" in said


@pytest.mark.parametrize("count", [2, 12, 32])
@pytest.mark.parametrize("label", ["a", "W漢" * 40, "</svg><b>", "prift-mass-0.0003"])
def test_texts_of_rows_do_not_run_into_each_other(count, label):
    labels = [f"{place}{label}" for place in range(count)]
    rows = tuple(
        IntervalRow(one, stage, Value(0.5 + 0.01 * place, 0.4, 0.7))
        for place, one in enumerate(labels)
        for stage in (SFT, RL)
    )
    references = ((0.45, "base"), (0.46, "base + RL"))
    drawing = parsed(IntervalChart("t", "accuracy", rows, references), shapes.styles_of(labels))
    assert len(texts(drawing, "label")) == count
    for (one, box), (other, there) in itertools.combinations(boxes(drawing, ("label", "name", "tick")), 2):
        assert not box.overlaps(there), (one, other)
    height = float(drawing.get("viewBox").split()[-1])
    assert all(box.left >= 0 and box.right <= shapes.WIDTH + 1 and box.bottom <= height for _, box in boxes(drawing))
