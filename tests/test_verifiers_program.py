"""Answers that are programs: what counts as a program, what it may answer, and that nothing else is an answer."""

import os
import threading

import pytest

from ballast.errors import BallastError
from ballast.evaluation import Completion, kinds
from ballast.evaluation.tasks import Task
from ballast.groups import GroupOptions
from ballast.rl import RLOptions
from ballast.rl.rewards import WRONG, reward_verifier
from ballast.verifiers import program, registry, sandbox, verifier
from ballast.verifiers.code import ProgramResult
from ballast.verifiers.registry import read_answers, score_answers
from ballast.verifiers.worker import VerifierUnavailable

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX resource limits")

QUESTION = "Question:\nHow much?\nAnswer reasoning:\n"
ROW = {"prompt": QUESTION + 'def solution():\n    """How much,\nin all?"""\n', "answer": "12.5"}
ALLOWED = {"allow_code_execution": True, "seconds": 3}

ANSWERS = {
    "whole program": ("def solution():\n    apples = 5\n    return apples * 2.5\n", "12.5"),
    "the prompt's function goes on": ("    apples = 5\n\n    return apples * 2.5\n", "12.5"),
    "prose behind it": ("    return 12.5\n\nSo it is twelve and a half.", "12.5"),
    "a fenced block": (
        "Here:\n```python\nfrom math import sqrt\ndef solution():\n    return sqrt(156.25)\n```",
        "12.5",
    ),
    "helpers": ("def half(x):\n    return x / 2\n\n\ndef solution():\n    return half(25)\n", "12.5"),
    "a helper behind": ("def solution():\n    return half(25)\n\ndef half(x):\n    return x / 2\n", "12.5"),
    "math is there": ("    return math.sqrt(156.25)", "12.5"),
    "a fraction": ("    from fractions import Fraction\n    return Fraction(25, 2)", "12.5"),
    "within the tolerance": ("    return 12.509", "12.509"),
    "a whole number": ("    return 12", "12"),
    "called behind, which is not run": ("    return 3\n\nraise SystemExit", "3"),
}
NONE = {
    "None": "    apples = 5",
    "an exception": "    return 1 / 0",
    "text": "    return '12.5'",
    "a flag": "    return True",
    "a list": "    return [12.5]",
    "a complex number": "    return 12.5 + 0j",
    "infinity": "    return float('inf')",
    "not a number": "    return float('nan')",
    "beyond any float": "    return 10**400",
    "leaving early": "    import os\n    os._exit(0)",
    "sys.exit": "    import sys\n    sys.exit(12.5)",
    "no Python": "def solution(:\n    return 12.5",
    "nested without end": "    return " + "(" * 5000,
}


@pytest.fixture(params=["bwrap", "rlimits"])
def kind(request, monkeypatch):
    if request.param == "rlimits":
        monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    elif sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap is not installed, or may not make namespaces here")


@pytest.mark.parametrize("case", ANSWERS)
def test_what_a_program_answers(case):
    text, value = ANSWERS[case]
    verify = verifier("program", **ALLOWED)
    assert verify.read(text, ROW) == value
    assert verify(text, ROW) == float(abs(float(value) - 12.5) <= 0.01)


@pytest.mark.parametrize("case", NONE)
def test_what_is_no_answer(case):
    verify, reft = verifier("program", **ALLOWED), reward_verifier("program", "reft", **ALLOWED)
    assert verify.read(NONE[case], ROW) is None
    assert (verify(NONE[case], ROW), reft(NONE[case], ROW)) == (0.0, 0.0)


def test_without_a_function_nothing_is_run(monkeypatch):
    monkeypatch.setattr(program, "run_program", lambda *_, **__: pytest.fail("a program was run"))
    row = {"prompt": QUESTION, "answer": "12.5"}
    assert verifier("program", **ALLOWED).read("the answer is 12.5", row) is None


def test_both_sandboxes(kind):
    verify = verifier("program", **ALLOWED)
    answers = [("    return 12.5", ROW), ("    return 3", ROW), ("    while True: pass", ROW)]
    quick = verifier("program", allow_code_execution=True, seconds=0.5)
    assert score_answers(verify, answers[:2]).scores == (1.0, 0.0)
    assert read_answers(quick, answers) == ["12.5", "3", None]


def test_the_third_value_is_for_numbers_alone():
    reft = reward_verifier("program", "reft", **ALLOWED)
    texts = ("    return 12.5", "    return 3", "    return None")
    assert [reft(text, ROW) for text in texts] == [1.0, WRONG, 0.0]


def test_the_tolerance_is_absolute_and_both_ends_count():
    def right(tolerance, value, answer="1000000"):
        return verifier("program", tolerance=tolerance, **ALLOWED)(f"    return {value}", {**ROW, "answer": answer})

    assert right(0.01, "0.01", "0") == right(0.01, "-0.01", 0) == right(0.25, "1000000.25") == 1
    assert right(0.01, "0.0101", "0") == right(0.01, "1000000.02") == right(0, "1000000.0001") == 0
    assert right(0, "10**6") == right(0, "1e6") == 1


