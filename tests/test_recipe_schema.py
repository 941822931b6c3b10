"""The schema: what a recipe may say, how it round-trips, and that every problem is reported at once."""

import json
from pathlib import Path

import pytest

from ballast.config.recipe import Problem, Recipe, RecipeError, load_recipe
from ballast.errors import BallastError
from ballast.evaluation import Task
from ballast.groups import GroupOptions
from ballast.rl import RLOptions

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def problems(path, overrides=(), checks=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, checks=checks)
    return list(caught.value.problems)


def test_shorthands_stand_for_their_mappings():
    recipe = load_recipe(None, ["model=lab", "data.train=a.jsonl", "objective=dft", "reference=model"])
    assert recipe.model.path == "lab"
    assert recipe.data.train == ("a.jsonl",)
    assert recipe.objective.name == "dft"
    assert recipe.reference.use == "model"


def test_options_stand_beside_the_objective_name():
    recipe = load_recipe(None, ["objective={name: prift-mass, threshold: 0.25}", "objective.ties=inclusive"])
    assert recipe.objective.options == {"threshold": 0.25, "ties": "inclusive"}
    assert recipe.objective.build().threshold == 0.25


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(None, ["seed=1"]).seed = 2


def test_resolved_recipe_loads_as_an_equal_one(tmp_path):
    recipe = load_recipe(
        None,
        [
            "model=lab",
            "model.lora.r=8",
            "objective={name: reweight, rule: power, alpha: 0.5}",
            "training.learning_rate=1e-5",
        ],
    )
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert Recipe.model_validate(recipe.resolved()) == recipe


