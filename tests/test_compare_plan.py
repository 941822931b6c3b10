"""Which runs a recipe makes, what they are called, which part they belong to, and how a rate is chosen."""

import dataclasses

import pytest

from ballast.compare.halving import course
from ballast.compare.jobs import base_recipe
from ballast.compare.plan import Part, Plan, cell_recipe, direction, rl_recipe, seeded
from ballast.compare.summary import choose_rate, chosen_rates, sweep
from ballast.config.recipe import Recipe, ReferenceSection
from ballast.errors import BallastError
from ballast.evaluation import Task
from ballast.groups import GroupOptions
from ballast.records.folder import BEFORE, REPORT, TUNING, Store, differing_key
from ballast.rl import RLOptions
from compare_tools import cell as cell_of
from compare_tools import stored_run, task_record

TASKS = [
    {"name": "validation", "data": "lab:validation"},
    {"name": "test", "data": "lab:test", "samples": 4, "temperature": 1.0, "seed": 100},
    {"name": "text", "kind": "nll", "data": "lab:forgetting"},
]


def plan(**compare):
    section = {"objectives": ["sft", "dft"], "rates": [1e-4, 3e-4], "seeds": 3, "tuning_seeds": 2, **compare}
    section.setdefault("choose_by", {"task": "validation", "metric": "accuracy"})
    settings = {"model": "lab", "data": {"train": "lab:train"}, "compare": section, "output": "out", "seed": 7}
    return Plan(Recipe.model_validate({**settings, "evaluation": {"tasks": TASKS}, "training": {"max_length": 64}}))


def test_every_rate_is_tried_with_every_tuning_seed_and_every_seed_runs_once_at_the_chosen_rate():
    made = plan()
    assert [(cell.rate, cell.seed) for cell in made.tuning("dft")] == [
        (rate, seed) for seed in (1007, 1008) for rate in (1e-4, 3e-4)
    ]
    report = made.report({"sft": 3e-4, "dft": 1e-4})
    assert [(cell.seed, cell.label, cell.rate) for cell in report] == [
        (seed, *row) for seed in (7, 8, 9) for row in (("sft", 3e-4), ("dft", 1e-4))
    ]
    assert {cell.role for cell in made.tuning("sft")} == {TUNING}
    assert {cell.role for cell in report} == {REPORT}


@pytest.mark.parametrize(("seeds", "tuning"), [(1, 1), (5, 2), (1000, 1000)])
def test_a_seed_that_chooses_is_never_reported(seeds, tuning):
    made = plan(seeds=seeds, tuning_seeds=tuning)
    assert not set(made.seeds) & set(made.tuning_seeds)
    assert (len(made.seeds), len(made.tuning_seeds)) == (seeds, tuning)


def test_more_seeds_and_rates_add_runs_and_rename_none():
    small, large = plan(), plan(seeds=5, tuning_seeds=4, rates=[1e-4, 3e-4, 1e-3], objectives=["sft", "ift", "dft"])
    for label in ("sft", "dft"):
        assert {cell.name for cell in small.tuning(label)} < {cell.name for cell in large.tuning(label)}
    rates = {"sft": 1e-4, "dft": 3e-4}
    assert {cell.name for cell in small.report(rates)} < {cell.name for cell in large.report(rates)}


def test_names_tell_rates_apart():
    names = [cell_of("a", rate, 1).name for rate in (1e-4, 1.0000000001e-4, 3e-5, 0.1)]
    assert names == ["a-lr0.0001-s1", "a-lr0.00010000000001-s1", "a-lr3e-05-s1", "a-lr0.1-s1"]


def test_what_chooses_is_not_reported_and_what_is_reported_does_not_choose():
    made = plan()
    assert [task.name for task in made.tasks(TUNING)] == ["validation"]
    assert [task.name for task in made.tasks(REPORT)] == ["test", "text"]


def test_a_single_rate_is_not_tuned():
    made = plan(objectives=["sft", {"name": "gft", "rates": [1e-5]}])
    assert made.tuning("gft") == []
    assert chosen_rates(made, []) == {"gft": 1e-5}


def test_the_baseline_is_sft_or_what_is_named_or_the_first():
    assert plan(objectives=["dft", {"name": "sft", "label": "plain"}]).baseline == "plain"
    assert plan(objectives=["dft", "ift"]).baseline == "dft"
    assert plan(baseline="dft").baseline == "dft"


