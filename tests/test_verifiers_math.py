r"""Pairs of answers that are equal and that are not, and where in a text an answer is found."""

import time

import pytest

from ballast.verifiers import math
from ballast.verifiers.answers import final_formula, last_box, statement
from ballast.verifiers.notation import fraction, tidy
from ballast.verifiers.units import unit
from ballast.verifiers.words import are_words

EQUAL = [
    # numbers
    ("1/2", "0.5"),
    ("0.5", r"\frac{1}{2}"),
    (r"\frac{1}{2}", r"\dfrac12"),
    ("1/3", "0.333333"),
    (r"\frac{1}{60}", "0.016667"),
    (r"\sqrt{2}", "1.414214"),
    (r"\frac{\pi}{4}", "0.785398"),
    ("0.1+0.2", "0.3"),
    ("18", "18.0"),
    ("1,000", "1000"),
    (r"10,\!080", "10080"),
    (r"1\,000", "1000"),
    (r"\frac{1}{29,322,216}", r"\dfrac{1}{29,\!322,\!216}"),
    (r"\$18", "18"),
    ("18", r"\$18.00"),
    ("-5", "−5"),
    ("2 1/3", r"\frac{7}{3}"),
    (r"2\frac13", "7/3"),
    (r"0.\overline{3}", r"\frac13"),
    (r"1.2\overline{36}", r"\frac{68}{55}"),
    ("1.5e3", "1500"),
    ("1e-7", r"10^{-7}"),
    (r"3\times10^5", "300000"),
    ("2^-98", "2^{-98}"),
    ("2^-98", r"\frac{1}{2^{98}}"),
    ("2**10", "1024"),
    ("1+1/e", r"1+\frac{1}{e}"),
    ("1+e^-1", r"1+\frac{1}{\mathrm{e}}"),
    (r"\log_2 8", "3"),
    ("10!", "3628800"),
    (r"(2\sqrt{3})^2", "12"),
    ("2π", r"2\pi"),
    # percentages
    (r"50\%", r"\frac{1}{2}"),
    (r"5\%", "5"),
    ("50", r"50\%"),
    # formulas and relations
    ("x^2+2x+1", "(x+1)^2"),
    ("2e-1", "-1+2e"),
    ("3+4i", "4i+3"),
    ("ab", "ba"),
    ("xy", r"y \cdot x"),
    ("5", "x=5"),
    ("y=2x+1", "y-2x=1"),
    ("x<5", "5>x"),
    ("1<x<2", "(1,2)"),
    # sets, points, intervals, matrices
    (r"\{1,2\}", r"\{2,1\}"),
    ("1,2", "2,1"),
    ("1,2", "(1,2)"),
    (r"\pm 5", "5,-5"),
    ("5", r"\{5\}"),
    (r"1\pm\sqrt{2}", r"1-\sqrt{2},1+\sqrt{2}"),
    (r"(3,\frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
    ("(1,2),(3,4)", r"\{(3,4),(1,2)\}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"(-\infty,1)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,1)"),
    # units and bases
    (r"5\text{ cm}", "5"),
    (r"15\mbox{ cm}^2", r"15\text{ square centimeters}"),
    (r"90^\circ", "90"),
    ("12_3", "12_{3}"),
    # words, letters, options
    ("A", "A"),
    ("A", r"\text{(A)}"),
    (r"\text{(B)}", r"\textbf{(B)}\ 45"),
    ("C", "C."),
    ("east", r"\text{East}"),
    (r"\text{two lines}", r"\mbox{two lines}"),
    ("No", "no"),
    ("San Francisco", "San Francisco."),
    ("x", "x"),
    ("e", "2.718281828"),
    ("正确", "正确"),
]
DIFFERENT = [
    # tiny numbers, which differ by less than math-verify looks at
    ("2^-98", "2^99"),
    ("2^{-98}", "2^{-99}"),
    ("10^{-20}", "10^{-21}"),
    ("e^{-50}", "e^{-60}"),
    (r"\frac{1}{10^{30}}", r"\frac{1}{10^{31}}"),
    (r"\sin(10^{-20})", r"\sin(10^{-21})"),
    ("0.0000001", "0.0000002"),
    ("0.00012345", "0.00012349"),
    (r"1.6\times10^{-19}", r"1.7\times10^{-19}"),
    (r"0.00001\%", r"0.00002\%"),
    (r"x+10^{-20}", r"x+10^{-21}"),
    (r"\{10^{-20},1\}", r"\{10^{-21},1\}"),
    (r"(10^{-20},10^{-30})", r"(10^{-21},10^{-30})"),
    (r"[0,e^{-60}]", r"[0,e^{-70}]"),
    ("x<10^{-20}", "x<10^{-21}"),
    ("x=10^{-20}", "x=10^{-21}"),
    (r"\frac{1}{3000}", "0.000333"),
    # huge numbers
    (r"\sqrt{10^{40}+1}", "10^{20}"),
    ("10^{100}+1", "10^{100}"),
    ("99999999999999999999", "99999999999999999998"),
    (r"6.02\times10^{23}", r"6.03\times10^{23}"),
    ("1e3", "3e1"),
    # what is read in part only
    ("1+1/e", "1-1/e"),
    ("1+e^-1", "1-e^-1"),
    ("1+e^-1", "1–1/e"),
    (r"1+1/\mathrm{e}", r"1-\frac{1}{e}"),
    ("1", "1-e^-1"),
    ("2", "2^-98"),
    ("2^-98", "2"),
    ("1", "2 1/3"),
    ("0", r"0.\overline{3}"),
    ("0", r"1\,000"),
    ("0.3", r"0.\overline{3}"),
    # signs
    ("5", "−5"),
    ("5", "–5"),
    (r"\frac{1}{2}", r"-\frac{1}{2}"),
    (r"\infty", r"-\infty"),
    ("(3,-4)", "(3,4)"),
    (r"\pm 5", "5"),
    # sets, points, intervals
    ("(1,2)", r"\{1,2\}"),
    (r"\{1,2\}", "(2,1)"),
    (r"\{1,2,3\}", "[3,2,1]"),
    ("(1,2,3)", r"\{1,2,3\}"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(1,2]", "(1,2)"),
    ("[1,2]", r"\{1,2\}"),
    ("1,2", "1,2,3"),
    (r"\emptyset", "0"),
    ("2,5", "2.5"),
    # units, bases, percentages
    (r"5\text{ cm}", r"5\text{ m}"),
    ("5 km", "5 m"),
    (r"5\text{ cm}^2", r"5\text{ cm}"),
    (r"5\text{ miles per hour}", r"5\text{ miles}"),
    (r"5\text{ dollars}", r"5\text{ cents}"),
    (r"30^\circ", r"30\text{ radians}"),
    ("101_2", "101_3"),
    (r"5\%", "0.5"),
    # formulas and relations
    ("x+y", "x+z"),
    ("x<5", r"x\le 5"),
    ("x=5", "y=5"),
    ("5!", "5"),
    (r"\binom{5}{2}", r"\frac{5}{2}"),
    ("a^b", "b^a"),
    (r"\log 2", r"\ln 2"),
    # words, letters, options
    ("A", "B"),
    ("A", "AB"),
    ("A", "(A) or (B)"),
    ("on", "No"),
    ("No", "on"),
    ("seat", "east"),
    (r"\text{seat}", "east"),
    ("east", r"s \cdot e \cdot a \cdot t"),
    ("tea", "eat"),
    ("east", "west"),
    (r"\text{June 20}", r"\text{June 21}"),
    ("yes", "yes, no"),
    ("正确", "确正"),
]


@pytest.mark.parametrize(("answer", "given"), EQUAL)
def test_equal_answers_are_right_in_a_box(answer, given):
    assert math.judge(f"so it is \\boxed{{{given}}}.", {"answer": answer}) == 1


@pytest.mark.parametrize(("answer", "given"), DIFFERENT)
def test_different_answers_are_wrong_however_they_are_given(answer, given):
    for text in (
        f"\\boxed{{{given}}}",
        f"The answer is ${given}$.",
        f"... #### {given}",
        f"It is\n\\[ {given} \\]\n",
        given,
    ):
        assert math.judge(text, {"answer": answer}) == 0, text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{3}, no: \boxed{4} and we are done", "4"),
        (r"$\boxed{3}$ and $\boxed{4}$", "4"),
        (r"\boxed{3} \boxed{\frac{1}{2}}", "1/2"),
        (r"\boxed{4} but then \boxed{3", "4"),
        (r"\boxed{\{1, 2\}} so there are $2$ of them and 7 others", r"\{2,1\}"),
        (r"\boxed{5 \text{ or } 6}", "5,6"),
        (r"\boxed{7\text{ hours}.}", "7"),
        (r"\boxed{30^\circ.}", "30"),
        ("The answer is 18.", "18"),
        ("**Answer:** 18", "18"),
        ("the answer is: $x = 5$.", "5"),
        ("She makes 9 * 2 = $18 every day at the market.", "9 * 2 = <<9*2=18>>18\n#### 18"),
        ("so 9 * 2 = <<9*2=18>>18\n#### 18", "18"),
        ("1-1/e", "1-1/e"),
        ("The answer is (2, 3)", "(2,3)"),
        ("The answer is −5", "-5"),
        (r"it costs \$18 in the end", "18"),
        ("She makes 18/day.", "18"),
        ("The answer is east.", "east"),
        ("I think it is this:\nEast", "east"),
        ("It must be $\\text{east}$, as asked.", "east"),
        ("The answer is (B) because it fits.", "B"),
        ("Final answer: B", "(B)"),
        ("The answers are $3$ and $4$", "3,4"),
        ("The answer is $3$ or $4$.", "3,4"),
        ("The answer is $x=5$, where x is in cm.", "5"),
    ],
)
def test_where_an_answer_is_found(text, answer):
    assert math.judge(text, {"answer": answer}) == 1
    assert math.read(text, {"answer": answer}) != ""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{4}, no: \boxed{3}", "4"),
        (r"$\boxed{4}$ and $\boxed{3}$", "4"),
        ("So f(2) = 1 - 1/e, and that is what we were asked to find in the first place.", "1"),
        ("As asked for, we have found x + 1 to be what it must be equal to.", "1"),
        ("The answer is A or B", "A"),
        ("A man walks east and then to the north.", "A"),
        ("It is $seat$, as asked.", "east"),
        ("", "1"),
        ("   \n", "east"),
        (r"\boxed{}", "1"),
        (r"\boxed{" + "1+" * 3000 + "1}", "3001"),
        (r"\boxed{" + "{" * 1000, "1"),
    ],
)
def test_what_is_no_right_answer(text, answer):
    assert math.judge(text, {"answer": answer}) == 0


