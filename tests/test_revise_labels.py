"""Labels and texts of revising: distances against a naive program, pairs, and texts that cannot be used."""

from __future__ import annotations

from random import Random

import pytest

from ballast.errors import BallastError
from ballast.options import OptionsError
from ballast.revise import labels as rules
from ballast.revise.options import ReviseOptions, TaskLoopOptions
from ballast.revise.pairs import Answer, Pair, best_pairs, labelled, reviser_row, worse_drafts
from ballast.revise.templates import DEFAULTS, load_templates, parse, used

SAID = {"major": "[Major Revise]\n", "minor": "[Minor Revise]\n", "no": "[No Revise]"}


def distance(one: str, other: str) -> int:
    """Levenshtein's distance by its definition."""
    row = list(range(len(other) + 1))
    for count, letter in enumerate(one, start=1):
        last, row[0] = row[0], count
        for place, wanted in enumerate(other, start=1):
            last, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, last + (letter != wanted))
    return row[-1]


def test_the_distance_is_levenshteins():
    rng = Random(0)
    for _ in range(200):
        one, other = ("".join(rng.choices("abc", k=rng.randrange(9))) for _ in range(2))
        wanted = distance(one, other) / max(len(one), len(other), 1)
        assert rules.edit_distance(one, other) == pytest.approx(wanted), (one, other)


@pytest.mark.parametrize(
    ("draft", "better", "label"),
    [(1, 1, "no"), (1, 0, "no"), (0, 1, "major"), (0, 0.5, "major"), (0.5, 1, "minor"), (0.5, 0.7, "minor"),
     (0, 0, None), (0.5, 0.5, None), (0.5, 0.2, None)],
)  # fmt: skip
def test_scores_decide_the_label(draft, better, label):
    assert rules.by_scores(draft, better) == label


def test_distance_decides_the_label():
    found = [rules.by_distance("abcdefghij" * 2, other) for other in ("abcdefghij" * 2, "x" + "abcdefghij" * 2)]
    assert found == ["no", "no"]
    assert rules.by_distance("abcdefghij", "xxbcdefghij") == "minor"
    assert rules.by_distance("abcd", "wxyz") == "major"


def test_thirds_have_a_third_each():
    rng = Random(1)
    values = [rng.random() for _ in range(300)]
    found = [rules.by_difficulty(value, rules.thirds(values)) for value in values]
    assert {label: found.count(label) for label in SAID} == {"major": 100, "minor": 100, "no": 100}
    # Where the reviser would rather keep the draft, it is left alone.
    assert found[values.index(max(values))] == "no"
    assert found[values.index(min(values))] == "major"


@pytest.mark.parametrize("label", ["major", "minor"])
def test_what_is_taught_is_read_back(label):
    assert rules.read_reply(rules.reply(label, "7\n8", SAID), SAID) == (label, "7\n8")
    # The first reviser is taught the same without a label.
    assert rules.reply(label, "7", SAID).endswith(rules.reply(None, "7", SAID))


def test_a_label_that_is_not_alone_on_its_line_is_none():
    for text in ("[Major Revise] 7", "so: [Major Revise]\n7", "[No Revise] since", "", "[major revise]\n7"):
        assert rules.read_reply(text, SAID) == ("unparsed", ""), text
    assert rules.read_reply("[No Revise]\nmore", SAID) == ("no", "")


GROUP = (
    Answer("own a", 0.0),
    Answer("expert", 1.0),
    Answer("own a", 0.0),
    Answer("own b", 1.0),
    Answer("cut", 0.0, False),
)


def test_pairs_are_with_the_best_answer_that_ended():
    assert [(one.draft.text, one.better.text) for one in best_pairs("p", GROUP)] == [
        ("own a", "expert"),
        ("own b", "expert"),
        ("cut", "expert"),
    ]
    assert not list(best_pairs("p", [Answer("cut", 1.0, False)]))


def test_every_rule_labels_the_pairs_that_teach_something():
    pairs = list(best_pairs("p", GROUP))
    found = labelled(pairs, "verifier")
    assert [(label, one.draft.text) for label, one in found] == [("major", "own a"), ("no", "own b"), ("major", "cut")]
    worse = worse_drafts(pairs)
    assert [one.draft.text for one in worse] == ["own a", "cut"]
    assert [label for label, _ in labelled(worse, "none")] == [None, None]
    # One good answer to leave alone for each pair.
    made = labelled(worse, "edit")
    assert [label for label, _ in made] == ["major", "no", "major", "no"]
    assert [one.draft.text for _, one in made] == ["own a", "expert", "cut", "expert"]
    by = labelled(worse, "difficulty", difficulties=[-1.0, 1.0], thresholds=(-0.5, 0.5))
    assert [label for label, _ in by] == ["major", "no", "no", "no"]


def test_a_row_asks_as_the_loop_does():
    templates = load_templates(ReviseOptions(how="reviser"))
    pair = Pair([{"role": "user", "content": "q"}], Answer("d", 0.0), Answer("b", 1.0))
    row = reviser_row("major", pair, templates)
    text = DEFAULTS["reviser"].format(prompt="q", draft="d")
    assert row["prompt"] == [{"role": "user", "content": text}]
    assert row["completion"] == [{"role": "assistant", "content": "[Major Revise]\nb"}]
    assert reviser_row("no", Pair("q", pair.draft, pair.better), templates)["completion"] == "[No Revise]"