def test_random_weights_are_trained_with_the_baselines_objective_at_its_largest_rate():
    made = plan(objectives=[{"name": "sft", "rates": [1e-3, 1e-2]}, "dft"], random=True)
    row = made.methods[-1]
    assert (row.label, row.random, row.section.name, row.rates) == ("random", True, "sft", (1e-2,))
    assert made.tuning("random") == []
    recipe = cell_recipe(made, made.report({"random": 1e-2})[0], store_at("out"))
    assert recipe.model.path == "out/cache/random-s7"
    assert recipe.reference.cache is None
    assert [one.random for one in made.methods] == [False, False, True]
    named = plan(baseline="dft", random=True).methods[-1]
    assert (named.section.name, named.rates) == ("dft", (3e-4,))


def store_at(path):
    from pathlib import Path

    return Store(Path(path))


def test_objectives_of_ones_own_are_named_without_their_module():
    assert [row.label for row in plan(objectives=["package.module:MyWay"]).methods] == ["MyWay"]


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_share_the_matrix_without_overlap_and_keep_a_tuned_row_together(parts):
    made = plan(objectives=["sft", "dft", {"name": "ift", "rates": [1e-4]}])
    cells = [cell for row in made.methods for cell in made.tuning(row.label)]
    cells += made.report({"sft": 1e-4, "dft": 3e-4, "ift": 1e-4})
    taken = {
        number: [cell for cell in cells if Part(number, parts).takes(made, cell)] for number in range(1, parts + 1)
    }
    assert sorted(cell.name for some in taken.values() for cell in some) == sorted(cell.name for cell in cells)
    assert all(taken.values())
    for label in ("sft", "dft"):
        assert sum(any(cell.label == label for cell in some) for some in taken.values()) == 1
    for seed in made.seeds:
        assert sum(Part(number, parts).takes_base(made, seed) for number in taken) == 1
    assert sum(Part(number, parts).takes_base(made) for number in taken) == 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(BallastError, match="is not a part of a whole"):
        Part.parse(text)


def test_a_part_is_read_and_must_have_something_to_do():
    assert Part.parse("2/3") == Part(2, 3)
    Part(1, 2).check(plan())
    with pytest.raises(BallastError, match="at most 2 parts"):
        Part(1, 3).check(plan())
    # Rows of one rate split by seed.
    Part(1, 6).check(plan(rates=[1e-4], choose_by=None))


@pytest.mark.parametrize(
    ("metric", "sign"),
    [
        *(("accuracy", 1), ("mean@8", 1), ("pass@16", 1), ("accuracy_per_token", 1)),
        *(("nll", -1), ("perplexity", -1), ("base_kl", -1), ("forgetting", -1)),
        *(("entropy", 0), ("answer_tokens", 0), ("accuracy2", 0), ("pass@", 0)),
    ],
)
def test_which_end_of_a_metric_is_better(metric, sign):
    assert direction(metric) == sign


def test_the_best_mean_wins_and_the_smaller_rate_of_equals():
    assert choose_rate({1e-4: [0.5, 0.7], 3e-4: [0.9, 0.4]}, 1) == 3e-4
    assert choose_rate({1e-4: [0.5, 0.7], 3e-4: [0.9, 0.4]}, -1) == 1e-4
    assert choose_rate({1e-3: [0.6], 3e-4: [0.6], 1e-4: [0.5]}, 1) == 3e-4
    # The same scores in another order are the same score.
    assert choose_rate({1e-3: [0.1, 0.2, 0.3], 1e-4: [0.3, 0.2, 0.1]}, 1) == 1e-4
    assert choose_rate({1e-3: [0.3, 0.2, 0.1], 1e-4: [0.1, 0.2, 0.3]}, 1) == 1e-4


def tuned(cell, value):
    return stored_run(cell, BEFORE, {"validation": task_record({"accuracy": value})})


def broken_off(cell):
    return stored_run(cell, BEFORE, {}, status="failed", error="no")


def test_a_rate_is_chosen_when_all_of_its_rows_tuning_is_there():
    made = plan()
    scores = {1e-4: 0.3, 3e-4: 0.6}
    runs = [tuned(cell, scores[cell.rate]) for cell in made.tuning("sft")]
    assert chosen_rates(made, runs) == {"sft": 3e-4}
    assert chosen_rates(made, runs[:-1]) == {}


