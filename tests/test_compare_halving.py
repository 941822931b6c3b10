"""Successive halving: who stays, what it costs, what waits for what, and that a stopped one ends as a whole one."""

import dataclasses
import json
import random
import shutil
from io import StringIO
from pathlib import Path

import pytest

from ballast import pipeline
from ballast.compare import Part, Plan, load_plan, markdown, show, summarise
from ballast.compare.halving import course, lengths, pairs_of, short_cells, survivors
from ballast.compare.jobs import Job, JobContext
from ballast.compare.plan import cell_recipe
from ballast.compare.savings import forecast, left_at
from ballast.compare.schedule import Schedule
from ballast.compare.summary import chosen_rates
from ballast.config.recipe import Recipe
from ballast.config.sections import HalvingSection
from ballast.errors import BallastError
from ballast.records.folder import BEFORE, REPORT, TUNING, Store
from ballast.records.read import read
from ballast.records.runs import read_comparison
from ballast.records.schema import CellRecord, PlanRecord
from ballast.records.summary import Summary
from ballast.report import write_report
from ballast.report.source import load
from compare_tools import cell, matrix, records_of, run_quietly, stored_run, task_record, timeless, write_inputs

RATES = (1e-5, 3e-5, 1e-4)
ROWS = ("sft", "dft", "prift-mass", "talr")


def plan(budget=None, **compare):
    section = {
        "objectives": list(ROWS),
        "rates": list(RATES),
        "choose_by": {"task": "validation", "metric": "accuracy"},
        "seeds": 2,
        "tuning_seeds": 2,
        "budget": budget or {"steps": 48, "halving": {"eta": 3}},
        **compare,
    }
    tasks = [{"name": name, "data": "lab:test"} for name in ("validation", "test")]
    return Plan(Recipe.model_validate({"model": "lab", "compare": section, "seed": 7, "evaluation": {"tasks": tasks}}))


def scored(of, value):
    """A run that is over: with its score, or broken off for None."""
    if value is None:
        run = stored_run(of, BEFORE, {}, status="failed", error="out of luck")
        return dataclasses.replace(run, steps=of.steps)
    task = "validation" if of.role == TUNING else "test"
    run = stored_run(of, BEFORE, {task: task_record({"accuracy": value, "nll": value}, name=task)})
    return dataclasses.replace(run, steps=of.steps)


# Who stays.


def naively(scores, sign, eta, baseline):
    """The rule again, taken word for word: the next best is looked for each time."""
    left = [pair for pair in scores if scores[pair] is not None]

    def best(among):
        top = None
        for pair in among:
            better = top is None or sign * scores[pair] > sign * scores[top]
            top = pair if better or (scores[pair] == scores[top] and pair[1] < top[1]) else top
        return top

    def family(pair):
        below = [one for one in scores if one[0] == pair[0] and one[1] < pair[1] and scores[one] is not None]
        return [pair, *sorted(below, key=lambda one: one[1])[-1:]]

    stays = set()
    while left and len(stays) * eta < len(scores):
        pair = best(left)
        left.remove(pair)
        stays.update(family(pair))
    if not any(label == baseline for label, _ in stays):
        own = best([pair for pair in scores if pair[0] == baseline and scores[pair] is not None])
        stays.update([] if own is None else family(own))
    return [pair for pair in scores if pair in stays]


def drawn(rng):
    rates = sorted(rng.sample([1e-6, 3e-6, 1e-5, 3e-5, 1e-4], rng.randint(1, 5)), key=lambda _: rng.random())
    labels = [f"row{number}" for number in range(rng.randint(1, 6))]
    values = [0.1 * rng.randint(0, 6) if rng.random() < 0.85 else None for _ in range(len(rates) * len(labels))]
    return dict(zip([(label, rate) for label in labels for rate in rates], values, strict=True)), rng.choice(labels)


