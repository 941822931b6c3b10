"""From the runs of a comparison to its summary: which rate each row is reported at, and what came of it.

Pure: the same plan and runs give the same summary. docs/compare.md says what each key holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ballast.compare.figures import BETTER
from ballast.compare.halving import Course, course
from ballast.compare.inputs import check_alike, check_engines
from ballast.compare.numbers import ROUNDING
from ballast.compare.plan import Method, Plan, direction
from ballast.compare.results import difference, result
from ballast.compare.savings import left_at, rung_points, saved
from ballast.compare.statistics import holm, over_seeds
from ballast.compare.verdict import verdicts
from ballast.evaluation.metrics import LEVEL
from ballast.records.folder import AFTER, BASE, BEFORE, REPORT, TUNING
from ballast.records.runs import Run
from ballast.records.schema import SCHEMA, CellRecord, Estimate
from ballast.records.summary import (
    Answers,
    Budget,
    ChooseSummary,
    Difference,
    Edge,
    FailedRun,
    HalvingSummary,
    MetricSummary,
    Provenance,
    Result,
    Row,
    RunWarning,
    SeedsSummary,
    Stage,
    Summary,
    SweepPoint,
    TaskSummary,
)

BASE_ROW = Row(label=BASE, kind="start", objective=None, rate=None, edge=None, tuning=(), stages={})
"""The row of the base model, without its results."""


def choose_rate(scores: Mapping[float, Sequence[float]], sign: int) -> float:
    """Return the rate with the best mean, the smaller one of equals.

    Args:
        scores: for each rate one value per tuning seed; not empty.
        sign: 1 where more is better, -1 where less is.
    """
    means = {rate: sign * sum(values) / len(values) for rate, values in scores.items()}
    best = max(means.values())
    # Sums of the same values in another order differ in the last digit, which must not choose.
    return min(rate for rate, mean in means.items() if mean >= best - 1e-12 * max(1.0, abs(best)))


def chosen_rates(plan: Plan, runs: Sequence[Run]) -> dict[str, float]:
    """Return the rate of every row whose tuning is complete; a rate with a failed run is not chosen."""
    return rates_on(course(plan, runs), runs)


def rates_on(found: Course, runs: Sequence[Run]) -> dict[str, float]:
    """Return `chosen_rates` of a halving that came this far; `runs` may lack those of its rungs."""
    chosen = {}
    for label in found.labels if found.over else ():
        rates = found.rates(label)
        if len(rates) == 1:
            chosen[label] = rates[0]
            continue
        points = sweep(found, label, runs)
        if all(len(one.seeds) + len(one.failed) == len(found.plan.tuning_seeds) for one in points):
            scores = {one.rate: one.values for one in points if not one.failed}
            if scores:
                chosen[label] = choose_rate(scores, found.plan.sign)
    return chosen


def sweep(found: Course, label: str, runs: Sequence[Run]) -> tuple[SweepPoint, ...]:
    """Return what the tuning runs of a row scored at each of the rates it has left; nothing where that is one."""
    rates = found.rates(label) if found.over else ()
    return tuple(_point(found.plan, label, rate, runs) for rate in rates) if len(rates) > 1 else ()


def _point(plan: Plan, label: str, rate: float, runs: Sequence[Run]) -> SweepPoint:
    by = plan.compare.choose_by
    assert by is not None
    # One that was done when another task chose has no score here, and is to be done again.
    tuning = [
        run
        for run in runs
        if (run.role, run.label, run.rate, run.steps) == (TUNING, label, rate, None)
        and (run.failed or by.task in _measured(run))
    ]
    values = {run.seed: run.value(by.task, by.metric) for run in tuning if run.done}
    failed = {run.seed for run in tuning if run.failed} | {seed for seed, value in values.items() if value is None}
    known = {seed: value for seed, value in sorted(values.items()) if value is not None and seed in plan.tuning_seeds}
    return SweepPoint(
        rate=rate,
        seeds=tuple(known),
        values=tuple(known.values()),
        failed=tuple(sorted(failed & set(plan.tuning_seeds))),
        score=Estimate.of(over_seeds(list(known.values()))),
    )


def summarise(plan: Plan, runs: Sequence[Run]) -> Summary:
    """Return what ``summary.json`` holds.

    Args:
        plan: the matrix.
        runs: those that lie in its folder; what the plan does not have, or is not done, is left out.

    Raises:
        BallastError: runs that should pair were measured on different items.
    """
    done = [run for run in runs if run.done]
    found = course(plan, runs)
    rates = rates_on(found, runs)
    by = plan.compare.choose_by
    made = tabulate(
        [BASE_ROW, *(_row(found, method, rates.get(method.label), runs) for method in plan.methods)],
        _planned(plan, rates, done),
        baseline=plan.baseline,
        tasks=[task.name for task in plan.tasks(REPORT)],
        seeds=SeedsSummary(report=plan.seeds, tuning=plan.tuning_seeds),
        choose_by=None if by is None else ChooseSummary(task=by.task, metric=by.metric, better=BETTER[plan.sign]),
        missing=missing_runs(found, rates, done),
        failed=[run for run in runs if run.failed and is_planned(found, rates, run)],
        unplanned=[run for run in runs if run.failed and not is_planned(found, rates, run)],
        tuning=[run for run in done if run.role == TUNING and is_planned(found, rates, run)],
        halving=saved(found),
    )
    titles = {task.name: task.title for task in plan.tasks(REPORT)}
    return made.model_copy(update={"tasks": tuple(_titled(task, titles[task.name]) for task in made.tasks)})


def _titled(task: TaskSummary, title: str | None) -> TaskSummary:
    """Return a task under the recipe's title, which may have been given after the runs were made."""
    settings = {key: value for key, value in task.settings.items() if key != "title"}
    return task.model_copy(update={"settings": settings | ({"title": title} if title else {})})


