"""The schema: what a recipe may say, how it round-trips, and that every problem is reported at once."""

from pathlib import Path

import pytest

from ballast.config.recipe import Problem, Recipe, RecipeError, load_recipe

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
    assert (recipe.objective is None) == (path.stem == "lab-rl")
    assert recipe.output


def test_groups_are_options_of_groups(tmp_path):
    recipe = load_recipe(None, ["groups.verifier=math", "groups.own=2"])
    assert recipe.group_options().own == 2
    assert recipe.group_options().expert == 1
    assert load_recipe(None).group_options() is None
    path = tmp_path / "recipe.yaml"
    path.write_text("groups:\n")
    assert load_recipe(path).groups is None


def test_every_bad_key_of_groups_is_reported_with_its_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("groups:\n  onw: 3\n  temperature: -1\n  expert: 2\n  verifier: 5\n  teacher: all\n")
    assert problems(path) == [
        f"{path}:2: groups.onw: unknown key 'onw'; did you mean 'own'?",
        f"{path}:3: groups.temperature: must be 0 (greedy) or above; got -1",
        f"{path}:4: groups.expert: a row has one completion; set 1 or 0; got 2",
        f"{path}:5: groups.verifier: must be text; got 5",
        f"{path}:6: groups.teacher: must be a whole number of at least 0; got 'all'",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("groups=math", "groups: must be a mapping of keys; got 'math'"),
        ("groups={temperature: 0, verifier: math}", "groups.temperature: 0 with own = 4: greedy"),
        ("groups={own: 0, expert: 0, teacher: 0}", "groups: expert, teacher and own are all 0"),
        ("groups={refresh: 0}", "groups.refresh: must be a whole number of at least 1; got 0"),
    ],
)
def test_groups_that_are_refused(override, expected):
    found = problems(None, [override])
    assert len(found) == 1
    assert found[0].startswith(f"command line: {expected}")