def test_who_stays_is_what_the_rule_says_word_for_word():
    rng = random.Random(3)
    for _ in range(2000):
        scores, baseline = drawn(rng)
        sign, eta = rng.choice((1, -1)), rng.randint(2, 5)
        found = survivors(scores, sign=sign, eta=eta, baseline=baseline)
        assert found == naively(scores, sign, eta, baseline)
        assert len(found) <= -(-len(scores) // eta) + 3
        known = {pair: score for pair, score in scores.items() if score is not None}
        if known:
            assert sign * max(sign * score for score in known.values()) in [known[pair] for pair in found]
        assert not any(scores[pair] is None for pair in found)
        assert (baseline in {pair[0] for pair in found}) == (baseline in {pair[0] for pair in known})


def test_the_next_smaller_rate_comes_along_and_of_equals_the_smaller_rate_then_the_earlier_row():
    scores = {("sft", 1e-5): 0.5, ("sft", 3e-5): 0.8, ("sft", 1e-4): 0.7, ("dft", 1e-5): 0.6, ("dft", 3e-5): 0.8}
    assert survivors(scores, sign=1, eta=5, baseline="sft") == [("sft", 1e-5), ("sft", 3e-5)]
    # By nll the worst is the best: the smallest rate has none below it.
    assert survivors(scores, sign=-1, eta=5, baseline="sft") == [("sft", 1e-5)]
    # The baseline stays beside the others, with the rate below its best; what broke off does not come along.
    assert survivors({**scores, ("dft", 3e-5): 0.9}, sign=1, eta=5, baseline="sft") == [
        ("sft", 1e-5), ("sft", 3e-5), ("dft", 1e-5), ("dft", 3e-5)
    ]  # fmt: skip
    broken = {**scores, ("sft", 1e-5): None, ("dft", 3e-5): 0.9}
    assert survivors(broken, sign=1, eta=5, baseline="sft") == [("sft", 3e-5), ("dft", 1e-5), ("dft", 3e-5)]
    assert survivors(dict.fromkeys(scores), sign=1, eta=5, baseline="sft") == []


def test_short_runs_that_favour_larger_rates_and_are_noisy_keep_the_winner():
    """A simulation: what a row is worth falls with the distance of its rate from the best one, in steps of a sweep.

    The best rate of a run of a third of the steps is larger by 0.5 to 1 steps of the sweep.
    """
    rng, kept, plain, cost = random.Random(8), 0, 0, []
    for _ in range(400):
        worth = {f"row{number}": rng.gauss(0.85, 0.04) for number in range(12)}
        peak = {label: rng.uniform(0, 2) for label in worth}
        shift = rng.uniform(0.5, 1.0)
        full = {(label, rate): worth[label] - 0.03 * (rate - peak[label]) ** 2 for label in worth for rate in range(3)}
        short = {
            (label, rate): worth[label] - 0.05 - 0.03 * (rate - peak[label] - shift) ** 2 + rng.gauss(0, 0.01)
            for label, rate in full
        }
        stay = survivors(short, sign=1, eta=3, baseline="row0")
        winner = max(full, key=full.get)
        kept += winner in stay
        # Without the rate below: the best third, as the method has it.
        plain += winner in sorted(short, key=lambda pair: -short[pair])[:12]
        rows = len({label for label, _ in stay})
        cost.append((36 / 3 + 2 * len(stay) + 3 * rows) / (2 * 36 + 3 * 12))
    assert kept / 400 >= 0.98
    assert plain < kept
    assert sum(cost) / 400 <= 0.6


def test_the_rungs_are_shares_of_the_steps_as_far_as_there_is_something_to_halve():
    def steps(budget, **compare):
        return lengths(plan(budget, **compare))

    assert steps({"steps": 48, "halving": True}) == (12,)
    assert steps({"steps": 48, "halving": {"eta": 3}}) == (16,)
    assert steps({"steps": 48, "halving": {"eta": 2}}) == (24,)
    assert steps({"steps": 48, "halving": {"eta": 2, "min_steps": 6}}) == (6, 12, 24)
    assert steps({"steps": 48, "halving": {"eta": 2, "min_steps": 7}}) == (12, 24)
    assert steps({"steps": 50, "halving": {"eta": 3, "min_steps": 1}}) == (5, 16)
    # Three pairs are a third but once.
    assert steps({"steps": 48, "halving": {"eta": 3, "min_steps": 1}}, objectives=["sft"]) == (16,)
    assert steps({"steps": 48}) == ()
    assert steps({"steps": 48, "halving": False}) == ()
    assert plan({"steps": 9, "halving": True}).compare.budget.halving == HalvingSection(eta=4, min_steps=None)


# How far it came, from the records.


def test_a_rung_is_over_when_its_last_run_is_and_who_stays_follows_from_the_records():
    made = plan()
    begun = course(made, [])
    assert (begun.over, len(begun.rungs), begun.rungs[0].steps) == (False, 1, 16)
    cells = list(begun.rungs[0].cells.values())
    assert [one.name for one in cells[:2]] == ["sft-lr1e-05-s1007-16steps", "sft-lr3e-05-s1007-16steps"]
    assert len(cells) == 12
    assert begun.cells() == cells
    values = {1e-5: 0.5, 3e-5: 0.6, 1e-4: 0.4}
    runs = [scored(one, values[one.rate] + 0.01 * ROWS.index(one.label)) for one in cells]
    assert not course(made, runs[:-1]).over
    # Runs with the whole budget, or of another rung, are none of it.
    assert not course(made, [*runs[:-1], scored(cell("talr", 1e-4, 1007, TUNING), 0.9)]).over
    found = course(made, runs)
    assert found.over
    assert found.labels == ("sft", "prift-mass", "talr")
    assert [found.rates(label) for label in ROWS] == [(1e-5, 3e-5), (), (1e-5, 3e-5), (1e-5, 3e-5)]
    assert [one.name for one in found.tuning("talr")] == [
        f"talr-lr{rate!r}-s{seed}" for seed in (1007, 1008) for rate in (1e-5, 3e-5)
    ]
    left = left_at(found, "dft")
    assert (left.steps, left.rate, left.score, left.stayed) == (16, 3e-5, pytest.approx(0.61), False)
    assert left_at(found, "sft") is None


def test_broken_runs_and_scores_that_are_no_number_leave_and_a_baseline_without_any_is_not_kept():
    made = plan()
    cells = course(made, []).rungs[0].cells
    nan = [scored(one, None if one.label == "sft" else 0.5) for one in cells.values()]
    nan[-1] = scored(cells["talr", 1e-4], 0.7)
    nan[-1] = dataclasses.replace(nan[-1], result=dataclasses.replace(nan[-1].result, tasks={
        "validation": task_record({"accuracy": None}, name="validation")}))  # fmt: skip
    found = course(made, nan)
    assert found.over
    assert "sft" not in found.labels
    assert 1e-4 not in found.rates("talr")
    assert left_at(found, "sft").score is None
    made = plan({"steps": 48, "halving": {"eta": 2, "min_steps": 12}})
    cells = course(made, []).rungs[0].cells
    nothing = course(made, [scored(one, None) for one in cells.values()])
    assert len(nothing.rungs) == 1
    assert (nothing.over, nothing.labels, nothing.cells()) == (True, (), list(cells.values()))
    summary = summarise(made, [scored(one, None) for one in cells.values()])
    assert [one.kind for one in summary.verdicts] == ["none", "none"]


def test_a_row_with_steps_of_its_own_has_as_large_a_share_of_them():
    own = {"name": "dft", "training": {"max_steps": 10}}
    made = plan({"steps": 48, "halving": {"eta": 2, "min_steps": 12}}, objectives=["sft", own])
    cells = list(short_cells(made))
    assert {(one.label, one.steps) for one in cells} == {("sft", 12), ("dft", 3), ("sft", 24), ("dft", 5)}
    recipe = cell_recipe(made, cells[3], Store(Path("out")), steps=48)
    assert (recipe.training["max_steps"], recipe.training["learning_rate"], recipe.seed) == (3, 1e-5, 1007)
    assert [task.name for task in recipe.evaluation.tasks] == ["validation"]
    assert cell_recipe(made, made.tuning("dft")[0], Store(Path("out")), steps=48).training["max_steps"] == 10


def test_random_weights_are_no_contestant():
    made = plan(random=True)
    assert {label for label, _ in pairs_of(made)} == set(ROWS)
    runs = [scored(one, 0.5) for one in short_cells(made)]
    assert course(made, runs).labels[-1] == "random"


def test_names_of_runs_of_other_lengths_never_meet():
    whole = CellRecord(label="a", rate=1e-4, seed=1, role=TUNING)
    short = CellRecord(label="a", rate=1e-4, seed=1, role=TUNING, steps=8)
    assert {whole.name, short.name} == {"a-lr0.0001-s1", "a-lr0.0001-s1-8steps"}
    # Records of comparisons that halve nothing are as they were, in other processes too.
    for one in (whole, short):
        told = Job.model_validate_json(Job(kind="train", cell=one).order)
        assert told == Job(kind="train", cell=one)
        assert ("steps" in told.cell.plain()) == (one is short)


# What it cost, and what is said.


def halved_runs(made, worth):
    """Return the runs of a finished comparison as they are read back; `worth` gives a score by run."""
    known = []
    while len(known) < len(cells := course(made, known).cells()):
        known = [scored(one, worth(one)) for one in cells]
    runs = [*known, *(scored(one, worth(one)) for one in made.report(chosen_rates(made, known)))]
    return sorted(runs, key=lambda run: run.path)


def worth(one):
    """Short runs score less."""
    return round(
        0.5
        - 0.05 * (one.steps is not None)
        + 0.1 * ROWS.index(one.label)
        - 3000 * abs(one.rate - 3e-5)
        + 0.001 * (one.seed % 10),
        6,
    )


def test_the_summary_says_who_left_where_and_what_it_saved():
    made = plan(objectives=["talr", "sft", "dft", "prift-mass"], baseline="sft")
    summary = summarise(made, halved_runs(made, worth))
    rows = {row.label: row for row in summary.rows}
    assert [label for label, row in rows.items() if row.left is not None] == ["dft"]
    left = rows["dft"].left
    assert (left.rung, left.steps, left.rate, left.score) == (16, 16, 3e-5, pytest.approx(0.557))
    assert (rows["dft"].stages, rows["dft"].rate, rows["dft"].tuning) == ({}, None, ())
    assert len(rows["dft"].rungs) == 3
    assert rows["talr"].rate == 3e-5
    assert [one.values for one in rows["sft"].tuning] == [
        tuple(worth(cell("sft", rate, seed, TUNING)) for seed in (1007, 1008)) for rate in (1e-5, 3e-5)
    ]
    halving = summary.halving
    assert [one.plain() for one in halving.rungs] == [{"steps": 16, "pairs": 12, "kept": 6}]
    # 12 short ones; 3 rows × 2 rates × 2 seeds; 3 rows × 2 seeds. The sweep: 12 pairs × 2 seeds, 4 rows × 2 seeds.
    assert (halving.runs, halving.steps) == (12 + 12 + 6, 12 * 16 + (12 + 6) * 48)
    assert (halving.full_runs, halving.full_steps) == (24 + 8, 32 * 48)
    assert Summary.model_validate_json(json.dumps(summary.plain())) == summary
    assert not any("dft" in path for path in summary.missing)
    [verdict] = [one for one in summary.verdicts if one.stage == BEFORE]
    assert verdict.winner != "dft"
    assert any("dft left after runs of 16 steps by validation accuracy" in line for line in verdict.cautions)
    # The smaller rate of equals is no end of the sweep: three were tried.
    assert rows["talr"].edge is None
    text = markdown(summary)
    assert "| dft | 3e-05 |  | left |  |  |" in text
    assert "dft: left after runs of 16 steps (0.557 at 3e-05); nothing is claimed of it." in text
    assert "30 runs of 1,056 steps in all, where the full sweep has 32 of 1,536 (69%)" in text
    from rich.console import Console

    page = StringIO()
    show(summary, say=Console(file=page, width=80).print)
    assert "left" in page.getvalue()


def test_a_baseline_that_alone_is_left_is_compared_with_the_base_model():
    made = plan({"steps": 48, "halving": {"eta": 12}}, objectives=["sft", "dft", "prift-mass", "talr"])
    summary = summarise(made, halved_runs(made, lambda one: 0.9 - worth(one)))
    assert [row.label for row in summary.rows if row.kind == "method" and row.left is None] == ["sft"]
    [verdict] = [one for one in summary.verdicts if one.stage == BEFORE]
    assert verdict.against == "base"
    assert "dft, prift-mass and talr left" in " ".join(verdict.cautions)


def test_without_halving_summaries_are_as_they_were():
    made = plan({"steps": 48})
    runs = [scored(one, worth(one)) for label in ROWS for one in made.tuning(label)]
    plain = summarise(made, runs).plain()
    assert "halving" not in plain
    assert not any({"rungs", "left"} & set(row) for row in plain["rows"])
    assert forecast(made) is None


def test_the_cost_is_foretold_at_most():
    assert forecast(plan()) == (
        "halving: 12 runs of 16 steps, then at most 7 pairs of objective and rate with all steps; at most 34 runs and "
        "1,248 steps in all (the full sweep: 32 and 1,536)"
    )
    rng = random.Random(4)
    for _ in range(60):
        eta = rng.randint(2, 4)
        own = {"name": "talr", "training": {"max_steps": rng.choice((20, 100))}}
        budget = {"steps": 48, "halving": {"eta": eta, "min_steps": rng.choice((3, 6, 12))}}
        made = plan(budget, objectives=[*ROWS[:3], own])
        values = {pair: rng.random() for pair in pairs_of(made)}
        found = summarise(made, halved_runs(made, lambda one, v=values: v[one.label, one.rate])).halving
        most = forecast(made).split("at most ")[2]
        assert found.runs <= int(most.split(" runs")[0])
        assert found.steps <= int(most.split("and ")[1].split(" steps")[0].replace(",", ""))


# What waits for what.


class Played:
    """Decides from the runs that are over, as the records would."""

    def __init__(self, made, values, broken=()):
        self.made, self.values, self.broken, self.runs, self.asked = made, values, set(broken), {}, []

    def over(self, job):
        if job.kind == "train":
            value = None if job.cell.name in self.broken else self.values(job.cell)
            self.runs[job.cell] = scored(job.cell, value)

    def course(self):
        return course(self.made, list(self.runs.values()))

    def rate(self, label):
        self.asked.append(label)
        return chosen_rates(self.made, list(self.runs.values())).get(label)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("halving")
    write_inputs(path)
    return path


HALVED = {
    "objectives": ["sft", "dft", "eksft", "talr"],
    "rates": [1e-3, 1e-2],
    "tuning_seeds": 1,
    "seeds": 1,
    "budget": {"steps": 4, "halving": {"eta": 2, "min_steps": 1}},
}


def halved(folder, output, **changes):
    recipe = matrix(folder, output, **{**HALVED, **changes})
    training = {key: value for key, value in recipe.training.items() if key != "max_steps"}
    return recipe.model_copy(update={"training": training})


def in_order(schedule, played, workers=1):
    """Do all jobs, so many at a time, and return them as they began; each rung must be over before the next."""
    begun, running = [], []
    while True:
        while len(running) < workers and (job := schedule.next()) is not None:
            short = [one.cell.steps for one in running if one.kind == "train" and one.cell.role == TUNING]
            if job.kind == "train":
                assert not [steps for steps in short if steps is not None and steps != job.cell.steps]
            running.append(job)
            begun.append(job)
        if not running:
            assert len(schedule) == 0
            return begun
        job = running.pop(0)
        played.over(job)
        schedule.settle(job, done=job.name not in played.broken)


def names(jobs):
    return [job.name for job in jobs if job.kind == "train"]


def by_rate(one):
    return {"sft": 0.1, "dft": 0.3, "eksft": 0.2, "talr": 0.4}[one.label] + one.rate


def test_rungs_wait_for_each_other_and_rows_that_left_are_run_no_more(folder):
    context = JobContext(Plan(halved(folder, "waits")), Store(folder / "waits"))
    for workers in (1, 3, 8):
        played = Played(context.plan, by_rate)
        begun = names(in_order(Schedule(context, Part(), played), played, workers))
        stages = [1 if name.endswith("-1steps") else 2 if name.endswith("-2steps") else 3 for name in begun]
        assert stages == sorted(stages)
        assert (stages.count(1), stages.count(2)) == (8, 4)
        assert {name.split("-lr")[0] for name in begun if name.endswith("-2steps")} == {"sft", "eksft"}
        # nll: less is better. Of the four pairs that are left the best two have the whole budget.
        assert begun[12:] == ["sft-lr0.001-s1005", "sft-lr0.01-s1005", "sft-lr0.001-s5"]


def test_what_broke_off_is_done_again_and_may_change_who_stays(folder):
    context = JobContext(Plan(halved(folder, "again")), Store(folder / "again"))
    lost = [f"sft-lr{rate}-s1005-1steps" for rate in (0.001, 0.01)]
    played = Played(context.plan, by_rate, broken=lost)
    in_order(Schedule(context, Part(), played), played)
    assert "sft" not in played.course().labels
    played.broken = set()
    whole = JobContext.is_done
    try:
        JobContext.is_done = lambda _, job: job.cell in played.runs and not played.runs[job.cell].failed
        begun = names(in_order(Schedule(context, Part(), played), played, workers=2))
    finally:
        JobContext.is_done = whole
    assert begun[:2] == lost
    assert "sft" in played.course().labels


def test_parts_are_refused_with_what_to_do_instead(folder):
    with pytest.raises(BallastError) as caught:
        run_quietly(halved(folder, "parts"), part=Part(1, 2))
    assert str(caught.value) == (
        "--only 1/2: compare.budget.halving ranks all rows together, which no part could; run it whole, with --jobs or "
        "--ray, or set compare.budget.halving=false"
    )


# A whole one.


@pytest.fixture(scope="module")
def whole(folder):
    from ballast.compare import run_compare

    lines = []
    summary = run_compare(halved(folder, "whole"), say=lines.append)
    return folder / "whole", summary.plain(), list(map(str, lines))


def test_a_whole_one_leaves_runs_of_every_rung_and_the_summary_of_its_records(whole):
    output, summary, lines = whole
    assert summary["complete"]
    assert [one["steps"] for one in summary["halving"]["rungs"]] == [1, 2]
    assert summary["halving"]["runs"] == len(list((output / "cells").iterdir()))
    assert {cell.name for cell in read(output / "compare.json", PlanRecord).cells} == {
        path.name for path in (output / "cells").iterdir()
    }
    for run in read_comparison(Store(output)):
        if run.role == TUNING:
            assert run.budget["steps"] == (run.steps or 4)
            assert list(run.result.tasks) == ["validation"]
            assert not list(run.folder.glob("*.safetensors"))
    gone = [row["label"] for row in summary["rows"] if "left" in row]
    assert gone
    assert not [row for row in summary["rows"] if row["label"] in gone and row["stages"]]
    assert not [path for path in (output / "cells").glob("*-s5") if path.name.split("-lr")[0] in gone]
    assert any(line.startswith("halving: 8 runs of 1 step, 7 runs of 2 steps, then at most") for line in lines)
    assert all(any(f"{label}: left after" in line for line in lines) for label in gone)
    # Counts shrink as rows leave: at the end what was done is all there was.
    total = summary["halving"]["runs"]
    assert any(line.startswith(f"{total}/{total} ") for line in lines)
    assert summarise(load_plan(output), read_comparison(Store(output))).plain() == summary


@pytest.mark.parametrize("left", [3, 13])
def test_stopped_anywhere_it_ends_with_the_same_records(whole, folder, tmp_path, left):
    output, summary, _ = whole
    copy = Path(shutil.copytree(output, tmp_path / "copy"))
    cells = [one.name for one in read(output / "compare.json", PlanRecord).cells]
    for name in cells[left:]:
        shutil.rmtree(copy / "cells" / name)
    (copy / "summary.json").unlink()
    assert timeless(run_quietly(halved(folder, copy))) == timeless(summary)
    assert records_of(copy, output) == records_of(output)


@pytest.mark.slow
def test_with_several_processes_it_leaves_the_same_records(whole, folder, tmp_path):
    assert timeless(run_quietly(halved(folder, tmp_path / "out"), jobs=2)) == timeless(whole[1])
    assert records_of(tmp_path / "out", whole[0]) == records_of(whole[0])


def test_a_full_sweep_goes_on_in_the_output_of_a_halving_and_back(whole, folder, tmp_path):
    output, summary, _ = whole
    copy = Path(shutil.copytree(output, tmp_path / "copy"))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("run.json")}
    full = run_quietly(halved(folder, copy, budget={"steps": 4}))
    assert full["complete"]
    assert "halving" not in full
    assert {path: path.stat().st_mtime_ns for path in before} == before
    there = {path: path.stat().st_mtime_ns for path in copy.rglob("run.json")}
    assert timeless(run_quietly(halved(folder, copy))) == timeless(summary)
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_short_runs_of_another_recipe_are_not_mixed_in(whole, folder, tmp_path):
    copy = Path(shutil.copytree(whole[0], tmp_path / "copy"))
    recipe = halved(folder, copy)
    other = recipe.model_copy(update={"training": {**recipe.training, "max_length": 16}})
    with pytest.raises(BallastError, match=r"1steps: was run with another training.max_length than the recipe now"):
        run_quietly(other)