def test_reported_runs_and_other_seeds_choose_nothing():
    made = plan()
    runs = [tuned(cell, {1e-4: 0.6, 3e-4: 0.3}[cell.rate]) for cell in made.tuning("sft")]
    stray = [dataclasses.replace(runs[1], seed=seed, role=role) for seed, role in ((1007, REPORT), (9999, TUNING))]
    high = tuned(cell_of("sft", 1e-4, 1), 99.0).result
    stray = [dataclasses.replace(run, result=high) for run in stray]
    assert chosen_rates(made, [*runs, *stray]) == {"sft": 1e-4}


def test_a_rate_at_which_a_run_broke_off_or_scored_nothing_is_not_chosen():
    made = plan()
    cells = made.tuning("sft")
    runs = [tuned(cell, {1e-4: 0.3, 3e-4: 0.6}[cell.rate]) for cell in cells]
    broken = next(cell for cell in cells if cell.rate == 3e-4)
    failure = broken_off(broken)
    rest = [run for run in runs if run.path != failure.path]
    assert chosen_rates(made, [*rest, failure]) == {"sft": 1e-4}
    assert chosen_rates(made, [*rest, tuned(broken, None)]) == {"sft": 1e-4}
    # One that broke off at a seed of an earlier recipe counts no more.
    old = dataclasses.replace(failure, seed=9999)
    assert chosen_rates(made, [*runs, old]) == {"sft": 3e-4}
    assert [one.failed for one in sweep(course(made, []), "sft", [*runs, old])] == [(), ()]
    assert chosen_rates(made, [broken_off(cell) for cell in cells]) == {}


def test_a_cell_is_the_recipe_with_its_objective_rate_seed_tasks_and_output():
    made = plan(objectives=["sft", {"label": "soft", "name": "eksft", "rho": 0.2, "training": {"max_length": 32}}])
    cell = cell_of("soft", 3e-4, 8)
    recipe = cell_recipe(made, cell, store_at("out"), steps=11)
    assert (recipe.objective.name, recipe.objective.options) == ("eksft", {"rho": 0.2})
    assert recipe.training["learning_rate"] == 3e-4
    assert (recipe.training["max_length"], recipe.training["max_steps"]) == (32, 11)
    assert (recipe.seed, recipe.output, recipe.evaluation.base) == (8, "out/cells/soft-lr0.0003-s8", False)
    assert recipe.compare is None
    assert recipe.reference.use == "auto"
    assert cell_recipe(made, cell_of("sft", 1e-4, 8), store_at("out")).reference.cache == "out/cache/reference"
    assert Recipe.model_validate(recipe.resolved()) == recipe


@pytest.mark.parametrize(
    ("objective", "named", "made"),
    [
        ("dft", {}, {"cache": "out/cache/reference"}),
        ("prift-mass", {}, {"cache": "out/cache/reference"}),
        ("prift-mass", {"cache": "elsewhere"}, {"cache": "elsewhere"}),
        ("prift-mass", {"model": "other"}, {"model": "other"}),
        # Whole distributions are kept in no cache.
        ("eksft", {"cache": "elsewhere"}, {"use": "auto"}),
        ("eksft", {}, {"use": "auto"}),
    ],
)
def test_the_reference_is_the_cache_where_it_serves(objective, named, made):
    base = plan(objectives=[objective])
    asked = Plan(base.recipe.model_copy(update={"reference": ReferenceSection(**named)}))
    recipe = cell_recipe(asked, cell_of(objective, 1e-4, 7), store_at("out"))
    assert recipe.reference == ReferenceSection(**made)


@pytest.mark.parametrize("length", [{"max_steps": 3}, {"num_train_epochs": 1}])
def test_a_rows_own_length_goes_before_the_budget(length):
    made = plan(objectives=[{"name": "sft", "training": length}])
    training = cell_recipe(made, cell_of("sft", 1e-4, 7), store_at("out"), steps=50).training
    assert {key: training.get(key) for key in ("max_steps", "num_train_epochs")} == {
        "max_steps": None,
        "num_train_epochs": None,
        **length,
    }


