"""The lab's task: problems, styles, demonstrations with stated flaws, splits, and the verifier."""

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast import lab
from ballast.errors import BallastError
from ballast.lab import arithmetic
from ballast.lab.arithmetic import Chain

GOLDEN_PROMPTS = ["11-8+9-3=?", "3+9+17+2=?", "16-5+20=?"]


def wrong_steps(completion: str) -> list[int]:
    """Indices of the steps whose stated result is not the sum; the row must be in ``steps`` style."""
    steps = completion.split("#")[0].split(";")
    parsed = [re.fullmatch(r"(\d+)([+-]\d+)=(\d+)", step) for step in steps]
    assert all(parsed), completion
    return [i for i, m in enumerate(parsed) if int(m[1]) + int(m[2]) != int(m[3])]


def is_steps(completion: str) -> bool:
    return completion[0].isdigit()


def value(prompt: str) -> int:
    assert re.fullmatch(r"[1-9]\d?([+-][1-9]\d?)+=\?", prompt), prompt
    return sum(int(term) for term in re.findall(r"[+-]?\d+", prompt))


def test_styles_are_written_as_documented():
    chain = Chain((12, 7, -5))
    assert chain.prompt == "12+7-5=?"
    assert arithmetic.solve(chain) == "12+7=19;19-5=14#14"
    assert arithmetic.solve(chain, "words") == "start 12. add 7 now 19. take 5 now 14.#14"
    assert arithmetic.solve(chain, "answer") == "#14"


def test_unknown_style_is_refused_with_a_suggestion():
    with pytest.raises(BallastError, match="did you mean 'words'"):
        arithmetic.solve(Chain((1, 2)), "word")


@pytest.mark.parametrize("completion", ["12+7=19;19-5=14#14", "#14", "nonsense#14"])
def test_verifier_accepts_the_answer_after_the_mark(completion):
    assert lab.verify(completion, {"answer": "14"}) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "14",
        "12+7=19;19-5=14",
        "#",
        "#13",
        "#141",
        "#1",
        "#014",
        "#+14",
        "#-14",
        "# 14",
        "#14 ",
        "#14\n",
        "#14.",
        "#14.0",
        "#14#14",
        "#13#14",
        "#14<eos>",
        "#14;",
        "#１４",
        "##14",
    ],
)
def test_verifier_gives_nothing_for_wrong_or_malformed(completion):
    assert lab.verify(completion, {"answer": "14"}) == 0.0


def test_verifier_does_not_match_an_answer_that_is_no_number():
    assert lab.verify("#", {"answer": ""}) == 0.0
    assert lab.verify("#x", {"answer": "x"}) == 0.0
    assert lab.verify("#0", {"answer": "0"}) == 1.0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), terms=st.integers(2, 9))
def test_problems_are_right_in_every_style(seed, terms):
    [row] = arithmetic.problems(seed, 1, terms=terms, exclude=())
    assert row["terms"] == terms == len(re.findall(r"\d+", row["prompt"]))
    assert int(row["answer"]) == value(row["prompt"])
    signed = tuple(int(term) for term in re.findall(r"[+-]?\d+", row["prompt"]))
    chain = Chain(signed)
    assert min(chain.totals) >= 0
    assert wrong_steps(arithmetic.solve(chain)) == []
    for style in arithmetic.STYLES:
        assert arithmetic.verify(arithmetic.solve(chain, style), row) == 1.0


def test_problems_follow_the_seed_and_differ_by_text():
    rows = lab.problems(7, 400, terms=(2, 3))
    assert rows == lab.problems(7, 400, terms=(2, 3))
    assert rows != lab.problems(8, 400, terms=(2, 3))
    assert rows[:50] == lab.problems(7, 50, terms=(2, 3))
    assert len({row["prompt"] for row in rows}) == 400
    assert {row["terms"] for row in rows} == {2, 3}
    terms = [int(term) for row in rows for term in re.findall(r"\d+", row["prompt"])]
    assert (min(terms), max(terms)) == (1, 20)


def test_problems_are_the_same_on_every_machine():
    assert [row["prompt"] for row in lab.problems(0, 3)] == GOLDEN_PROMPTS