def test_a_program_is_run_once_for_its_score_and_its_answer(monkeypatch):
    runs = []
    monkeypatch.setattr(
        program, "run_program", lambda text, *_, **__: runs.append(text) or ProgramResult("passed", "12.5")
    )
    verify = reward_verifier("program", "reft", **ALLOWED)
    for _ in range(2):
        assert (verify("    return 12.5", ROW), verify("    return 3 + 9.5", ROW)) == (1.0, 1.0)
        assert verify.read("    return 12.5", ROW) == "12.5"
    assert len(runs) == 2


def test_a_task_runs_each_program_once_for_accuracy_and_vote(monkeypatch):
    runs = []
    monkeypatch.setattr(
        program, "run_program", lambda text, *_, **__: runs.append(text) or ProgramResult("passed", "12.5")
    )
    answer = Completion("    return 12.5", 3, True, ())
    monkeypatch.setattr(kinds, "_answers", lambda *_: ([[answer] * 2], {}, {}))
    monkeypatch.setattr(registry.os, "cpu_count", lambda: 1)
    sampled = {"samples": 2, "temperature": 1.0, "allow_code_execution": True}
    task = Task(name="sums", kind="generate", data=[ROW], verifier="program", **sampled)
    measured, _, items = kinds.KINDS["generate"].measure(task, [ROW], kinds.Context(None, None, None, None))
    assert (measured["maj@2"].value, items[0]["read"], len(runs)) == (1.0, ["12.5"] * 2, 1)


def test_programs_are_run_side_by_side(monkeypatch):
    together = threading.Barrier(2, timeout=20)

    def run(*_, **__):
        together.wait()
        return ProgramResult("passed", "12.5")

    monkeypatch.setattr(registry.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(program, "run_program", run)
    scored = score_answers(verifier("program", **ALLOWED), [("    return 1", ROW), ("    return 2", ROW)])
    assert scored.scores == (1.0, 1.0)
    assert score_answers(verifier("program", **ALLOWED), []).scores == ()


@pytest.mark.parametrize("ask", [score_answers, read_answers])
def test_more_programs_than_are_kept_run_once_each_and_side_by_side(ask, monkeypatch):
    threads = []
    done = ProgramResult("passed", "12.5")
    monkeypatch.setattr(program, "run_program", lambda *_, **__: threads.append(threading.get_ident()) or done)
    monkeypatch.setattr(registry, "PROGRAMS_KEPT", 4)
    ask(verifier("program", **ALLOWED), [(f"    return {number}", ROW) for number in range(10)])
    assert len(threads) == 10
    assert threading.get_ident() not in threads


def test_what_the_program_says_of_itself_is_not_its_answer():
    # It may print, leave a result and end; the number is what its own process hands over with the token.
    forged = "    global __result__\n    __result__ = b'12.5'\n    import os\n    os._exit(0)"
    assert verifier("program", **ALLOWED).read(forged, ROW) is None


def test_permission_and_values_that_are_refused():
    with pytest.raises(BallastError, match=r"'program' runs what the model writes .* Set allow_code_execution"):
        verifier("program")
    with pytest.raises(BallastError, match="allow_code_execution"):
        verifier("program", allow_code_execution=1)
    with pytest.raises(BallastError, match="tolerance = -1"):
        verifier("program", tolerance=-1, allow_code_execution=True)
    with pytest.raises(BallastError, match="no 'answer' to judge by"):
        registry.check_rows(verifier("program", **ALLOWED), [{"prompt": "x"}])
    with pytest.raises(BallastError, match="has no number"):
        registry.check_rows(verifier("program", **ALLOWED), [{"prompt": "x", "answer": "many"}])


def test_programs_that_cannot_be_run_end_the_run(monkeypatch):
    def refused(*_, **__):
        raise BallastError("programs cannot be limited here")

    monkeypatch.setattr(program, "run_program", refused)
    with pytest.raises(VerifierUnavailable, match="cannot be limited"):
        score_answers(verifier("program", **ALLOWED), [("    return 1", ROW)])


NAMING = {
    "groups": lambda **options: GroupOptions(**options),
    "rl": lambda **options: RLOptions(**options),
    "task": lambda **options: Task(name="x", kind="generate", data="rows.jsonl", **options),
}


@pytest.mark.parametrize("made", NAMING.values(), ids=NAMING)
def test_whatever_names_a_verifier_says_so_before_anything_is_loaded(made):
    assert made(verifier="program", allow_code_execution=True, tolerance=0).tolerance == 0
    with pytest.raises(BallastError, match="allow_code_execution: verifier program runs what the model writes"):
        made(verifier="program")
    for option in ({"tolerance": 0.1}, {"allow_code_execution": True}):
        with pytest.raises(BallastError, match=f"{next(iter(option))}: would be ignored: only verifier program"):
            made(verifier="math", **option)
    with pytest.raises(BallastError, match="tolerance: should be greater than or equal to 0; got -1"):
        made(verifier="program", allow_code_execution=True, tolerance=-1)
