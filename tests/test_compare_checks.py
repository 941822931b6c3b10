"""What a comparison refuses before a weight is read: one line each, with the key and the remedy."""

import json
from pathlib import Path

import pytest

from ballast.compare import COMPARE_CHECKS
from ballast.compare.checks import check_choice, check_halving, check_place, check_rows, check_section, check_then
from ballast.config.recipe import load_recipe
from ballast.config.source import RecipeError
from ballast.pipeline.checks import common

BASE = """\
model: lab
data: {train: lab:train}
compare:
  objectives: [sft, {label: soft, name: eksft, rho: 0.1}]
  rates: [1e-4, 3e-4]
  choose_by: {task: validation, metric: accuracy}
training: {gradient_checkpointing: false}
evaluation:
  tasks:
    - {name: validation, data: lab:validation, limit: 4}
    - {name: test, data: lab:test, limit: 4}
output: out
"""
CHEAP = (check_section, check_choice, check_rows, check_halving, check_then)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(BASE)
    return "recipe.yaml"


def problems(recipe, *overrides, checks=CHEAP):
    try:
        load_recipe(recipe, overrides, checks=checks)
    except RecipeError as error:
        return list(error.problems)
    return []


def only(recipe, *overrides, checks=CHEAP):
    found = problems(recipe, *overrides, checks=checks)
    assert len(found) == 1, found
    assert "\n" not in found[0]
    return found[0]


def test_the_recipe_of_these_tests_is_fine(recipe):
    assert problems(recipe, checks=COMPARE_CHECKS) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("compare.objectives=[]", "compare.objectives: names nothing to compare"),
        ("compare.objectives=[sft, dtf]", "compare.objectives.1.name: unknown name 'dtf'; did you mean 'dft'?"),
        ("compare.objectives.1.roh=0.1", "compare.objectives.1.roh: "),
        ("compare.objectives=[sft, sft]", "compare.objectives.1: a second row labelled 'sft'"),
        ("compare.objectives.1.label=SFT", "compare.objectives.1.label: a second row labelled 'SFT'"),
        ("compare.objectives.1.label=base", "compare.objectives.1.label: label 'base' is the name of another row"),
        ("compare.objectives.1.label=../up", "compare.objectives.1.label: label '../up' cannot name a folder"),
        ("compare.objectives.1.label=.hidden", "compare.objectives.1.label: label '.hidden' cannot name a folder"),
        ("compare.objectives.1.groups={own: 2}", "compare.objectives.1.groups: objective eksft trains on demonstr"),
        ("compare.objectives.1.training={max_lenght: 8}", "compare.objectives.1.training.max_lenght: unknown key"),
        (
            "compare.objectives.1.training={learning_rate: 1e-4}",
            "compare.objectives.1.training.learning_rate: would be",
        ),
        ("compare.objectives.1.rates=[1e-4, 1e-4]", "compare.objectives.1.rates: 0.0001 is listed twice"),
        ("compare.objectives.1.data=none.jsonl", "compare.objectives.1.data: none.jsonl: no such file or folder"),
        (
            "compare.objectives.1.data=[lab:train, lab:tain]",
            "compare.objectives.1.data.1: lab:tain: the lab has no such",
        ),
        ("compare.objectives.1.data={train: lab:train}", "compare.objectives.1.data: "),
        ("compare.objectives.1.label=a/b", "compare.objectives.1.label: label 'a/b' cannot name a folder"),
        ("compare.objectives.1.label=a\\b", "cannot name a folder; use up to 100 letters, digits and . _ -"),
        (f"compare.objectives.1.label={'a' * 101}", "cannot name a folder; use up to 100 letters"),
        ("compare.objectives.1.label=random", "label 'random' is the name of another row; choose another"),
        ("compare.rates=[1e-4, 1e-4]", "compare.rates: 0.0001 is listed twice"),
        ("compare.rates=[0, 1]", "compare.rates: 0 is no learning rate"),
        ("compare.rates=[.nan, 1]", "compare.rates: nan is no learning rate"),
        ("compare.tuning_seeds=0", "compare.tuning_seeds: should be greater than or equal to 1"),
        ("compare.seeds=1001", "compare.seeds: should be less than or equal to 1000"),
        ("compare.seeds=2.5", "compare.seeds: should be"),
        ("compare.rates=[0.1, -1]", "compare.rates: -1 is no learning rate"),
        ("compare.rates=[.inf, 1]", "compare.rates: inf is no learning rate"),
        ("compare.rates=[]", "compare.rates: names no learning rate"),
        ("compare.baseline=soff", "compare.baseline: no row is labelled 'soff'; did you mean 'soft'?"),
        ("compare.seeds=0", "compare.seeds: should be greater than or equal to 1"),
        ("compare.budget={}", "compare.budget: takes steps or tokens, one of the two"),
        ("compare.budget={steps: 3, tokens: 9}", "compare.budget: takes steps or tokens, one of the two"),
        ("compare.choose_by.task=validatoin", "no evaluation task is named 'validatoin'; did you mean 'validation'?"),
        ("compare.choose_by.metric=acuracy", "does not measure 'acuracy'; did you mean 'accuracy'?"),
        ("compare.choose_by.metric=entropy", "task 'validation' does not measure 'entropy'"),
        ("compare.choose_by.metric=pass@8", "compare.choose_by.metric: task 'validation' does not measure 'pass@8'"),
        ("compare.choose_by=null", "compare.choose_by: is required and missing"),
        ("compare.rates=[1e-4]", "compare.choose_by: every row has one rate, so there is nothing to choose"),
        ("objective=sft", "objective: would be ignored: compare.objectives lists what is trained"),
        ("training.learning_rate=1e-4", "training.learning_rate: would be overridden by the rates"),
        ("groups={verifier: exact}", "groups: no row trains on groups, so they would be ignored"),
        ("rl={verifier: exact}", "rl: would be ignored: nothing says that RL follows"),
        ("compare.then={rl: {stesp: 3, verifier: exact}}", "compare.then.rl.stesp: unknown key; did you mean 'steps'?"),
        ("compare.then={rl: {steps: 3}}", "compare.then.rl.verifier: is required and missing"),
        ("compare.then={rl: {verifier: exakt}}", "compare.then.rl.verifier: unknown verifier"),
        ("compare.then={}", "compare.then.rl: is required and missing"),
    ],
)
def test_a_bad_value_is_one_line_with_its_key(recipe, override, said):
    assert said in only(recipe, override)