def test_problems_leave_out_what_is_excluded():
    first = [row["prompt"] for row in lab.problems(7, 20)]
    kept = [row["prompt"] for row in lab.problems(7, 20, exclude=first[:5])]
    assert kept[:15] == first[5:]
    assert not set(first[:5]) & set(kept)


def test_new_rows_leave_out_the_held_out_prompts_by_default(monkeypatch):
    first = lab.problems(7, 20)[0]["prompt"]
    monkeypatch.setattr(arithmetic, "held_out", lambda: frozenset([first]))
    assert first not in {row["prompt"] for row in lab.problems(7, 20)}
    start = lab.demonstrations(7, 20, exclude=())[0]["prompt"]
    monkeypatch.setattr(arithmetic, "held_out", lambda: frozenset([start]))
    assert start not in {row["prompt"] for row in lab.demonstrations(7, 20)}


def test_default_demonstrations_hold_exactly_the_stated_flaws():
    rows = lab.demonstrations(3, 400)
    steps = [row for row in rows if is_steps(row["completion"])]
    assert len(rows) - len(steps) == 20
    assert sum(bool(wrong_steps(row["completion"])) for row in steps) == 60
    assert {row["completion"][0] for row in rows if row not in steps} == {"s", "#"}


@pytest.mark.parametrize(("noise", "off_style"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.25), (0.5, 0.5), (1.0, 0.0)])
def test_flaws_follow_the_options(noise, off_style):
    rows = lab.demonstrations(3, 40, terms=(2, 3, 4), noise=noise, off_style=off_style)
    steps = [row for row in rows if is_steps(row["completion"])]
    assert len(rows) - len(steps) == round(off_style * 40)
    assert sum(bool(wrong_steps(row["completion"])) for row in steps) == round(noise * 40)


def test_a_slip_is_one_step_before_the_last_and_the_rest_ignores_it():
    for row in lab.demonstrations(3, 200, terms=(3, 4), noise=1.0, off_style=0.0):
        [place] = wrong_steps(row["completion"])
        steps = row["completion"].split("#")[0].split(";")
        assert place < len(steps) - 1
        true = value(row["prompt"].rsplit("=", 1)[0] + "=?")
        assert steps[-1].endswith(f"={true}")
        assert lab.verify(row["completion"], row) == 1.0


def test_flawed_rows_are_spread_and_follow_the_seed():
    rows = lab.demonstrations(3, 200, noise=0.5, off_style=0.0)
    flags = [bool(wrong_steps(row["completion"])) for row in rows]
    assert 30 < sum(flags[:100]) < 70
    assert rows == lab.demonstrations(3, 200, noise=0.5, off_style=0.0)
    assert rows != lab.demonstrations(4, 200, noise=0.5, off_style=0.0)


HELD_OUT = {
    "validation": 200,
    "test": 300,
    "test-hard": 300,
    "forgetting": 300,
    "long-validation": 200,
    "long-test": 300,
}
TAUGHT = {"train": 256, "train-clean": 256, "train-few": 64, "train-many": 2048, "long-train": 256}
TAUGHT |= {"long-train-clean": 256, "rl": 1024, "long-rl": 1024}


def prompts_of(name):
    return [row.get("prompt") or row["text"][: row["text"].index("?") + 1] for row in lab.split(name)]


def test_splits_are_fixed_and_what_is_held_out_is_nowhere_else():
    assert {name: len(lab.split(name)) for name in arithmetic.SPLITS} == HELD_OUT | TAUGHT
    assert all(lab.split(name) == lab.split(name) for name in arithmetic.SPLITS)
    held = [prompt for name in HELD_OUT for prompt in prompts_of(name)]
    assert len(held) == len(set(held))
    assert set(held) == lab.held_out()
    for name in TAUGHT:
        prompts = prompts_of(name)
        assert len(prompts) == len(set(prompts))
        assert not set(prompts) & set(held)


