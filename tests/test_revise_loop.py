"""The loop of revising: its laws, and that each law fails once the code is broken."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

import revise_tools as tools
from ballast.revise import labels, loop, rows
from revise_tools import LAWS, ROWS, Model, run

# Where, what is written there, what instead, and the law that must notice.
MUTANTS: list[tuple[ModuleType, str, str, object]] = [
    (loop, "range(options.rounds)", "range(options.rounds + 1)", tools.no_round_asks_nothing),
    (loop, "spent=draft.tokens", "spent=0", tools.no_round_asks_nothing),
    (loop, 'options.stop == "verifier" and _is_right', 'options.stop == "model" and _is_right',
     tools.a_right_draft_costs_nothing_more),
    (loop, "_is_right(one.done.last):\n            one.keep()", "_is_right(one.done.draft):\n            one.keep()",
     tools.a_right_revision_ends_the_loop),
    (loop, "spent=self.done.spent + tokens", "spent=self.done.spent", tools.a_right_draft_costs_nothing_more),
    (rows, 'revised.best if options.accept == "verifier"', 'len(revised.versions) - 1 if options.accept == "verifier"',
     tools.accepting_by_the_verifier_makes_no_row_worse),
    (loop, "key=lambda place: self.versions[place].reward or 0.0",
     "key=lambda place: (self.versions[place].reward or 0.0, place)",
     tools.accepting_by_the_verifier_makes_no_row_worse),
    (loop, "replace(one, reward=reward)", "replace(one, reward=1 - (reward or 0))",
     tools.accepting_by_the_verifier_makes_no_row_worse),
    (rows, "as_completion(row[\"prompt\"], answer.text)", "row[\"completion\"]", tools.a_copy_leaves_the_drafts),
    (loop, "versions.append(Version(text, written.ended, tokens=written.tokens))",
     "versions.append(sampled(written))", tools.a_copy_leaves_the_drafts),
    (loop, "zip(places or range(len(rows))", "zip(range(len(rows))", tools.a_row_does_not_depend_on_others),
    (loop, "_ask(states, 2 * number + 1, ", "_ask(states, 2 * number + 2, ", tools.every_text_has_a_step_of_its_own),
    (loop, "_ask(states, 2 * number + 2, \"refine\"", "_ask(states, 2, \"refine\"",
     tools.every_text_has_a_step_of_its_own),
    (loop, "any(word in written.text for", "any(word in written.text + one.done.last.text for",
     tools.words_end_the_loop_where_they_are_said_and_keep_what_was_judged),
    (loop, 'options.stop == "words" and any', 'options.stop == "never" and any',
     tools.words_end_the_loop_where_they_are_said_and_keep_what_was_judged),
    (loop, "one.keep(no_room=True)", "one.keep()", tools.what_does_not_fit_keeps_what_there_is),
    (loop, "self.done, self.open = replace(self.done, no_room=no_room), False",
     "self.done = replace(self.done, no_room=no_room)", tools.what_does_not_fit_keeps_what_there_is),
    (labels, ".split(\"\\n\", 1)[0].strip() ==", ".strip() ==", tools.labels_decide),
    (labels, "text.startswith(labels[label]) and", "labels[label] in text and text !=", tools.labels_decide),
    (labels, "and text[len(labels[label]) :].strip()", "", tools.labels_decide),
    (loop, "one.done = replace(one.done, spent=one.done.spent + written.tokens)\n            one", "one",
     tools.labels_decide),
    (loop, 'one.say(templates.texts["right"', 'one.say(str(one.row["completion"]) + templates.texts["right"',
     tools.the_verifiers_word_does_not_tell_the_answer),
    (rows, "answer.ended and wanted", "wanted", tools.rows_that_are_not_wanted_are_left_out),
    (rows, "revised.label in options.keep", "True", tools.rows_that_are_not_wanted_are_left_out),
    (rows, "not options.only_correct or", "True or", tools.rows_that_are_not_wanted_are_left_out),
]  # fmt: skip


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law):
    law()


@pytest.mark.parametrize("place", range(len(MUTANTS)), ids=lambda place: f"{place}-{MUTANTS[place][3].__name__}")
def test_a_law_fails_on_its_mutant(place, monkeypatch):
    module, written, instead, law = MUTANTS[place]
    source = inspect.getsource(module)
    assert source.count(written) == 1, (written, source.count(written))
    broken: dict = dict(vars(module))
    exec(compile(source.replace(written, instead), module.__file__, "exec"), broken)
    for owner in (loop, rows, labels):
        for name in set(vars(owner)) & set(broken):
            own = getattr(owner, name)
            if getattr(own, "__module__", None) == module.__name__ and callable(own):
                monkeypatch.setattr(owner, name, broken[name])
    with pytest.raises(AssertionError):
        law()


def test_every_law_has_a_mutant():
    assert {law for *_, law in MUTANTS} == set(LAWS)


def test_the_history_has_every_version_and_what_was_said_of_it(tmp_path):
    (tmp_path / "own.yaml").write_text(
        'feedback: "{history}|{prompt}|{draft}"\nrefine: "{history}|{prompt}"\nturn: "<{draft}:{feedback}>"\n'
    )
    model = Model(lambda prompt, place, step: f"s{step}")
    run(model, ["d"], rounds=2, feedback="model", stop="never", templates=str(tmp_path / "own.yaml"))
    assert [prompt for _, _, prompt in model.asked] == [
        "|1+1=|d",
        "<d:s1>|1+1=",
        "<d:s1>|1+1=|s2",
        "<d:s1><s2:s3>|1+1=",
    ]


def test_braces_in_data_stand_for_themselves(tmp_path):
    (tmp_path / "own.yaml").write_text('refine: "{{x}} {prompt} {draft}"\n')
    model = Model(lambda *_: "{draft} {")
    (one,) = run(model, ["{prompt}"], rounds=2, feedback="none", stop="never", templates=str(tmp_path / "own.yaml"))
    assert [prompt for _, _, prompt in model.asked] == ["{x} 1+1= {prompt}", "{x} 1+1= {draft} {"]
    assert one.last.text == "{draft} {"


def test_a_chat_is_asked_in_its_last_message():
    from ballast.revise.templates import asking, question

    row = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "tools": []}
    assert question(row) == "q"
    asked = asking(row, "again")
    assert asked == {**row, "prompt": [row["prompt"][0], {"role": "user", "content": "again"}]}
    assert row["prompt"][1]["content"] == "q"
    assert asking(ROWS[0], "again")["prompt"] == "again"