def test_a_row_of_other_data_shares_no_budget_of_tokens_and_no_demonstrations(recipe):
    own = "compare.objectives.1.data=lab:train-few"
    assert "compare.objectives.1.data: compare.budget.tokens counts" in only(recipe, own, "compare.budget={tokens: 99}")
    ready = "{name: ready, kind: readiness, data: lab:test, verifier: exact, limit: 4, demonstrations: data.train}"
    said = only(recipe, own, f"evaluation.tasks.1={ready}")
    assert "compare.objectives.1.data: task 'ready' asks each row its own demonstrations" in said
    assert problems(recipe, f"evaluation.tasks.1={ready}") == []


def test_what_has_no_better_end_chooses_nothing(recipe):
    readiness = (
        "evaluation.tasks.0={name: validation, kind: readiness, data: lab:validation, verifier: exact, limit: 4}"
    )
    assert "neither more nor less of 'entropy' is better" in only(recipe, readiness, "compare.choose_by.metric=entropy")


def test_everything_is_said_at_once(recipe):
    found = problems(recipe, "compare.baseline=x", "compare.choose_by.task=y", "compare.objectives.1.label=base")
    assert len(found) == 3


def test_no_section_at_all(recipe):
    Path("recipe.yaml").write_text("model: lab\ndata: {train: lab:train}\noutput: out\n")
    assert "compare: is required and missing; say what to compare" in only(recipe)