def test_empty_sections_take_defaults_but_an_empty_objective_is_a_slip(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("training:\nevaluation:\noutput:\n")
    assert load_recipe(path) == Recipe()
    path.write_text("objective:\n")
    assert problems(path) == [f"{path}:1: objective.name: is empty; give a value or leave the key out"]


def test_all_problems_come_at_once_each_with_its_place(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "modle: x\n"
        "model: {path: m, dtype: flaot32}\n"
        "data: {trian: a, columns: alpace}\n"
        "objective: {name: prift-mass, treshold: 2, threshold: 3}\n"
        "reference: adapter_off\n"
        "seed: '1'\n"
    )
    found = problems(path, ["evaluation.tasks=[{dta: x}]"])
    assert all("\n" not in line for line in found)
    expected = [
        ":1: modle: unknown key; did you mean 'model'?",
        ":2: model.dtype: 'flaot32' is not allowed; did you mean 'float32'?",
        ":3: data.trian: unknown key; did you mean 'train'?",
        ":3: data.columns: must be alpaca or sharegpt",
        ":4: objective.treshold: unknown option 'treshold'; did you mean 'threshold'?",
        ":4: objective.threshold: threshold must lie in [0, 1]",
        ":5: reference.use: 'adapter_off' is not allowed; did you mean 'adapter-off'?",
        ":6: seed: should be a valid integer; got '1'",
        "command line: evaluation.tasks.0.data: is required and missing",
    ]
    for line in expected:
        assert sum(line in seen for seen in found) == 1, (line, found)


def test_checks_see_which_sections_are_broken_and_their_problems_are_placed(tmp_path):
    seen = []

    def check(recipe, broken):
        seen.append((recipe.output, broken))
        yield Problem(("output",), "no")

    path = tmp_path / "recipe.yaml"
    path.write_text("output: x\nseed: a\n")
    assert problems(path, checks=[check])[-1] == f"{path}:1: output: no"
    assert seen == [("x", frozenset({"seed"}))]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model={path: m, adapter: a, lora: {r: 1}}", "adapter and lora are both given"),
        ("reference={use: model, cache: c}", "contradict each other"),
        ("reference={use: adapter-off, model: m}", "contradict each other"),
        ("data.limit=0", "greater than or equal to 1"),
        ("model={path: m, trust_remote_code: 'yes'}", "valid boolean"),
        ("model=''", "is empty"),
        ("model=3", "must be a mapping"),
        ("data.train=5", "text or a list"),
        ("objective.name=prift-mas", "did you mean 'prift-mass'"),
        ("objective=[]", "must be a mapping"),
        ("objective=nowhere.module:Class", "cannot import"),
        ("objective={name: reweight, rule: power}", "objective.rule: rule 'power' needs the option 'alpha'"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=true", "valid integer"),
    ],
)
def test_values_that_are_refused(override, expected):
    found = problems(None, [override])
    assert len(found) == 1
    assert found[0].startswith("command line: ")
    assert expected in found[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    recipe = load_recipe(path)
    assert recipe.model is not None
    assert (recipe.objective is None) == (recipe.compare is not None or path.stem == "lab-rl")
    assert recipe.output


def test_groups_are_options_of_groups(tmp_path):
    recipe = load_recipe(None, ["groups.verifier=math", "groups.own=2"])
    assert recipe.groups == GroupOptions(verifier="math", own=2)
    assert load_recipe(None).groups is None
    path = tmp_path / "recipe.yaml"
    path.write_text("groups:\n")
    assert load_recipe(path).groups is None


def test_every_bad_key_is_reported_with_its_line_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("groups:\n  onw: 3\n  temperature: -1\n  expert: 2\n  verifier: 5\n  teacher: all\n  1: 2\n")
    assert problems(path) == [
        f"{path}:2: groups.onw: unknown key; did you mean 'own'?",
        f"{path}:3: groups.temperature: should be greater than or equal to 0; got -1",
        f"{path}:4: groups.expert: should be less than or equal to 1: a row has one completion; got 2",
        f"{path}:5: groups.verifier: should be a valid string; got 5",
        f"{path}:6: groups.teacher: should be a valid integer; got 'all'",
        f"{path}:7: groups.1: unknown key; known: {', '.join(sorted(GroupOptions.model_fields))}",
    ]


TASK = "evaluation.tasks={}".format
REFUSED = [
    # groups
    ("groups=math", "groups: must be a mapping of keys; got 'math'"),
    (
        "groups={temperature: 0, verifier: math}",
        "groups.temperature: 0 with own = 4: greedy answers are all the same, so they would have no advantage over "
        "each other; set a temperature above 0, or own to 1",
    ),
    (
        "groups={own: 0, expert: 0, teacher: 0}",
        "groups: expert, teacher and own are all 0, so every group would be empty; raise one",
    ),
    ("groups={refresh: 0}", "groups.refresh: should be greater than or equal to 1; got 0"),
    ("groups={seconds: .inf}", "groups.seconds: should be a finite number; got inf"),
    ("groups={verifier: ''}", "groups.verifier: is empty; give a value or leave the key out"),
    # rl
    ("rl={stesp: 3}", "rl.stesp: unknown key; did you mean 'steps'?"),
    ("rl={loss_type: grop}", "rl.loss_type: 'grop' is not allowed; did you mean 'grpo'?"),
    ("rl={data: [a, 5]}", "rl.data.1: should be a valid string; got 5"),
    ("rl={data: 5}", "rl.data: must be text or a list of them; got 5"),
    (
        "rl={columns: alpace, data: a}",
        "rl.columns: must be alpaca or sharegpt, or map our column names to yours; got 'alpace'",
    ),
    (
        "rl={micro_batch: 5}",
        "rl.micro_batch: 5 does not divide the 128 answers of a step (16 prompts × 8), so a step could not be made of "
        "whole batches",
    ),
    # tasks
    (TASK("5"), "evaluation.tasks: should be a list; got 5"),
    (TASK("[5]"), "evaluation.tasks.0: must be a mapping of keys; got 5"),
    (TASK("[{name: a}]"), "evaluation.tasks.0.data: is required and missing"),
    (
        TASK("[{data: [{prompt: x}]}]"),
        "evaluation.tasks.0.data: must be text, the source of the rows; got [{'prompt': 'x'}]",
    ),
    (TASK("[{data: {a: b}}]"), "evaluation.tasks.0.data: must be text, the source of the rows; got {'a': 'b'}"),
    (
        TASK("[{data: x}, {data: y, kind: generat}]"),
        "evaluation.tasks.1.kind: 'generat' is not allowed; did you mean 'generate'?",
    ),
    (TASK("[{data: x, verifyer: exact}]"), "evaluation.tasks.0.verifyer: unknown key; did you mean 'verifier'?"),
    (TASK("[{data: x, samples: many}]"), "evaluation.tasks.0.samples: should be a valid integer; got 'many'"),
    (
        TASK("[{data: x, k: [1, 2]}]"),
        "evaluation.tasks.0.k: pass@2 cannot be estimated from 1 samples; raise samples",
    ),
    (
        TASK("[{data: x, samples: 4}]"),
        "evaluation.tasks.0: samples = 4 at temperature 0: greedy answers are all the same, so pass@k would equal "
        "accuracy; set a temperature above 0, or samples to 1",
    ),
    (
        TASK("[{data: x, kind: code, code_seconds: -1}]"),
        "evaluation.tasks.0.code_seconds: should be greater than 0; got -1",
    ),
    (
        TASK("[{data: x, kind: code, code_memory_mb: -5}]"),
        "evaluation.tasks.0.code_memory_mb: should be greater than or equal to 1; got -5",
    ),
    (
        TASK("[{data: x, kind: choice, base_kl: true}]"),
        "evaluation.tasks.0.base_kl: is an option of kind generate, code, nll, readiness; choice would ignore it, so "
        "leave it out",
    ),
    (
        TASK("[{data: x, kind: nll, context: 8, stride: 8}]"),
        "evaluation.tasks.0.stride: 8 new tokens leave no room for what comes before them in context 8",
    ),
    # what a comparison lays over groups and rl
    (
        "compare={rates: 1e-4, objectives: [{name: gft, groups: {owm: 3}}]}",
        "compare.objectives.0.groups.owm: unknown key; did you mean 'own'?",
    ),
    (
        "compare={rates: 1e-4, objectives: [sft], then: {rl: {steps: 0}}}",
        "compare.then.rl.steps: should be greater than or equal to 1; got 0",
    ),
    (
        "compare={rates: 1e-4, objectives: [sft, {name: eksft, rho: 2}]}",
        "compare.objectives.1.rho: rho must lie in [0, 1] (share of tokens selected by each criterion); got 2",
    ),
]


@pytest.mark.parametrize(("override", "expected"), REFUSED, ids=[expected[:60] for _, expected in REFUSED])
def test_options_that_are_refused_and_the_line_that_says_so(override, expected):
    assert problems(None, [override]) == [f"command line: {expected}"]


def test_what_is_laid_over_is_judged_together_with_what_it_is_laid_over():
    compare = "compare={rates: 1e-4, objectives: [{name: gft, groups: {temperature: 0}}], then: {rl: {limit: 3}}}"
    said = problems(None, ["groups.own=2", compare])
    assert [line.split(" ")[2] for line in said] == [
        "compare.objectives.0.groups.temperature:",
        "compare.then.rl.limit:",
    ]
    load_recipe(None, ["groups.own=1", "rl.data=rows.jsonl", compare])


def test_problems_of_different_tasks_come_at_once(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("evaluation:\n  tasks:\n    - {data: a, limit: 0}\n    - {data: b, kind: choice, k: 2}\nseed: -1\n")
    found = problems(path)
    assert [line.split(": ")[:2] for line in found] == [
        [f"{path}:3", "evaluation.tasks.0.limit"],
        [f"{path}:4", "evaluation.tasks.1.k"],
        [f"{path}:5", "seed"],
    ]


EVERY_KIND = [
    {"data": "a.jsonl", "samples": 4, "temperature": 1, "k": 2},
    {"kind": "choice", "data": "b.jsonl", "style": "letter"},
    {"kind": "code", "data": "c.jsonl", "allow_code_execution": True},
    {"kind": "nll", "data": "d.jsonl", "name": "text", "columns": {"text": "story"}},
    {"kind": "readiness", "data": "e.jsonl", "group": 4, "demonstrations": "data.train"},
]


def test_a_resolved_recipe_has_every_default_and_loads_as_an_equal_one(tmp_path):
    recipe = Recipe(
        groups={"own": 2},
        rl={"data": "rows.jsonl", "trainer": {"epsilon": 0.3}},
        evaluation={"tasks": EVERY_KIND},
        compare={"objectives": ["sft", {"name": "gft", "groups": {"own": 3}}], "rates": [1e-4], "then": {"rl": {}}},
    )
    resolved = recipe.resolved()
    assert resolved["groups"] == GroupOptions(own=2).to_dict()
    assert resolved["rl"] == RLOptions(data="rows.jsonl", trainer={"epsilon": 0.3}).to_dict()
    assert resolved["evaluation"]["tasks"] == [Task(**given).settings() for given in EVERY_KIND]
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe == Recipe(**json.loads(json.dumps(resolved)))


def test_what_is_given_beside_a_file_of_groups_is_written_alone():
    assert Recipe(groups={"file": "sampled", "own": 4}).resolved()["groups"] == {"own": 4, "file": ["sampled"]}


def test_recipes_resolved_by_earlier_versions_load():
    """They have the options that were given, and an empty name for a task without one."""
    earlier = {
        "groups": {"verifier": "exact"},
        "rl": {"steps": 3},
        "evaluation": {"tasks": [{"kind": "generate", "name": "", "data": "rows.jsonl", "samples": None}]},
    }
    recipe = Recipe(**earlier)
    assert recipe.groups == GroupOptions(verifier="exact")
    assert recipe.evaluation.tasks == (Task(data="rows.jsonl"),)
    assert recipe.evaluation.tasks[0].name == "rows.jsonl"


def test_a_recipe_made_in_python_is_refused_in_one_line():
    with pytest.raises(BallastError) as caught:
        Recipe(evaluation={"tasks": [{"data": "a", "kind": "nll", "verifier": "math"}]})
    assert str(caught.value) == (
        "evaluation.tasks.0.verifier: is an option of kind generate, readiness; nll would ignore it, so leave it out"
    )
