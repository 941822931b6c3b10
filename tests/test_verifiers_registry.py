from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

from ballast.errors import BallastError
from ballast.verifiers.answers import close, last_number
from ballast.verifiers.expression import evaluate_expression
from ballast.verifiers.registry import VERIFIERS, Verifier, check_rows, score_answers, verifier
from ballast.verifiers.worker import VerifierTimeout


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("so the answer is \\boxed{\\frac{1}{2}}", "0.5", 1),
        ("She makes $18 a day.", "9 * 2 = <<9*2=18>>18\n#### 18", 1),
        ("\\boxed{\\left(3, \\frac{\\pi}{2}\\right)}", "\\left( 3, \\frac{\\pi}{2} \\right)", 1),
        ("\\boxed{19}", "18", 0),
        ("", "18", 0),
        ("no number at all", "18", 0),
    ],
)
def test_math(completion, answer, score):
    assert verifier("math")(completion, {"answer": answer}) == score


def test_math_scores_off_the_main_thread():
    """An alarm-based clock raises in a thread, which math-verify turns into a 0."""
    math = verifier("math")
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda i: math(f"\\boxed{{{i % 3}}}", {"answer": "1"}), range(12)))
    assert scores == [float(i % 3 == 1) for i in range(12)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 76.0 - 25.0 )", 51),
        ("1/3*3", 1),
        ("-(2+3)*4", -20),
        ("0.1+0.2", 0.3),
        ("2**3", None),
        ("9**9**9**9", None),
        ("__import__('os').system('true')", None),
        ("x + 1", None),
        ("abs(3)", None),
        ("3 if 1 else 2", None),
        ("'3'*3", None),
        ("True", None),
        ("1/0", None),
        ("(1", None),
        ("", None),
        ("1e999", None),
        ("9" * 400, None),
        ("1+" * 400 + "1", None),
        ("-" * 100 + "1", None),
        ("(" * 240 + "1" + ")" * 240, None),
        ("\x00", None),
    ],
)
def test_expression_value(text, value):
    found = evaluate_expression(text)
    assert found is None if value is None else float(found) == value


def test_expression_verifier_reads_the_first_line():
    judge = verifier("expression")
    assert judge("\n( 8.0 + 2.0 )\nThe next story", {"answer": 10.0}) == 1
    assert judge("= 8 + 2", {"answer": "10"}) == 1
    assert judge("8 + 3", {"answer": 10}) == 0
    assert judge("8 + 2 = 10", {"answer": 10}) == 0
    assert judge("8 + 2\u2028", {"answer": 10}) == 1
    assert judge("8\u2028+ 2", {"answer": 8}) == 0  # one line to everybody but str.splitlines
    assert judge("8 + 2\r\n8 + 3", {"answer": 10}) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16-3 eggs make $1,234.50.", 1234.5),
        ("x = -5.", -5),
        ("7-4", 4),
        ("1, 2", 2),
        ("costs .5", 0.5),
        ("12,34", 34),
        ("none", None),
        ("1e-7", 1e-7),
        ("about 2.5E3 of them", 2500),
        ("9007199254740993", 9007199254740993),
        ("1e5x", 5),
        ("3 " + "and so on " * 100, 3),
        ("1" * 5000, float("inf")),
    ],
)
def test_last_number(text, value):
    assert last_number(text) == value


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (1 / 3, 0.33333, False),
        (1 / 3, 0.3333333, True),
        (1e-10, 2e-10, False),
        (1e-10, 1.0000001e-10, True),
        (0, 1e-10, False),
        (0, 5.5e-17, True),
        (2**53, 2**53 + 1, False),
        (10**400, 10**400, True),
        (10**400, 10**400 + 1, False),
        (10**400, 0.5, False),
        (Fraction(10**400, 3), 0.5, False),
        (float("inf"), 1.0, False),
        (float("nan"), 1.0, False),
    ],
    ids=lambda value: str(value)[:12],
)
def test_numbers_are_close_by_their_ratio_however_small_or_large(left, right, same):
    assert close(left, right) is same
    assert close(right, left) is same


