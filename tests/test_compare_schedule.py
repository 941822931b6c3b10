"""Which job can begin when: the order, what waits for what, and that nobody idles while something could begin."""

import heapq
import random

import pytest

from ballast.compare import Part, Plan
from ballast.compare.halving import course
from ballast.compare.jobs import JobContext
from ballast.compare.schedule import Schedule
from ballast.records.folder import TUNING, Store
from compare_tools import THEN, matrix, write_inputs

SHAPE = {"objectives": ["sft", "eksft", "prift-mass"], "rates": [1e-3, 1e-2, 1e-1], "tuning_seeds": 2, "then": THEN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("schedule")
    write_inputs(path)
    return path


def context_of(folder, output, **changes):
    return JobContext(Plan(matrix(folder, output, **{**SHAPE, **changes})), Store(folder / output))


class Chooser:
    """Nothing is halved; chooses the first rate, and keeps which rows asked."""

    def __init__(self, plan, none=()):
        self.plan, self.none, self.asked = plan, none, []

    def course(self):
        return course(self.plan, [])

    def rate(self, label):
        self.asked.append(label)
        return None if label in self.none else self.plan.method(label).rates[0]


def schedule_of(context, part=None, none=()):
    return Schedule(context, part or Part(), Chooser(context.plan, none))


def stage(job):
    return job.kind if job.kind != "train" else job.cell.role


def in_order(schedule, broken=()):
    """Do one job after the other; return them."""
    done = []
    while (job := schedule.next()) is not None:
        done.append(job)
        schedule.settle(job, done=job.name not in broken)
    assert len(schedule) == 0
    return done


def played(schedule, workers, seconds):
    """Let workers do all jobs, each of which takes some seconds; return when each began and ended."""
    now, running, times = 0.0, [], {}
    while True:
        while len(running) < workers and (job := schedule.next()) is not None:
            times[job] = (now, now + seconds(job))
            heapq.heappush(running, (times[job][1], len(times), job))
        if not running:
            return times
        now, _, job = heapq.heappop(running)
        schedule.settle(job, done=True)


def staged(context, workers, seconds):
    """Return how long the same jobs take where each stage waits for the end of the one before it."""
    jobs, total = in_order(schedule_of(context)), 0.0
    for kind in ("base", "score", TUNING, "report", "rl"):
        free = [0.0] * workers
        for job in (one for one in jobs if stage(one) == kind):
            heapq.heapreplace(free, free[0] + seconds(job))
        total += max(free)
    return total


def test_one_after_the_other_goes_stage_by_stage(folder):
    context = context_of(folder, "order")
    jobs = in_order(schedule_of(context))
    stages = [stage(job) for job in jobs]
    assert stages == ["score", "base", *[TUNING] * 18, *["report"] * 6, *["rl"] * 8]
    assert len(set(jobs)) == len(jobs)
    rows = ["sft", "eksft", "prift-mass"]
    assert [job.label for job in jobs[2:20]] == [row for row in rows for _ in range(6)]
    # Seed by seed, so that what is there pairs up.
    assert [(job.cell.seed, job.label) for job in jobs[20:26]] == [(seed, row) for seed in (5, 6) for row in rows]
    assert [(job.cell.seed, job.label) for job in jobs[26:]] == [
        (seed, row) for seed in (5, 6) for row in ("base", *rows)
    ]


def test_nothing_begins_before_what_it_needs_and_no_worker_idles_for_a_stage(folder):
    context = context_of(folder, "laws")
    for draw in range(30):
        rng = random.Random(draw)
        seconds = {}
        times = played(
            schedule_of(context),
            rng.choice((1, 2, 3, 8)),
            lambda job, rng=rng, seconds=seconds: seconds.setdefault(job, rng.uniform(1, 60)),
        )
        assert len(times) == 34
        score = next(end for job, (_, end) in times.items() if job.kind == "score")
        for job, (begin, _) in times.items():
            if job.kind == "train" and context.recipe(job).reference.cache is not None:
                assert begin >= score
            if stage(job) == "report":
                chose = [one for one in times if stage(one) == TUNING and one.label == job.label]
                assert begin >= max(times[one][1] for one in chose)
            if job.kind == "rl" and job.label != "base":
                [before] = [one for one in times if one.kind == "train" and one.cell == job.cell]
                assert begin >= times[before][1]


def test_a_row_that_is_slow_to_choose_holds_up_itself_alone(folder):
    context = context_of(folder, "slow")

    def seconds(job):
        return 60.0 if job.label == "prift-mass" and job.cell.role == TUNING and job.cell.seed == 1006 else 10.0

    times = played(schedule_of(context), 8, seconds)
    last = max(end for job, (_, end) in times.items() if stage(job) == TUNING)
    others = [begin for job, (begin, _) in times.items() if stage(job) == "report" and job.label != "prift-mass"]
    assert max(others) < last
    took = max(end for _, end in times.values())
    assert took <= staged(context, 8, seconds) - 20.0


def test_a_live_reference_does_not_wait_for_the_cache(folder):
    context = context_of(folder, "live", objectives=["eksft", "sft"], rates=[1e-3], choose_by=None)
    schedule = schedule_of(context)
    begun = [schedule.next() for _ in range(8)]
    # Of sft nothing, until the rows are scored; then all of it.
    assert [(one.kind, one.label) for one in begun if one] == [
        ("score", "base"),
        ("base", "base"),
        ("train", "eksft"),
        ("train", "eksft"),
        ("rl", "base"),
        ("rl", "base"),
    ]
    schedule.settle(begun[0], done=True)
    assert [schedule.next().label for _ in range(2)] == ["sft", "sft"]
    assert schedule.next() is None


def test_what_needs_no_cache_scores_nothing(folder):
    context = context_of(folder, "none", objectives=["eksft"], rates=[1e-3], choose_by=None)
    assert "score" not in [job.kind for job in in_order(schedule_of(context))]


def test_nothing_follows_what_broke_off(folder):
    context = context_of(folder, "broken", rates=[1e-3], choose_by=None, objectives=["sft", "dft"])
    jobs = in_order(schedule_of(context), broken=["sft-lr0.001-s5"])
    assert [job.name for job in jobs if job.kind == "rl" and job.label != "base"] == [
        "dft-lr0.001-s5, RL",
        "sft-lr0.001-s6, RL",
        "dft-lr0.001-s6, RL",
    ]


def test_a_row_without_a_rate_reports_nothing_and_one_that_broke_off_counts_as_over(folder):
    context = context_of(folder, "norate")
    schedule = schedule_of(context, none=["sft"])
    jobs = in_order(schedule, broken=[f"sft-lr{rate}-s1006" for rate in (0.001, 0.01, 0.1)])
    assert {job.label for job in jobs if stage(job) == "report"} == {"eksft", "prift-mass"}
    assert schedule._choices.asked == ["sft", "eksft", "prift-mass"]


def test_what_is_done_is_skipped_and_what_follows_it_is_not(folder, monkeypatch):
    context = context_of(folder, "resumed")
    whole = in_order(schedule_of(context))
    for number in (1, 5, 19, 22, 30, len(whole)):
        there = set(whole[:number]) if number < len(whole) else set(whole)
        monkeypatch.setattr(JobContext, "is_done", lambda _, job, there=there: job in there and job.kind != "score")
        left = [job for job in whole if job not in there]
        again = in_order(schedule_of(context))
        assert [job for job in again if job.kind != "score"] == [job for job in left if job.kind != "score"]
        # It is scored where a run that is left reads it, not otherwise.
        assert ("score" in [job.kind for job in again]) == any(job.kind == "train" for job in left)


def test_a_job_that_is_handed_back_comes_again_in_its_place(folder):
    context = context_of(folder, "again")
    schedule = schedule_of(context)
    score, base = schedule.next(), schedule.next()
    assert (score.kind, base.kind) == ("score", "base")
    schedule.again(score)
    assert schedule.next() == score
    first, second = schedule.next(), schedule.next()
    # With a live reference: they do not wait.
    assert [(one.label, one.cell.rate) for one in (first, second)] == [("eksft", 1e-3), ("eksft", 1e-2)]
    schedule.again(first)
    assert schedule.next() == first