def test_a_short_run_that_breaks_off_leaves_and_the_next_command_tries_it_again(whole, folder, tmp_path, monkeypatch):
    real, lost = pipeline.run_train, "sft-lr0.001-s1005-1steps"

    def breaks(recipe, **options):
        if Path(recipe.output).name == lost:
            raise RuntimeError("out of luck")
        return real(recipe, **options)

    monkeypatch.setattr(pipeline, "run_train", breaks)
    summary = run_quietly(halved(folder, tmp_path / "out"))
    assert [one["run"] for one in summary["failed"]] == [f"cells/{lost}"]
    point = next(one for row in summary["rows"] if row["label"] == "sft" for one in row["rungs"])
    assert (point["score"], point["stayed"]) == (None, False)
    monkeypatch.undo()
    assert timeless(run_quietly(halved(folder, tmp_path / "out"))) == timeless(whole[1])


def test_the_page_shows_the_rungs_and_who_left(whole):
    output, summary, _ = whole
    page, text = write_report([output])
    html, plain = page.read_text(), text.read_text()
    assert "Short runs" in html
    gone = next(row["label"] for row in summary["rows"] if "left" in row)
    assert f"{gone} left after runs of" in plain.replace("\\", "") or f"{gone} and" in plain or f"{gone}, " in plain
    assert "left after" in html
    # The summary that is stored is taken as it is: all runs are in it.
    (output / "summary.json").write_text((output / "summary.json").read_text().replace('"level": 0.95', '"level": 0.5'))
    assert load([output]).summary.level == 0.5
    run = next(run for run in read_comparison(Store(output)) if run.role == REPORT and not run.is_base)
    assert run.steps is None