@pytest.mark.parametrize(
    "text", ["x", "1", "$1", r"\boxed{", r"\boxed{1}", r"\(", "answer is ", "\ud800", "1,", "\u2028"]
)
def test_ten_million_characters_take_seconds(text):
    start = time.process_time()
    for answer in ("5", "east"):
        assert math.judge(text * (10**7 // len(text)), {"answer": answer}) == 0
    assert time.process_time() - start < 20


def test_where_sympy_has_no_value_the_word_of_math_verify_stands(monkeypatch):
    def fail(*_):
        raise TypeError("no value")

    monkeypatch.setattr(math, "differ", fail)
    assert math.judge(r"\boxed{2(x+1)}", {"answer": "2x+2"}) == 1
    assert math.judge(r"\boxed{2(x+2)}", {"answer": "2x+2"}) == 0


def test_a_blank_answer_is_an_error():
    for answer in ("", " ", "$$", r"\boxed{}"):
        with pytest.raises(ValueError, match="is blank"):
            math.judge("1", {"answer": answer})


def test_boxes_formulas_and_statements():
    assert last_box(r"\fbox {a} \boxed{\{x\}_{2}} \boxed{") == r"\{x\}_{2}"
    assert last_box("no box") is None
    assert final_formula("we see: the answer is $x + 1$.") == "$x + 1$."
    assert final_formula("we see that it is seven") is None
    assert final_formula("12 " * 100) is None
    assert statement("one\nthe answer is two.\nthree") == "two."
    assert statement("\n\n") == ""


def test_notation_is_rewritten_where_it_would_be_misread():
    assert tidy(r" $-2^-3$. ") == "-2^{-3}"
    assert tidy("2.5E-3") == r"2.5\times 10^{-3}"
    assert tidy("2e-1") == "2e-1"  # two times e, less one
    assert tidy(r".\overline{12}") == r"\frac{4}{33}"
    assert [fraction(text) for text in ("-1,000.5", "3/4", r"-\frac{3}{4}", "1/0", "x", "1,00")] == [
        -1000.5, 0.75, -0.75, None, None, None,
    ]  # fmt: skip


def test_words_and_units():
    texts = ("cat", "sin x", "a-b", "x/y", "e", "i", "n", "cd", "12", "", "(a)")
    assert [text for text in texts if are_words(text)] == ["cat", "sin x", "n", "(a)"]
    assert unit(r"5\text{ square feet}") == unit(r"5 \mathrm{ft}^2") == (("ft", 2),)
    assert unit(r"5\text{ m/s}") == (("m", 1), ("s", 1))
    assert unit("5x") is unit("xm") is unit(r"5\text{ apples}") is None
