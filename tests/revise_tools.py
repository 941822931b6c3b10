"""What the tests of revising share: rows, models that write what they are told, and laws that hold of the loop.

A law is a function without arguments that asserts; a mutant replaces a piece of the code, and its law must then fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ballast.revise import loop, rows
from ballast.revise.loop import Revised, Version
from ballast.revise.options import ReviseOptions
from ballast.revise.templates import load_templates

ROWS = [{"prompt": f"{n}+{n}=", "completion": f"sum {2 * n}", "answer": str(2 * n)} for n in range(1, 7)]
RIGHT = "right"


@dataclass(frozen=True)
class Said:
    """What a model wrote: a token for each letter."""

    text: str
    ended: bool = True

    @property
    def tokens(self) -> int:
        return len(self.text)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(map(ord, self.text))


@dataclass
class Model:
    """Writes ``answer(prompt, place, step)``, None where there is no room, and remembers what it was asked."""

    answer: Callable[[str, int, int], str | None]
    asked: list[tuple[int, int, str]] = field(default_factory=list)

    def __call__(self, some: Any, step: int) -> list[Said | None]:
        self.asked += [(place, step, row["prompt"]) for place, row in some]
        texts = [self.answer(row["prompt"], place, step) for place, row in some]
        return [None if text is None else Said(text) for text in texts]


def judge(versions: Sequence[Version], judged: Any) -> list[float]:
    """Score 1 for answers that say so, a half for those with an ``h``."""
    return [1.0 if RIGHT in one.text else 0.5 if "h" in one.text else 0.0 for one in versions]


def run(model: Model, drafts: Sequence[str], *, places: Sequence[int] | None = None, **given: Any) -> list[Revised]:
    """Return what becomes of drafts of the first rows."""
    options = options_of(**given)
    templates = load_templates(options, hinted=options.hint == "completion")
    chosen = range(len(drafts)) if places is None else places
    asked = [ROWS[place] for place in chosen]
    versions = [Version(one, tokens=len(one)) for one in drafts]
    return loop.revise(asked, versions, options, templates, write=model, judge=judge, places=list(chosen))


def options_of(**given: Any) -> ReviseOptions:
    return ReviseOptions(**{"verifier": "exact", **given})


def answers(revised: Sequence[Revised], **given: Any) -> list[dict[str, Any]]:
    options = options_of(**given)
    return [rows.record(place, ROWS[place], one, options) for place, one in enumerate(revised)]


def no_round_asks_nothing() -> None:
    model = Model(lambda *_: "x")
    (one,) = run(model, ["draft"], rounds=0)
    assert (one.versions, model.asked, one.spent) == ((Version("draft", reward=0.0, tokens=5),), [], 5)


def a_right_draft_costs_nothing_more() -> None:
    model = Model(lambda *_: "x")
    right, wrong = run(model, [RIGHT, "wrong"], rounds=2, feedback="model", stop="verifier")
    assert right.spent == len(RIGHT)
    assert len(right.versions) == 1
    assert {place for place, _, _ in model.asked} == {1}
    assert wrong.spent == len("wrong") + 4


def a_right_revision_ends_the_loop() -> None:
    model = Model(lambda prompt, place, step: RIGHT if step == 2 else "x")
    (one,) = run(model, ["wrong"], rounds=4, feedback="verifier", stop="verifier")
    assert [version.text for version in one.versions] == ["wrong", RIGHT]


def accepting_by_the_verifier_makes_no_row_worse() -> None:
    worse = {0: ["x", "hh"], 1: ["x", "x"], 2: ["h", "right!"], 3: ["h", "x"]}
    model = Model(lambda prompt, place, step: worse[place][step // 2 - 1])
    given = {"rounds": 2, "feedback": "none", "stop": "never"}
    found = run(model, ["h", "h first", "x", RIGHT], **given)
    kept = answers(found, accept="verifier", **given)
    scores = [[version["reward"] for version in row["versions"]] for row in kept]
    assert all(some[row["answer_version"]] >= some[0] for some, row in zip(scores, kept, strict=True))
    # The best, and of equals the earliest.
    assert [row["completion"] for row in kept] == ["h", "h first", "right!", RIGHT]
    assert [row["completion"] for row in answers(found, **given)] == ["hh", "x", "right!", "x"]


def a_copy_leaves_the_drafts() -> None:
    drafts = ["one", "two", "three"]
    for model, given in (
        (Model(lambda prompt, place, step: drafts[place]), {"feedback": "none", "stop": "never"}),
        (Model(lambda prompt, place, step: f"[Minor Revise]\n{drafts[place]}"), {"how": "reviser"}),
        (Model(lambda *_: "[No Revise]"), {"how": "reviser"}),
    ):
        kept = answers(run(model, drafts, **given), **given)
        assert [row["completion"] for row in kept] == [row["draft"] for row in kept] == drafts


def a_row_does_not_depend_on_others() -> None:
    model = Model(lambda prompt, place, step: f"{place} {step}" if (place + step) % 3 else "[correct]")
    given = {"rounds": 3, "feedback": "model", "stop": "words"}
    drafts = [f"draft {place}" for place in range(6)]
    whole = run(model, drafts, **given)
    parts = [one for place in (5, 0, 3, 1, 2, 4) for one in run(model, [drafts[place]], places=[place], **given)]
    assert [parts[place] for place in (1, 3, 4, 2, 5, 0)] == whole


def every_text_has_a_step_of_its_own() -> None:
    model = Model(lambda *_: "x")
    run(model, ["a", "b"], rounds=3, feedback="model", stop="never")
    steps = [(place, step) for place, step, _ in model.asked]
    assert sorted(steps) == [(place, step) for place in (0, 1) for step in range(1, 7)]


def words_end_the_loop_where_they_are_said_and_keep_what_was_judged() -> None:
    def said(prompt: str, place: int, step: int) -> str:
        return {(0, 1): "all is well [correct]", (1, 2): "[correct] rewritten"}.get((place, step), "no")

    model = Model(said)
    first, second = run(model, ["good", "bad"], rounds=2, feedback="model", stop="words")
    assert [one.text for one in first.versions] == ["good"]
    assert first.versions[0].feedback == "all is well [correct]"
    # In an answer the words mean nothing.
    assert [one.text for one in second.versions] == ["bad", "[correct] rewritten", "no"]


def what_does_not_fit_keeps_what_there_is() -> None:
    model = Model(lambda prompt, place, step: None if (place, step) in ((0, 1), (1, 4)) else "new")
    first, second, third = run(model, ["a", "b", "c"], rounds=2, feedback="model", stop="never")
    assert [[one.text for one in row.versions] for row in (first, second)] == [["a"], ["b", "new"]]
    assert [row.no_room for row in (first, second, third)] == [True, True, False]


def labels_decide() -> None:
    said = ["[Major Revise]\nnew", "[Minor Revise]\nbit", "[No Revise]", "x [Major Revise]\ny", "[Major Revise]\n "]
    said.append("[No Revise]\nx")
    found = run(Model(lambda prompt, place, step: said[place]), ["draft"] * 6, how="reviser")
    assert [one.label for one in found] == ["major", "minor", "no", "unparsed", "unparsed", "no"]
    assert [one.last.text for one in found] == ["new", "bit", *["draft"] * 4]
    assert [one.spent - len("draft") for one in found] == [len(one) for one in said]


def the_verifiers_word_does_not_tell_the_answer() -> None:
    model = Model(lambda *_: "x")
    run(model, ["draft"] * 3, rounds=2, feedback="verifier")
    assert not [prompt for place, _, prompt in model.asked if ROWS[place]["completion"] in prompt]
    assert all("The answer is wrong." in prompt for _, _, prompt in model.asked)
    hinted = Model(lambda *_: "x")
    run(hinted, ["draft"] * 3, hint="completion")
    assert all(ROWS[place]["completion"] in prompt for place, _, prompt in hinted.asked)


def rows_that_are_not_wanted_are_left_out() -> None:
    said = ["[Major Revise]\nright", "[Minor Revise]\nx", "[No Revise]", "?"]
    found = run(Model(lambda prompt, place, step: said[place]), ["draft"] * 4, how="reviser")
    for given, kept in (
        ({}, [True] * 4),
        ({"keep": ("major", "no")}, [True, False, True, False]),
        ({"only_correct": True}, [True, False, False, False]),
    ):
        assert [row["kept"] for row in answers(found, how="reviser", **given)] == kept
    cut = [Revised((Version("draft"), Version("cut", ended=False)))]
    assert [row["kept"] for row in answers(cut)] == [False]


LAWS = (
    no_round_asks_nothing,
    a_right_draft_costs_nothing_more,
    a_right_revision_ends_the_loop,
    accepting_by_the_verifier_makes_no_row_worse,
    a_copy_leaves_the_drafts,
    a_row_does_not_depend_on_others,
    every_text_has_a_step_of_its_own,
    words_end_the_loop_where_they_are_said_and_keep_what_was_judged,
    what_does_not_fit_keeps_what_there_is,
    labels_decide,
    the_verifiers_word_does_not_tell_the_answer,
    rows_that_are_not_wanted_are_left_out,
)