@pytest.mark.parametrize(("name", "clean"), [("train", "train-clean"), ("long-train", "long-train-clean")])
def test_clean_rows_are_the_same_rows_with_their_wrong_results_put_right(name, clean):
    changed = 0
    for row, other in zip(lab.split(name), lab.split(clean), strict=True):
        flawed = row["completion"][0].isdigit() and wrong_steps(row["completion"]) != []
        changed += flawed
        if flawed:
            assert wrong_steps(other["completion"]) == []
            assert lab.verify(other["completion"], other) == 1.0
            assert {**row, "completion": ""} == {**other, "completion": ""}
        else:
            assert row == other
    assert changed == 38


def test_few_many_and_long_rows_have_the_same_share_of_flaws():
    for name, size in (("train-few", 64), ("train-many", 2048), ("long-train", 256)):
        steps = [row["completion"] for row in lab.split(name) if row["completion"][0].isdigit()]
        assert sum(wrong_steps(text) != [] for text in steps) == round(0.15 * size)
        assert len(steps) == size - round(0.05 * size)
    assert {len(re.findall(r"\d+", row["prompt"])) for row in lab.split("long-train")} == {6}
    assert {row["terms"] for row in lab.split("rl")} == {4, 5}
    assert {row["terms"] for row in lab.split("long-rl")} == {6}


def test_a_problem_that_comes_up_for_two_splits_stays_in_the_first(monkeypatch):
    held = {name: arithmetic._Held(seed=1, size=40, terms=(2,)) for name in ("first", "second")}
    monkeypatch.setattr(arithmetic, "_HELD", held)
    splits = arithmetic._held_chains.__wrapped__()
    assert len(set(splits["first"]) | set(splits["second"])) == 80


def test_a_changed_row_of_a_caller_does_not_change_the_split():
    lab.split("test")[0]["prompt"] = "changed"
    assert lab.split("test")[0]["prompt"] != "changed"


@pytest.mark.parametrize(
    ("name", "terms"), [("validation", {3, 4}), ("test", {4}), ("test-hard", {5}), ("long-test", {6})]
)
def test_held_out_rows_are_correct_steps(name, terms):
    rows = lab.split(name)
    assert {len(re.findall(r"\d+", row["prompt"])) for row in rows} == terms
    for row in rows:
        assert wrong_steps(row["completion"]) == []
        assert int(row["answer"]) == value(row["prompt"])
        assert lab.verify(row["completion"], row) == 1.0


def test_forgetting_text_is_in_the_other_styles():
    starts = [row["text"].split("?")[1][0] for row in lab.split("forgetting")]
    assert starts[::2] == ["s"] * 150
    assert starts[1::2] == ["#"] * 150


def test_pretraining_text_avoids_the_excluded_prompts():
    from random import Random

    draw = [arithmetic.draw_text(Random(1), ["words"], {2: 1.0}, ()) for _ in range(2)]
    assert draw[0] == draw[1]
    prompt = draw[0].split("?")[0] + "?"
    other = arithmetic.draw_text(Random(1), ["words"], {2: 1.0}, {prompt})
    assert not other.startswith(prompt)
    assert other.split("?")[1].startswith("start ")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lab.problems(0, -1), "size=-1"),
        (lambda: lab.problems(0, 2.5), "size=2.5"),
        (lambda: lab.problems(0, 5, terms=1), "terms=1"),
        (lambda: lab.problems(0, 5, terms=10), "terms=10"),
        (lambda: lab.problems(0, 5, terms=()), r"terms=\(\)"),
        (lambda: lab.problems(0, 5, terms=("3",)), "terms="),
        (lambda: lab.problems(0, 5_000, terms=2), "would repeat"),
        (lambda: lab.demonstrations(0, 5, noise=1.5), "noise=1.5"),
        (lambda: lab.demonstrations(0, 5, off_style=-0.1), "off_style=-0.1"),
        (lambda: lab.demonstrations(0, 5, noise=0.9, off_style=0.2), "at most 1"),
        (lambda: lab.split("tset"), "did you mean 'test'"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(call, message):
    with pytest.raises(BallastError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_lab_imports_no_torch():
    code = "import sys, ballast.lab, ballast.lab.arithmetic, ballast.lab.reasoning_gym; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
