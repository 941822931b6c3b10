"""``summary.json``: what a comparison, or several runs, come to. docs/compare.md says how each figure is made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from ballast.records.schema import Estimate, Number, Record, Values, Versioned

Better = Literal["higher", "lower"] | None
"""Which way is better; None where neither is."""
Edge = Literal["lowest", "highest"] | None
"""Which end of the sweep; None where neither is."""


class Difference(Record):
    """Runs minus other runs, paired by seed and, where answers were scored, by item.

    Attributes:
        seeds: those that both sides have.
        values: one per seed.
        over_seeds, over_items, over_both: see `Result`.
        p: two-sided paired t test; None where there is nothing to test with.
        p_holm: adjusted over the methods.
    """

    seeds: tuple[int, ...]
    values: tuple[FiniteFloat, ...]
    over_seeds: Estimate
    over_items: Estimate | None
    over_both: Estimate | None
    p: FiniteFloat | None
    p_holm: FiniteFloat | None = None


class Result(Record):
    """One metric of one row at one stage.

    Attributes:
        values: one per seed of the stage, None where it was not measured.
        over_seeds: the mean, and what other seeds would give on these items.
        over_items: the mean, and what these runs would give on other items; None without scores of single items.
        over_both: the mean, and what other seeds would give on other items; None as above, and for one seed.
        to_baseline: difference to the baseline at the same stage.
        to_start: difference to the base model before RL.
        gain: after RL minus before it, of the same runs.
    """

    values: tuple[FiniteFloat | None, ...]
    over_seeds: Estimate
    over_items: Estimate | None
    over_both: Estimate | None
    to_baseline: Difference | None = None
    to_start: Difference | None = None
    gain: Difference | None = None


class Budget(Record):
    """What the runs of a stage cost, one value per run: optimiser steps, tokens read, seconds of training."""

    steps: tuple[Number | None, ...]
    tokens: tuple[Number | None, ...]
    seconds: tuple[Number | None, ...]


class Answers(Record):
    """Answers to a task, all runs of a stage together: how many, cut off before they ended, right (None: not known)."""

    total: int
    cut_off: int
    right: int | None = None


class Stage(Record):
    """A row before or after RL.

    Attributes:
        runs: folders below the output.
        seeds: of these runs.
        tasks: task -> metric -> result.
        answers: task -> its answers, for tasks that have answers.
    """

    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: Budget
    tasks: dict[str, dict[str, Result]]
    answers: dict[str, Answers] = Field(default={})


class SweepPoint(Record):
    """What the tuning runs of one row at one learning rate scored; `failed` seeds have no score."""

    rate: float
    seeds: tuple[int, ...]
    values: tuple[FiniteFloat, ...]
    failed: tuple[int, ...]
    score: Estimate


class RungPoint(Record):
    """What a run of a halving's rung scored.

    Attributes:
        rate, steps: of the run; `steps` are its own.
        rung: steps of the rung, of the budget.
        score: None where the run broke off, is not over, or its score is no number.
        stayed: whether the pair of row and rate went on; None while runs of the rung are left.
    """

    rate: float
    steps: int
    rung: int
    score: FiniteFloat | None
    stayed: bool | None


class Row(Record):
    """The base model, an objective, or the floor from random weights.

    Attributes:
        objective: name and options; None for the base model.
        rate: the learning rate that it is reported at; None before it is chosen.
        edge: whether that rate is an end of the sweep.
        tuning: the sweep, empty where there was one rate.
        stages: ``before_rl`` and ``after_rl``, each where there are runs.
        rungs: what the runs of a halving scored, the shortest first.
        left: the best of them in the rung after which the row left; None where it is reported.
    """

    label: str
    kind: Literal["start", "method", "random"]
    objective: Values | None
    rate: float | None
    edge: Edge
    tuning: tuple[SweepPoint, ...]
    stages: dict[str, Stage]
    rungs: tuple[RungPoint, ...] = ()
    left: RungPoint | None = None

    def result(self, stage: str, task: str, metric: str) -> Result | None:
        """Return a result, None where it was not measured or is no number."""
        there = self.stages.get(stage)
        found = None if there is None else there.tasks.get(task, {}).get(metric)
        return None if found is None or found.over_seeds.value is None else found

    def answers(self, stage: str, task: str) -> Answers | None:
        """Return what became of the answers to a task, None where it has none or nobody counted them."""
        there = self.stages.get(stage)
        return None if there is None else there.answers.get(task)


class MetricSummary(Record):
    """What tables need to know of a metric."""

    better: Better


class TaskSummary(Record):
    """A reported task; `n` counts items, `settings` are those that all seeds share."""

    name: str
    kind: str
    n: int
    settings: Values
    metrics: dict[str, MetricSummary]


class ChooseSummary(Record):
    """What chose the learning rates."""

    task: str
    metric: str
    better: Better


class RungSummary(Record):
    """A rung of a halving: the steps of its runs, how many pairs ran, and how many went on (None: runs are left)."""

    steps: int
    pairs: int
    kept: int | None


class HalvingSummary(Record):
    """What a halving did, and what it saved of the runs and steps of fine-tuning; RL is not counted.

    Attributes:
        runs, steps: of the rungs, of choosing rates, and of what is reported; None before that is known.
        full_runs, full_steps: those of the full sweep.
    """

    eta: int
    rungs: tuple[RungSummary, ...]
    runs: int | None
    steps: int | None
    full_runs: int
    full_steps: int


class SeedsSummary(Record):
    """Seeds of the reported runs and of those that choose; none is in both."""

    report: tuple[int, ...]
    tuning: tuple[int, ...]


class Verdict(Record):
    """What to do after a stage, by the deciding metric.

    Attributes:
        kind: ``use``: `winner` is better than `against` beyond noise; ``same``: nothing differs from `against` beyond
            noise; ``baseline``: no objective is better than the baseline, and some are worse; ``base``: no objective
            beats the base model; ``open``: nothing can be concluded; ``none``: nothing was measured.
        against: label of the row that `difference` is taken to: the baseline, or the base model.
        winner: label of what to use, None where that is no objective or not known.
        runner_up: label of the best mean beside the winner's, or beside the baseline's.
        difference: `winner`, or without one `runner_up`, minus `against`.
        lead: `winner` minus `runner_up`.
        reasons: why nothing can be concluded, and what to change; one sentence each.
        cautions: what limits the conclusion; one sentence each.
    """

    stage: str
    task: str
    metric: str
    better: Better
    kind: Literal["use", "same", "baseline", "base", "open", "none"]
    against: str
    winner: str | None = None
    runner_up: str | None = None
    difference: Difference | None = None
    lead: Difference | None = None
    reasons: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


class RunWarning(Record):
    """What a finished run warns of, with its folder below the output."""

    run: str
    warning: str


class FailedRun(Record):
    """A run that broke off: its folder below the output, and the error in one line."""

    run: str
    error: str


class Provenance(Record):
    """What the runs were made with, each value once."""

    versions: tuple[dict[str, str], ...]
    commits: tuple[str, ...]
    devices: tuple[str, ...]
    engines: tuple[str, ...] = ()


class Summary(Versioned):
    """The whole of ``summary.json``.

    Attributes:
        level: confidence level of every interval.
        baseline: label of the row that differences are taken to.
        choose_by: None where every row has one learning rate.
        complete, missing: whether every planned run is there, and the folders of those that are not.
        failed: planned runs that broke off.
        unplanned: runs that broke off and that the recipe no longer has.
        warnings: of finished runs.
        rows: the base model first, then the methods in the order of the recipe, then ``random``.
        verdicts: one for each stage; none in summaries of earlier versions.
        halving: None where every row trained at every rate for the whole budget.
    """

    level: FiniteFloat
    baseline: str
    choose_by: ChooseSummary | None
    seeds: SeedsSummary
    complete: bool
    missing: tuple[str, ...]
    failed: tuple[FailedRun, ...]
    tasks: tuple[TaskSummary, ...]
    rows: tuple[Row, ...]
    provenance: Provenance
    unplanned: tuple[FailedRun, ...] = ()
    warnings: tuple[RunWarning, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    halving: HalvingSummary | None = None