def tabulate(
    rows: Sequence[Row],
    runs: Sequence[Run],
    *,
    baseline: str,
    tasks: Sequence[str],
    seeds: SeedsSummary,
    choose_by: ChooseSummary | None = None,
    missing: Sequence[str] = (),
    failed: Sequence[Run] = (),
    unplanned: Sequence[Run] = (),
    tuning: Sequence[Run] = (),
    halving: HalvingSummary | None = None,
) -> Summary:
    """Return rows with the results of their runs, and differences between them.

    Args:
        rows: without stages; the base model first.
        runs: finished ones, in the order of their seeds.
        tasks: names; those that no run has are left out.
        missing, failed: what is not among the runs, to be named.
        unplanned: runs that failed and that no row asks for, to be named once.
        tuning: runs that chose the rates.
        halving: who left before the rates were chosen, and what that saved.

    Raises:
        BallastError: runs were made of other rows or weights, their answers sampled by other engines, or they should
            pair and were measured on different items.
    """
    check_alike([*runs, *tuning])
    check_engines([*runs, *tuning])
    names = [name for name in tasks if any(name in _measured(run) for run in runs)]
    made = Summary(
        schema=SCHEMA,
        level=LEVEL,
        baseline=baseline,
        choose_by=choose_by,
        seeds=seeds,
        complete=not missing,
        missing=tuple(missing),
        failed=_failures(failed),
        tasks=tuple(_described(name, runs) for name in names),
        rows=adjusted([row.model_copy(update={"stages": _stages(row, baseline, runs, names)}) for row in rows]),
        provenance=_provenance([*runs, *tuning]),
        unplanned=_failures(unplanned),
        warnings=tuple(RunWarning(run=run.path, warning=text) for run in runs for text in run.record.warnings),
    )
    halved = {} if halving is None else {"halving": halving}
    made = made.model_copy(update=halved)
    return made.model_copy(update={"verdicts": verdicts(made, runs)})


def _failures(runs: Iterable[Run]) -> tuple[FailedRun, ...]:
    return tuple(FailedRun(run=run.path, error=run.record.error) for run in runs)


def missing_runs(found: Course, rates: Mapping[str, float], runs: Iterable[Run]) -> list[str]:
    """Return the folders, below the output, of runs that the matrix has and that are not done."""
    plan, there = found.plan, {run.path for run in runs}
    reported = [f"cells/{cell.name}" for cell in plan.report(rates)]
    wanted = [f"cells/{cell.name}" for cell in found.cells()] + reported
    if plan.rl:
        wanted += [f"cells/{cell.name}/rl" for cell in plan.report(rates) if plan.followed(cell)]
        wanted += [f"base/rl/s{seed}" for seed in plan.seeds]
    wanted += ["base"] if plan.recipe.evaluation.base else []
    unknown = [f"cells/{label}-lr…" for label in found.labels if label not in rates]
    return [path for path in wanted if path not in there] + unknown


