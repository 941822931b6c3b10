"""Text from data stays text: in one line, in Markdown; figures are written as they are."""

import math
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.compare.numbers import counted, interval, joined, number, p_value, percentage, rate, signed
from ballast.report.text import markdown
from ballast.text import inert

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("\x1b[31mred", "⟨U+001B⟩[31mred"),
        ("\ud800", "⟨U+D800⟩"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("é 漢 🙂", "é 漢 🙂"),
    ],
)
def test_invisible_characters_are_spelt_out(text, shown):
    assert inert(text) == shown


@given(st.text(st.characters(codec=None)))
def test_nothing_invisible_is_left(text):
    assert not [c for c in inert(text) if unicodedata.category(c) in HIDDEN]
    inert(text).encode()


def test_kept_characters_stay():
    assert inert("a\nb\tc", keep="\n") == "a\nb⟨U+0009⟩c"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("<script>alert(1)</script>", r"\<script\>alert(1)\</script\>"),
        ("![x](http://e.example/p.png)", r"!\[x\](http\://e.example/p.png)"),
        ("www.e.example", r"www\.e.example"),
        ("a|b\nc", r"a\|b c"),
        ("# head", r"\# head"),
        ("- item", r"\- item"),
        ("`rm`", r"\`rm\`"),
        ("&amp;", r"\&amp;"),
        ("__init__ and snake_case", r"\_\_init\_\_ and snake_case"),
        ("1. one", "1\u2060. one"),
        ("0.480 (−0.010 to +0.092)", "0.480 (−0.010 to +0.092)"),
        ("prift-mass", "prift-mass"),
    ],
)
def test_markdown_shows_text_as_it_stands(text, shown):
    assert markdown(text) == shown


@given(st.text(st.sampled_from("[]()<>`|*_~#\\ab \n&$")))
def test_no_markup_is_left_without_its_backslash(text):
    bare = re.sub(r"\\.", "", markdown(text))
    assert not set(bare) & set("[]<>`|*~&$\\\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.81966, "0.820"),
        (-0.04, "−0.040"),
        (0.0, "0.000"),
        (-3.7e-17, "0.000"),
        (0.000412, "0.00041"),
        (27.089, "27.09"),
        (-1234.5, "−1,234"),
        (9.9994, "9.999"),
        (727.1, "727"),
        (9_999_999.0, "9,999,999"),
        (1.791e12, "1.79e12"),
        (-1e7, "−1.00e7"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_figures(value, shown):
    assert number(value) == shown


def test_signs_intervals_rates_and_counts():
    assert [signed(v) for v in (0.04, -0.04, 0.0, -1e-17)] == ["+0.040", "−0.040", "0.000", "0.000"]
    assert [signed(v, share=True) for v in (2e-9, -2e-9, 0.0006, -0.04)] == ["0.000", "0.000", "+0.001", "−0.040"]
    assert [percentage(v) for v in (0.0, 0.0004, 0.0006, 0.25)] == ["0.0%", "< 0.1%", "0.1%", "25.0%"]
    assert interval(0.1, 0.2) == "0.100 to 0.200"
    assert interval(None, 0.2) == ""
    assert [rate(v) for v in (3e-4, 1e-5, 1.25e-3, 1.0, None)] == ["3e-4", "1e-5", "1.25e-3", "1e0", "–"]
    assert [p_value(p) for p in (0.0004, 0.0123, None)] == ["< 0.001", "0.012", "–"]
    assert (counted(1, "seed"), counted(1200, "row")) == ("1 seed", "1,200 rows")
    assert (joined([]), joined(["a"]), joined(["a", "b", "c"])) == ("", "a", "a, b and c")