def test_the_default_texts_are_texts():
    for given in ({"feedback": "model"}, {"feedback": "none"}, {}, {"how": "reviser"}):
        assert set(load_templates(ReviseOptions(**given)).texts) == set(used(ReviseOptions(**given)))
    hinted = load_templates(ReviseOptions(hint="completion"), hinted=True)
    assert "completion" in hinted.names("refine")
    assert parse("a {prompt}{{b}}").fill(prompt="{draft}") == "a {draft}{b}"


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        ("refine: x {draft} {feedback}", {}, "refine: has no {prompt}"),
        ("refine: '{prompt} {drft} {feedback}'", {}, "unknown placeholder {drft}"),
        ("refine: '{prompt} {draft}'", {}, "neither {feedback} nor {history}"),
        ("refine: '{prompt} {feedback}'", {"feedback": "none"}, "leaves empty"),
        ("refine: '{prompt} {completion} {feedback}'", {}, "shows the right answer"),
        ("refine: '{prompt} {feedback}'", {"hint": "completion"}, "the hint would go unread"),
        ("refine: '{prompt} {feedback'", {}, "for braces"),
        ("refine: '{prompt!r} {feedback}'", {}, "has a format"),
        ("refine: '{} {prompt}'", {}, "unknown placeholder {}"),
        ("feedback: '{prompt}'", {"feedback": "model"}, "feedback: has no {draft}"),
        ("reviser: '{draft}'", {"how": "reviser"}, "reviser: has no {prompt}"),
        ("reviser: '{prompt} {draft} {feedback}'", {"how": "reviser"}, "unknown placeholder {feedback}"),
        ("draft: 'x'", {}, "draft: has no {prompt}"),
        ("{minor: 'yes', major: 'yes '}", {"how": "reviser"}, "two labels are the same text"),
        ("right: '{prompt}'", {}, "right: unknown placeholder {prompt}; known: none"),
        ("rfine: x", {}, "unknown text; did you mean 'refine'?"),
        ("refine: ' '", {}, "text that is not blank"),
        ("refine: 3", {}, "got 3"),
        ("- a", {}, "must hold texts by name"),
        ("", {}, "must hold texts by name"),
        ("a: [", {}, "no YAML"),
    ],
)
def test_texts_that_cannot_be_used(text, given, words, tmp_path):
    file = tmp_path / "texts.yaml"
    file.write_text(text)
    options = ReviseOptions(templates=str(file), **given)
    with pytest.raises(BallastError) as refused:
        load_templates(options, hinted=options.hint == "completion")
    assert str(refused.value).startswith(str(file))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "place", "words"),
    [
        ({"how": "reviser", "feedback": "model"}, "feedback", "a reviser's label decides"),
        ({"how": "reviser", "stop": "never"}, "stop", "a reviser's label decides"),
        ({"how": "reviser", "hint": "completion"}, "hint", "reads what it was trained on"),
        ({"reviser": "x"}, "reviser", "set how: reviser"),
        ({"stop": "words"}, "stop", "feedback: verifier has none"),
        ({"stop_words": ["a"]}, "stop_words", "set stop: words"),
        ({"stop": "words", "feedback": "model", "stop_words": []}, "stop_words", "no critique could end"),
        ({"keep": ["no"]}, "keep", "only a reviser says labels"),
        ({"keep": [], "how": "reviser"}, "keep", "no row would be left"),
        ({"keep": ["mayor"], "how": "reviser"}, "keep.0", "'mayor' is not allowed"),
        ({"label": "edit"}, "label", "without revise.pairs"),
        ({"pairs": "a.jsonl", "file": "b", "how": "reviser"}, "pairs", "one would not be written"),
        ({"rounds": -1}, "rounds", "greater than or equal to 0"),
        ({"fedback": "none"}, "fedback", "did you mean 'feedback'?"),
    ],
)
def test_options_that_do_not_go_together(given, place, words):
    with pytest.raises(OptionsError) as refused:
        ReviseOptions(**given)
    where, message = refused.value.problems[0]
    assert ".".join(map(str, where)) == place
    assert words in message


def test_an_evaluation_does_not_ask_the_verifier_unless_it_says_so():
    for key in ("stop", "feedback"):
        with pytest.raises(OptionsError, match=f"{key}: verifier tells the loop what is measured"):
            TaskLoopOptions(**{key: "verifier"})
        assert TaskLoopOptions(**{key: "verifier"}, oracle=True).signals == (key,)
    with pytest.raises(OptionsError, match="oracle: would be ignored"):
        TaskLoopOptions(oracle=True)
    with pytest.raises(OptionsError, match="hint: unknown key"):
        TaskLoopOptions(hint="completion")


def test_what_asks_the_verifier():
    assert ReviseOptions().asks_verifier == ("feedback", "stop")
    assert ReviseOptions(feedback="none", stop="never").asks_verifier == ()
    assert ReviseOptions(how="reviser").asks_verifier == ()
    assert ReviseOptions(how="reviser", accept="verifier", only_correct=True).asks_verifier == (
        "accept",
        "only_correct",
    )
    assert ReviseOptions(how="reviser", pairs="a.jsonl").asks_verifier == ("label",)
    assert (ReviseOptions().heat(1.0), ReviseOptions(how="reviser").heat(1.0)) == (1.0, 0.0)
    assert ReviseOptions(how="reviser", revision_temperature=0.5).heat(1.0) == 0.5