def is_planned(found: Course, rates: Mapping[str, float], run: Run) -> bool:
    """Whether the plan has a run; of a row without a rate, whether it has it at one of the rates it has left."""
    plan = found.plan
    if run.is_base:
        return True
    if run.role == TUNING:
        cell = CellRecord(label=run.label, rate=run.rate, seed=run.seed, role=TUNING, steps=run.steps)
        return cell in found.cells()
    if run.stage == AFTER and not plan.rl:
        return False
    labels = {label: {rates[label]} if label in rates else set(found.rates(label)) for label in found.labels}
    return run.seed in plan.seeds and (run.label == BASE or run.rate in labels.get(run.label, set()))


def _planned(plan: Plan, rates: Mapping[str, float], done: Iterable[Run]) -> list[Run]:
    """Return the reported runs that the plan has, by seed: other rates, seeds and labels may lie in the folder too."""

    def wanted(run: Run) -> bool:
        if run.is_base or run.role != REPORT:
            return run.is_base
        return run.seed in plan.seeds and (run.label == BASE or (run.label in rates and run.rate == rates[run.label]))

    return sorted((run for run in done if wanted(run)), key=lambda run: run.seed)


def _row(found: Course, method: Method, rate: float | None, runs: Sequence[Run]) -> Row:
    """Return a method's row without its results."""
    points = sweep(found, method.label, runs)
    resolved = (run.record.objective for run in runs if run.done and run.label == method.label)
    row = Row(
        label=method.label,
        kind="random" if method.random else "method",
        objective=next((one for one in resolved if one), {"name": method.section.name, **method.section.options}),
        rate=rate,
        edge=_edge(points, rate, method.rates),
        tuning=points,
        stages={},
    )
    short = rung_points(found, method.label)
    left = left_at(found, method.label)
    gone = {} if left is None else {"left": left}
    return row.model_copy(update={"rungs": short, **gone}) if short else row


def _edge(points: Sequence[SweepPoint], rate: float | None, swept: Sequence[float]) -> Edge:
    """Return at which end of the sweep a rate lies; none where a rate further in scored as much."""
    ends: dict[float, Edge] = {min(swept): "lowest", max(swept): "highest"} if len(swept) > 1 else {}
    chosen = next((one.score.value for one in points if one.rate == rate), None)
    alike = [one for one in points if one.rate != rate and one.score.value is not None and chosen is not None]
    if rate is None or any(math.isclose(one.score.value or 0.0, chosen or 0.0, abs_tol=ROUNDING) for one in alike):
        return None
    return ends.get(rate)


def _measured(run: Run) -> Iterable[str]:
    return () if run.result is None else run.result.tasks


def _described(name: str, runs: Sequence[Run]) -> TaskSummary:
    tasks = [run.result.tasks[name] for run in runs if run.result is not None and name in run.result.tasks]
    metrics = dict.fromkeys(metric for task in tasks for metric in task.metrics)
    return TaskSummary(
        name=name,
        kind=tasks[0].kind,
        n=max(estimate.n for task in tasks for estimate in task.metrics.values()),
        # Every seed has samples of its own.
        settings={key: value for key, value in tasks[0].settings.items() if key != "seed"},
        metrics={metric: MetricSummary(better=BETTER[direction(metric)]) for metric in metrics},
    )