@pytest.mark.parametrize("data", ["lab:validation", "copy.jsonl"])
def test_items_that_choose_the_rate_are_not_reported(recipe, data):
    from ballast.lab import split

    rows = [*split("test")[:2], split("validation")[3]]
    Path("copy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"lab:validation": 4, "copy.jsonl": 1}[data]
    said = only(recipe, f"evaluation.tasks.1.data={data}")
    assert f"compare.choose_by.task: 'validation' and the reported task 'test' share {shared} items" in said


def test_prompts_are_compared_as_messages_too(recipe):
    row = {"prompt": [{"role": "user", "content": "1+1"}], "answer": "2"}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    override = "evaluation.tasks=[{name: validation, data: rows.jsonl}, {name: test, data: rows.jsonl}]"
    assert "share 1 items" in only(recipe, override)


def test_something_is_left_to_report(recipe):
    override = "evaluation.tasks=[{name: validation, data: lab:validation, limit: 4}]"
    assert "'validation' chooses the rate, and no other is there to report" in only(recipe, override)


def test_a_budget_leaves_no_room_for_another_length(recipe):
    budget = "compare.budget={steps: 3}"
    assert "training.max_steps: would be overridden by compare.budget" in only(recipe, budget, "training.max_steps=4")
    assert problems(recipe, budget, "compare.objectives.1.training={max_steps: 5}") == []


def test_tokens_say_nothing_of_rows_whose_answers_are_sampled(recipe):
    rows = "compare.objectives=[sft, {name: gft, groups: {verifier: exact}}]"
    budget = "compare.budget={tokens: 1000}"
    assert "compare.objectives.1: objective gft reads answers that are not sampled yet" in only(recipe, rows, budget)
    assert problems(recipe, rows, budget, "compare.objectives.1.training={max_steps: 2}") == []
    assert "compare.budget.tokens: packing decides" in only(recipe, budget, "training.packing=true")


HALVED = "compare.budget={steps: 48, halving: {}}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["compare.budget={tokens: 999, halving: true}"],
            "compare.budget.halving: divides steps, which a budget of to",
        ),
        (["compare.budget={halving: true}"], "compare.budget: takes steps or tokens, one of the two"),
        ([HALVED, "compare.budget.halving.eta=1"], "compare.budget.halving.eta: should be greater than or equal to 2"),
        ([HALVED, "compare.budget.halving.eta=2.5"], "compare.budget.halving.eta: should be a valid integer"),
        ([HALVED, "compare.budget.halving.eta=0"], "compare.budget.halving.eta: should be greater than or equal to 2"),
        (
            [HALVED, "compare.budget.halving.eta=5"],
            "compare.budget.halving: 4 pairs of objective and rate cannot be cut to 1/5, so",
        ),
        ([HALVED, "compare.budget.halving.min_steps=0"], "compare.budget.halving.min_steps: should be greater than"),
        (
            [HALVED, "compare.budget.halving.min_steps=13"],
            "compare.budget.halving.min_steps: leaves no rung below the budget: the longest has 48 / 4 steps; take",
        ),
        ([HALVED, "compare.budget.halving.min_step=4"], "compare.budget.halving.min_step: unknown key; did you mean"),
        ([HALVED, "compare.budget.halving=yes please"], "compare.budget.halving: "),
        ([HALVED, "compare.budget.halving=3"], "compare.budget.halving: "),
        (
            ["compare.budget={steps: 3, halving: true}"],
            "compare.budget.halving.eta: 3 / 4 is less than one step; take",
        ),
        (
            [HALVED, "compare.objectives=[sft]", "compare.rates=[1e-4]"],
            "compare.budget.halving: 1 pair of objective and rate cannot be cut to 1/4, so there is nothing to",
        ),
        (
            [HALVED, "compare.choose_by=null"],
            "compare.choose_by: is required and missing: of several pairs of objective",
        ),
        (
            [HALVED, "compare.objectives.1.training={num_train_epochs: 2}"],
            "compare.objectives.1.training.num_train_epochs: a rung of compare.budget.halving is a share of a row's",
        ),
        (
            [HALVED, "compare.objectives.1.training={max_steps: 3}"],
            "compare.objectives.1.training.max_steps: 3 steps leave less than one for the rung of 12 of 48",
        ),
        (
            [HALVED, "training.warmup_steps=12"],
            "training.warmup_steps: a rung of 12 steps would end within a warm-up of 12, and rank rates that it never",
        ),
        (
            [HALVED, "compare.objectives.1.training={max_steps: 10, warmup_steps: 3}"],
            "compare.objectives.1.training.warmup_steps: a rung of 3 steps would end within a warm-up of 3",
        ),
        (
            [HALVED, "evaluation.tasks.0.data=lab:test"],
            "compare.choose_by.task: 'validation' and the reported task 'test' share",
        ),
        # Without a rate to choose, too: objectives are.
        (
            [HALVED, "compare.budget.halving.eta=2", "compare.rates=[1e-4]", "evaluation.tasks.0.data=lab:test"],
            "compare.choose_by.task: 'validation' and the reported task 'test' share",
        ),
    ],
)
def test_a_halving_that_could_not_be_one_is_refused(recipe, overrides, said):
    assert said in only(recipe, *overrides)