def test_groups_go_to_the_rows_that_train_on_them():
    made = plan(objectives=["sft", {"name": "gft", "groups": {"own": 2}}])
    recipe = made.recipe.model_copy(update={"groups": GroupOptions(verifier="exact", own=4)})
    made = Plan(recipe)
    assert cell_recipe(made, cell_of("sft", 1e-4, 7), store_at("out")).groups is None
    assert cell_recipe(made, cell_of("gft", 1e-4, 7), store_at("out")).groups == GroupOptions(verifier="exact", own=2)


def test_samples_are_drawn_anew_for_every_seed_and_alike_for_every_method():
    tasks = plan().tasks(REPORT)
    assert [task.seed for task in seeded(tasks, 8)] == [108, 0]
    made = plan()
    one, other = (cell_recipe(made, cell_of(label, 1e-4, 8), store_at("out")) for label in ("sft", "dft"))
    assert one.evaluation == other.evaluation
    assert seeded((Task(data="lab:test", samples=2, temperature=1.0),), 5)[0].seed == 5
    assert seeded((Task(data="lab:test", kind="readiness"),), 5)[0].seed == 5


def test_the_base_model_is_asked_everything_with_the_samples_of_the_first_seed():
    recipe = base_recipe(plan())
    assert [task.name for task in recipe.evaluation.tasks] == ["validation", "test", "text"]
    assert [task.seed for task in recipe.evaluation.tasks] == [0, 107, 0]


def test_rl_starts_from_the_run_and_is_measured_on_what_is_reported():
    made = Plan(plan().recipe.model_copy(update={"rl": RLOptions(verifier="exact", steps=9)}))
    then = made.compare.model_copy(update={"then": type(made.compare).model_validate(
        {"objectives": ["sft"], "rates": [1e-4], "then": {"rl": {"steps": 30}}}).then})  # fmt: skip
    made = Plan(made.recipe.model_copy(update={"compare": then}))
    cell = cell_of("sft", 1e-4, 8)
    recipe = rl_recipe(made, 8, store_at("out").rl(cell.name))
    assert recipe.rl == RLOptions(verifier="exact", steps=30)
    assert [task.name for task in recipe.evaluation.tasks] == ["test", "text"]
    assert (recipe.seed, recipe.output) == (8, "out/cells/sft-lr0.0001-s8/rl")
    assert recipe.model.path == "lab"
    assert Recipe.model_validate(recipe.resolved()) == recipe


def test_rl_follows_reported_runs_but_not_those_from_random_weights():
    made = plan(random=True, then={"rl": {}})
    cells = [*made.tuning("sft"), *made.report({"sft": 1e-4, "random": 3e-4})]
    assert {cell.label for cell in cells if made.followed(cell)} == {"sft"}
    assert {cell.role for cell in cells if made.followed(cell)} == {REPORT}
    assert not any(plan().followed(cell) for cell in cells if cell.label != "random")


def test_runs_are_the_same_wherever_they_lie_and_differ_by_the_first_key():
    made = plan()
    cell = cell_of("sft", 1e-4, 8)
    here, there = (cell_recipe(made, cell, store_at(path)).resolved() for path in ("out", "/elsewhere/out"))
    assert differing_key(here, there) is None
    assert differing_key({**here, "seed": 9}, there) == "seed"
    longer = {**here, "training": {**here["training"], "max_length": 65}}
    assert differing_key(longer, there) == "training.max_length"
    other = cell_recipe(plan(objectives=["sft"]), cell, store_at("out")).resolved()
    other["evaluation"]["tasks"][0]["limit"] = 3
    assert differing_key(other, there) == "evaluation.tasks.0.limit"
    other["evaluation"]["tasks"][0] |= {"limit": there["evaluation"]["tasks"][0]["limit"], "title": "Sums"}
    assert differing_key(other, there) is None, "what reports call a task"
    assert differing_key({**here, "model": {**here["model"], "path": "other"}}, there) == "model.path"
    assert differing_key(here, {**there, "training": {**there["training"], "seq": 1}}) == "training.seq"
    assert differing_key({**here, "training": {**here["training"], "seq": 1}}, there) == "training.seq"
    made = plan(random=True)
    here, there = (cell_recipe(made, cell_of("random", 3e-4, 8), store_at(path)).resolved() for path in ("a", "b"))
    assert differing_key(here, there) is None
    # A section that was not known yet when the run was made.
    assert differing_key({key: value for key, value in here.items() if value is not None}, there) is None