def _stages(row: Row, baseline: str, runs: Sequence[Run], names: Sequence[str]) -> dict[str, Stage]:
    found = {}
    base, before = _of(runs, BASE, BEFORE), _of(runs, row.label, BEFORE)
    compared = row.kind == "method" and row.label != baseline
    for stage in (BEFORE, AFTER):
        mine = before if stage == BEFORE else _of(runs, row.label, AFTER)
        if not mine:
            continue
        partners = {
            "to_baseline": _of(runs, baseline, stage) if compared else [],
            "to_start": [] if (row.label, stage) == (BASE, BEFORE) else base,
            **({"gain": before} if stage == AFTER else {}),
        }
        tasks = {name: _results(mine, partners, name) for name in names}
        budgets = [run.budget for run in mine]
        found[stage] = Stage(
            runs=tuple(run.path for run in mine),
            seeds=tuple(run.seed for run in mine),
            budget=Budget(
                steps=tuple(one["steps"] for one in budgets),
                tokens=tuple(one["tokens"] for one in budgets),
                seconds=tuple(one["seconds"] for one in budgets),
            ),
            tasks={name: metrics for name, metrics in tasks.items() if metrics},
            answers={name: answers for name in names if (answers := _answers(mine, name)) is not None},
        )
    return found


def _answers(runs: Sequence[Run], task: str) -> Answers | None:
    """Return what became of the answers to a task over all runs, None where they were not counted."""
    found = [run.result for run in runs if run.result is not None and task in run.result.tasks]
    counts = [one.tasks[task].counts for one in found]
    if not counts or not all({"answers", "cut_off"} <= set(one) for one in counts):
        return None
    scored = all(task in one.scores for one in found)
    return Answers(
        total=int(sum(one["answers"] for one in counts)),
        cut_off=int(sum(one["cut_off"] for one in counts)),
        right=sum(score >= 1 for one in found for row in one.scores[task] for score in row) if scored else None,
    )


def _of(runs: Iterable[Run], label: str, stage: str) -> list[Run]:
    return [run for run in runs if run.label == label and run.stage == stage]


def _results(runs: Sequence[Run], partners: Mapping[str, Sequence[Run]], task: str) -> dict[str, Result]:
    """Return the result of every metric of a task, with the differences to each of the partners."""
    tasks = [run.result.tasks[task] for run in runs if run.result is not None and task in run.result.tasks]
    return {
        metric: result(runs, task, metric).model_copy(
            update={key: difference(runs, others, task, metric) for key, others in partners.items()}
        )
        for metric in dict.fromkeys(metric for one in tasks for metric in one.metrics)
    }


def adjusted(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return rows with Holm's adjustment over the methods, for each stage, task and metric by itself."""
    families: dict[tuple[str, str, str], dict[str, Difference]] = {}
    for row in rows:
        for stage, there in row.stages.items():
            for task, metrics in there.tasks.items():
                for metric, found in metrics.items():
                    if found.to_baseline is not None:
                        families.setdefault((stage, task, metric), {})[row.label] = found.to_baseline
    adjusted = {
        (label, *family): one.model_copy(update={"p_holm": p})
        for family, members in families.items()
        for (label, one), p in zip(members.items(), holm([one.p for one in members.values()]), strict=True)
    }
    return tuple(_with_p_values(row, adjusted) for row in rows)


def _with_p_values(row: Row, adjusted: Mapping[tuple[str, str, str, str], Difference]) -> Row:
    def results(stage: str, task: str, metrics: Mapping[str, Result]) -> dict[str, Result]:
        return {
            metric: found.model_copy(update={"to_baseline": adjusted.get((row.label, stage, task, metric))})
            for metric, found in metrics.items()
        }

    stages = {
        stage: there.model_copy(
            update={"tasks": {task: results(stage, task, metrics) for task, metrics in there.tasks.items()}}
        )
        for stage, there in row.stages.items()
    }
    return row.model_copy(update={"stages": stages})


def _provenance(runs: Iterable[Run]) -> Provenance:
    """Return what the runs were made with, each value once."""
    runs = list(runs)
    records = [run.record for run in runs]
    asked = [one.engine for run in runs for one in run.measured.values() if one.engine is not None]
    engines = [" ".join(filter(None, (one.kind, one.version, one.model))) for one in asked]
    versions: list[dict[str, str]] = []
    for record in records:
        if record.versions and record.versions not in versions:
            versions.append(record.versions)
    made = Provenance(
        versions=tuple(versions),
        commits=tuple(dict.fromkeys(record.commit for record in records if record.commit is not None)),
        devices=tuple(dict.fromkeys(record.device for record in records if record.device is not None)),
    )
    return made.model_copy(update={"engines": tuple(dict.fromkeys(engines))}) if engines else made