def test_tiny_and_huge_numbers_are_told_apart():
    assert verifier("last-number")("it is 1e-10", {"answer": 2e-10}) == 0
    assert verifier("last-number")("it is 1e-10", {"answer": "1e-10"}) == 1
    assert verifier("last-number")("9007199254740993", {"answer": "9007199254740992"}) == 0
    assert verifier("expression")("1/10000000000", {"answer": 2e-10}) == 0
    assert verifier("expression")("0.1 + 0.2 - 0.3", {"answer": 0}) == 1
    assert verifier("expression")("*".join(["1e15"] * 30), {"answer": 1}) == 0
    check_rows(verifier("last-number"), [{"answer": 10**400}])


def test_exact_and_last_number():
    assert verifier("exact")("  Hello  World. ", {"answer": "hello world"}) == 1
    assert verifier("exact")("b", {"answer": ["a", "B"]}) == 1
    assert verifier("exact")("hello", {"answer": "world"}) == 0
    assert verifier("last-number")("first 3, then 18", {"answer": "2*9 #### 18"}) == 1
    assert verifier("last-number")("", {"answer": 18}) == 0


def judge_length(completion, row):
    if completion == "raise":
        raise KeyError("gone")
    if completion == "slow":
        raise VerifierTimeout("no verdict")
    return {"two": 2.0, "nan": float("nan"), "text": "1"}.get(completion, 0.25)


def test_what_is_no_score_counts_as_0_with_one_warning():
    with pytest.warns(UserWarning, match="4 exceptions and 1 time-outs in 6") as caught:
        scored = score_answers(
            Verifier("own", judge_length), [(text, {}) for text in ("ok", "raise", "slow", "two", "nan", "text")]
        )
    assert len(caught) == 1
    assert scored.scores == (0.25, 0, 0, 0, 0, 0)
    assert (scored.errors, scored.timeouts) == (4, 1)
    assert "gone" in scored.first_error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mth", "did you mean 'math'"),
        ("no_such_package.x:f", "cannot import module 'no_such_package.x'"),
        ("os.path:nothing", "has no 'nothing'"),
        ("os:sep", "not a function"),
        (":f", "unknown verifier"),
        ("__main__:len", "into a module of its own"),
    ],
)
def test_unknown_verifiers(name, words):
    with pytest.raises(BallastError, match=words):
        verifier(name)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), True, "10"])
def test_a_clock_without_an_end_is_refused(seconds):
    with pytest.raises(BallastError, match="must be a finite number above 0"):
        verifier("math", seconds=seconds)


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_rows_without_an_answer_are_refused_before_anything_runs(name):
    with pytest.raises(BallastError, match="row 2: no 'answer'"):
        check_rows(verifier(name), [{"answer": "3"}, {"result": "3"}])


@pytest.mark.parametrize("answer", ["three", float("nan"), True, [3]])
def test_rows_without_a_number_are_refused(answer):
    with pytest.raises(BallastError, match="no number"):
        check_rows(verifier("expression"), [{"answer": answer}])


@pytest.mark.parametrize("answer", ["", " ", "$ $", "work #### ", "\\boxed{}"])
def test_rows_with_a_blank_answer_are_refused_by_math(answer):
    with pytest.raises(BallastError, match=r"row 1: the answer .* is blank"):
        check_rows(verifier("math"), [{"answer": answer}])


def test_text_of_an_answer_stays_inert_in_the_warning():
    def quote(completion, row):
        raise ValueError(completion)

    with pytest.warns(UserWarning, match=r"ValueError: \\x1b\[2J\\u202e\\ud800é"):
        score_answers(Verifier("own", quote), [("\x1b[2J\u202e\ud800é", {})])


def test_a_plain_function_needs_no_check():
    check_rows(Verifier("own", lambda completion, row: 1.0), [{}])
