"""The settings of a report: what was trained on what, and what few objectives have of their own."""

from dataclasses import replace

import pytest

import report_records
from ballast.report.build import build
from ballast.report.sections.settings import settings
from ballast.report.source import load


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return load([report_records.with_random(tmp_path_factory.mktemp("settings") / "lab")])


def test_settings_name_rl_and_what_few_objectives_have_of_their_own(source):
    made = settings(source)
    facts = {row[0].text: row[1] for row in made.tables[0].rows}
    assert "steps 30" in facts["RL"].text
    assert "verifier ballast.lab.arithmetic:verify" in facts["RL"].text
    assert facts["training"].text == "num_train_epochs 4, per_device_train_batch_size 32"
    assert (facts["model"].text, facts["model"].detail) == ("lab", "llama, 1,217,280 parameters")
    runs = []
    for run in source.runs:
        recipe = run.record.recipe
        if run.label == "eksft":
            recipe = {**recipe, "training": {"max_steps": 10, "learning_rate": 1e-4, "num_train_epochs": 4}}
        runs.append(replace(run, record=run.record.model_copy(update={"recipe": recipe})))
    of_changed = settings(replace(source, runs=tuple(runs)))
    objectives = {row[0].text: row[1] for row in of_changed.tables[1].rows}
    assert objectives["eksft"].note == "training: max_steps 10, per_device_train_batch_size as by default"
    assert [objectives[label].note for label in ("sft", "prift-mass", "random")] == ["", "", ""]
    assert [row[0].detail for row in of_changed.tables[1].rows] == ["rate 3e-4"] * 4


def test_the_status_says_what_was_trained_on_what(source):
    assert build(source).status == (
        "lab on lab:train (64 rows): 3 objectives at 2 learning rates, 3 seeds, RL after each; 36 runs finished"
    )


def test_of_rl_the_main_settings_and_what_is_no_default_are_shown(source):
    recipe = source.plan.recipe
    rl = {**recipe["rl"], "data": ["a.jsonl", "b.jsonl"], "beta": 0.05}
    plan = source.plan.model_copy(update={"recipe": {**recipe, "rl": rl}})
    facts = {row[0].text: row[1].text for row in settings(replace(source, plan=plan)).tables[0].rows}
    assert facts["RL"] == (
        "data a.jsonl, b.jsonl, verifier ballast.lab.arithmetic:verify, prompts 16, group 8, max_new_tokens 256, "
        "learning_rate 1e-06, steps 30, beta 0.05"
    )