def test_what_a_halving_takes(recipe):
    own = "compare.objectives.1.training={max_steps: 10, warmup_steps: 2}"
    assert (
        problems(
            recipe, "compare.budget={steps: 48, halving: true}", own, "training.warmup_steps=0.1", checks=COMPARE_CHECKS
        )
        == []
    )
    assert problems(recipe, HALVED, "compare.budget.halving.eta=2", "compare.rates=[1e-4]") == []
    assert problems(recipe, "compare.budget={steps: 3, halving: false}") == []


def test_groups_that_are_missing_or_wrong_are_said_of_the_row(recipe):
    assert "compare.objectives.1.groups.verifier: is required" in only(recipe, "compare.objectives=[sft, gft]")
    rows = "compare.objectives=[sft, {name: gft, groups: {verifier: exakt}}]"
    assert "compare.objectives.1.groups.verifier: unknown verifier 'exakt'" in only(recipe, rows)
    rows = "compare.objectives=[sft, {name: gft, groups: {verifier: exact, owm: 3}}]"
    assert "compare.objectives.1.groups.owm: unknown key; did you mean 'own'?" in only(recipe, rows)
    shared = ("groups={verifier: exakt}", "compare.objectives=[sft, gft]")
    assert "command line: groups.verifier: unknown verifier 'exakt'" in only(recipe, *shared)


def test_random_weights_take_no_adapter(recipe):
    said = only(recipe, "compare.random=true", "model.lora={r: 4}", checks=(check_section,))
    assert "compare.random: an adapter on random weights" in said


def test_an_output_of_something_else_is_left_alone(recipe):
    out = Path("out")
    out.mkdir()
    (out / ".lock").touch()
    (out / "compare.json.123.tmp").touch()
    (out / "cells").mkdir()
    assert problems(recipe, checks=(check_place,)) == []
    (out / "thesis.docx").touch()
    assert "holds 'thesis.docx', which is no comparison's" in only(recipe, checks=(check_place,))
    (out / "compare.json").touch()
    assert problems(recipe, checks=(check_place,)) == []
    assert "is a file" in only(recipe, "output=recipe.yaml", checks=(check_place,))


LAB = sorted((Path(__file__).parent.parent / "recipes" / "lab").glob("*.yaml"))
SETTINGS = [path for path in LAB if path.stem in ("few", "many", "quick") or "-prior-" in path.stem]


@pytest.mark.parametrize("path", [path for path in LAB if path not in SETTINGS], ids=lambda path: path.stem)
def test_the_labs_other_comparisons_are_fine(path):
    made = load_recipe(path, checks=(*CHEAP, common.check_data, common.check_tasks))
    assert made.output == f"runs/lab-{path.stem}"


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_the_labs_settings_are_fine(path):
    """And differ in their data alone; one of them is looked at in full."""
    made = load_recipe(path, checks=CHEAP if path.stem == "quick" else (check_section, check_choice, check_then))
    assert made.output == f"runs/lab-{path.stem}"
    assert made.evaluation.base
    assert made.compare.random
    assert made.compare.then is not None
    if path.stem == "quick":
        assert (len(made.compare.objectives), len(made.compare.rates), made.compare.seeds) == (3, 2, 3)
        assert made.compare.then.rl["steps"] >= 30
        return
    assert len(made.compare.objectives) == 7
    assert len(made.compare.rates) >= 3
    assert (made.compare.seeds, made.compare.tuning_seeds) == (5, 2)
    other = load_recipe(path.with_stem("strong-prior-noisy"))
    assert made.training == other.training
    weak = path.stem.startswith("weak")
    assert made.data.train[0].startswith("lab:long-") == weak
    assert all(task.data.startswith("lab:long-") == weak for task in made.evaluation.tasks)
    assert made.rl.data == ("lab:long-rl" if weak else "lab:rl",)
    if not weak:
        assert made.compare == other.compare
