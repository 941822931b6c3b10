"""What came out: the deciding metric with intervals and tests, gain against drift, the sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ballast.compare.figures import (
    COVERAGE,
    STAGES,
    VERDICTS,
    Metric,
    Value,
    answers_words,
    clipped,
    difference_value,
    entries,
    interval_of,
    metrics,
    result,
    rows,
    stages,
    starred,
    verdict,
)
from ballast.compare.numbers import counted, interval, joined, number, p_value, rate, signed
from ballast.records.folder import AFTER, BASE, BEFORE
from ballast.records.summary import ChooseSummary, Difference, Result, Row, RungPoint, Summary
from ballast.report.charts.data import (
    MISSING,
    Cell,
    Dot,
    DotChart,
    IntervalChart,
    Line,
    LineChart,
    Section,
    Table,
)
from ballast.report.sections.rows import BASES, cut_off_chart, difference_chart, metric_chart, result_cell, seeds
from ballast.report.sections.tasks import described, heading, title_of
from ballast.report.source import Source

KINDS = {"start": "not fine-tuned", "random": "from random weights"}
DISTANCES = ("base_kl", "demonstrations_kl")
FORGETTING = ("forgetting", "nll")

Differences = Mapping[str, Difference]
"""Differences to the base model at a stage, by label."""


def results(source: Source, metric: Metric) -> Section:
    """Return the table of the deciding metric, its charts, and notes on how to read them."""
    summary = source.summary
    to_base = source.against_base(AFTER, metric.task, metric.name) if AFTER in stages(summary) else {}
    return Section(
        "results",
        title_of(summary, metric),
        f"{described(summary, metric.task)} {'Higher' if metric.sign > 0 else 'Lower'} is better; ★ marks the best "
        "objective.".strip(),
        tables=(_main_table(summary, metric, to_base),),
        charts=tuple(_row_charts(summary, metric)),
        notes=tuple(_notes(summary, metric, to_base)),
    )


def _main_table(summary: Summary, metric: Metric, to_base: Differences) -> Table:
    reached, baseline = stages(summary), summary.baseline
    compared = len(rows(summary, "method")) > 1
    columns = ["", *(STAGES[stage] for stage in reached)]
    columns += ["gain by RL"] if AFTER in reached else []
    columns += [f"{STAGES[stage]}, against {baseline}" for stage in reached if compared]
    columns += [f"{STAGES[AFTER]}, against {BASES[AFTER]}"] if to_base else []
    best = {stage: starred(summary, stage, metric) for stage in reached}
    lines = []
    for row in rows(summary):
        measured = {stage: result(row, stage, metric) for stage in reached}
        gone = "" if row.left is None else _left_words(row.left, summary.choose_by)
        cells = [Cell(row.label, gone or KINDS.get(row.kind, ""))]
        cells += [_stage_cell(summary, row, stage, one, metric, best[stage]) for stage, one in measured.items()]
        if AFTER in reached:
            cells.append(_difference_cell(_gain(row, measured[AFTER]), metric))
        if compared:
            cells += [_difference_cell(one.to_baseline if one else None, metric) for one in measured.values()]
        if to_base:
            cells.append(_difference_cell(to_base.get(row.label), metric))
        lines.append((*cells, Cell(rate(row.rate), f"{row.edge} tried" if row.edge else "")))
    return Table((*columns, "rate"), tuple(lines))


def _left_words(left: RungPoint, by: ChooseSummary | None) -> str:
    """Return after which rung of a halving a row left, and the best score that it had there."""
    score = "no score" if left.score is None else number(left.score)
    return f"left after {counted(left.steps, 'step')}: {by.task if by else ''} {score}"


def _stage_cell(
    summary: Summary, row: Row, stage: str, measured: Result | None, metric: Metric, best: set[str]
) -> Cell:
    if measured is None:
        return MISSING
    beside = "" if _common_seeds(summary) or row.kind == "start" else seeds(row, stage)
    return result_cell(measured, metric, row.label in best, beside, answers_words(row, stage, metric))


def _gain(row: Row, after: Result | None) -> Difference | None:
    """Return what RL added; the base model's gain is its difference to itself before RL."""
    if after is None:
        return None
    return after.to_start if after.gain is None and row.kind == "start" else after.gain


def _difference_cell(difference: Difference | None, metric: Metric) -> Cell:
    """Return a difference with its interval, and below it what the test says where there was one."""
    if difference is None:
        return MISSING
    value, p = difference_value(difference, metric), difference.p_holm
    test = "" if p is None else f"p {p_value(p)}, {verdict(difference)}"
    show = partial(signed, share=metric.share)
    return Cell(show(value.value), interval(value.low, value.high, show=show), note=test)


def _common_seeds(summary: Summary) -> str:
    """Return how many seeds every method has at every stage; nothing where they differ."""
    counts = {seeds(row, stage) for row in rows(summary, "method") for stage in row.stages}
    return counts.pop() if len(counts) == 1 else ""


def _notes(summary: Summary, metric: Metric, to_base: Differences) -> Iterator[str]:
    """Yield what rows, columns, intervals and p-values are, for readers who see such a table for the first time."""
    kinds, baseline = {row.kind for row in rows(summary)}, summary.baseline
    rl = AFTER in stages(summary)
    then = f", “{STAGES[AFTER]}” after GRPO from the fine-tuned model" if rl else ""
    yield f"“{STAGES[BEFORE]}” is after fine-tuning with the row's objective{then}."
    if "start" in kinds:
        after = f"; its “{STAGES[AFTER]}” is RL without fine-tuning, which fine-tuning has to beat" if rl else ""
        yield f"{BASE} is the model that all runs start from{after}."
    if "random" in kinds:
        yield f"random is {baseline} from random weights: what the demonstrations teach without the base model."
    answers = [one for row in summary.rows for stage in row.stages.values() for one in stage.answers.values()]
    if answers and not any(one.cut_off for one in answers):
        yield "No answer was cut off: all ended by themselves."
    yield _coverage(summary, metric)
    tested = _tested_differences(summary, metric, to_base)
    if any(one.p_holm is not None for one in tested):
        yield (
            "Differences are paired by seed and item; p is of the paired t test over seeds, Holm-adjusted for the "
            "number of objectives. Intervals are not adjusted, so one may exclude 0 where p is above 0.05."
        )
        verdicts = {verdict(one) for one in tested} & {"across seeds only", "no spread"}
        yield from (f"“{word}”: {VERDICTS[word]}." for word in sorted(verdicts))
    elif tested:
        yield "Differences are paired by seed and item; with one seed, or no spread over seeds, none can be tested."


def _tested_differences(summary: Summary, metric: Metric, to_base: Differences) -> list[Difference]:
    measured = [one.to_baseline for stage in STAGES for _, one in entries(summary, stage, metric, "method")]
    return [one for one in measured if one is not None] + list(to_base.values())


def _coverage(summary: Summary, metric: Metric) -> str:
    """Return what the intervals of this metric cover: of most rows, then of those for which it is less."""
    cells: dict[str, list[str]] = {coverage: [] for coverage in (*COVERAGE, "")}
    for stage, name in STAGES.items():
        for row, one in entries(summary, stage, metric):
            untrained = row.kind == "start" and stage == BEFORE
            cells[interval_of(one)[1]].append(BASE if untrained else f"{row.label} {name}")
    without = cells.pop("")
    covered = {coverage: names for coverage, names in cells.items() if names}
    if not covered:
        return "There is no interval: one run, without scores of single items."
    most = max(covered, key=lambda coverage: len(covered[coverage]))
    others = [f"for {joined(names)}: {coverage}" for coverage, names in covered.items() if coverage != most]
    others += [f"for {joined(without)}: none"] if without else []
    common = _common_seeds(summary)
    each = f" ({common} each)" if common else ""
    return f"Intervals: {summary.level:.0%}, {most}{each}{''.join(f'; {other}' for other in others)}."


def _row_charts(summary: Summary, metric: Metric) -> Iterator[IntervalChart]:
    """Yield the metric beside drift and cut-off answers, whose rows lie at one height; then differences."""
    title = title_of(summary, metric)
    own = metric_chart(summary, metric, title)
    if own is None:
        return
    charts = [own, *_drift_chart_of_rows(summary, metric), *_charts_of_answers(summary, metric)]
    names = max(len(chart.references) for chart in charts)
    yield from (replace(chart, names=names) for chart in charts)
    differences = difference_chart(summary, metric, title)
    yield from [differences] if differences else []


def _drift_chart_of_rows(summary: Summary, metric: Metric) -> Iterator[IntervalChart]:
    """Yield the KL to the base model, where it was measured."""
    drifted = _distance_metric(metrics(summary), metric)
    if drifted is not None and drifted != metric:
        chart = metric_chart(summary, drifted, f"KL to {BASE} on {_measured_on(drifted)}", x="nats per token")
        yield from [replace(chart, holds=(0.0,))] if chart else []


def _charts_of_answers(summary: Summary, metric: Metric) -> Iterator[IntervalChart]:
    """Yield the answers to the task that were cut off; of another task where none of this one was."""
    for task in sorted(summary.tasks, key=lambda task: task.name != metric.task):
        chart = cut_off_chart(summary, task.name, f"{heading(task)}: answers cut off before they ended")
        if chart is not None:
            yield chart
            return


@dataclass(frozen=True)
class _Cost:
    """A metric along x; `relative` takes its difference to the base model."""

    metric: Metric
    title: str
    x: str
    relative: bool


def drift(summary: Summary, deciding: Metric) -> Section | None:
    """Return what each objective gained and how far it moved for it; None where no distance was measured."""
    charts = tuple(chart for cost in _costs(summary, deciding) if (chart := _drift_chart(summary, deciding, cost)))
    if not charts:
        return None
    after = " The hollow grey mark is the base model after RL." if AFTER in stages(summary) else ""
    lead = f"Higher is better, further left is closer to the base model (grey mark).{after}"
    return Section("drift", "Gain and drift", lead, charts=charts, legend=True)


def _costs(summary: Summary, deciding: Metric) -> Iterator[_Cost]:
    measured = metrics(summary)
    distance = _distance_metric(measured, deciding)
    if distance is not None:
        x = f"KL to {BASE} on {_measured_on(distance)}, nats per token"
        yield _Cost(distance, "Gain against KL to the base model", x, relative=False)
    forgetting = next((one for name in FORGETTING for one in measured if one.name == name and one != deciding), None)
    if forgetting is not None:
        x = f"rise in {forgetting.phrase}, nats per token"
        yield _Cost(forgetting, "Gain against forgetting", x, relative=True)


def _distance_metric(measured: Sequence[Metric], deciding: Metric) -> Metric | None:
    """Return the KL to the base model, on the deciding task's answers where it was measured there."""
    ordered = sorted(measured, key=lambda metric: metric.task != deciding.task)
    return next((metric for name in DISTANCES for metric in ordered if metric.name == name), None)


def _measured_on(distance: Metric) -> str:
    return distance.task if distance.name == "base_kl" else "the demonstrations"


def _drift_chart(summary: Summary, deciding: Metric, cost: _Cost) -> DotChart | None:
    dots = []
    for row in rows(summary, "start", "method"):
        for stage, name in STAGES.items():
            gain, distance = _gain_over_base(row, stage, deciding), _distance(row, stage, cost)
            if gain is not None and distance is not None:
                dots.append(Dot(row.label, name, distance, gain, seeds(row, stage)))
    y = f"gain in {deciding.phrase} over {BASE}"
    return DotChart(cost.title, cost.x, y, tuple(dots), (0.0, 0.0)) if dots else None


def _distance(row: Row, stage: str, cost: _Cost) -> Value | None:
    measured = result(row, stage, cost.metric)
    if measured is None:
        return None
    if not cost.relative:
        return clipped(measured, cost.metric)
    return None if measured.to_start is None else difference_value(measured.to_start, cost.metric)


def _gain_over_base(row: Row, stage: str, metric: Metric) -> Value | None:
    """Return the difference to the base model so that more is better; the base model before RL has none."""
    measured = result(row, stage, metric)
    if measured is None or measured.to_start is None:
        return None
    value = difference_value(measured.to_start, metric)
    if metric.sign > 0:
        return value
    low, high = (None if bound is None else -bound for bound in (value.high, value.low))
    return Value(-value.value, low, high)


def learning_rates(summary: Summary) -> Section | None:
    """Return the scores that chose the learning rates; None where every objective had one, or none was run yet."""
    by, tuned = summary.choose_by, [row for row in rows(summary) if row.tuning]
    points = [point for row in tuned for point in row.tuning]
    if by is None or not any(point.failed or point.score.value is not None for point in points):
        return None
    metric = Metric(by.task, by.metric, 0)
    rates = tuple(sorted({point.rate for point in points}))
    lines = tuple((Cell(row.label), *(_score_cell(row, one) for one in rates)) for row in tuned)
    curves = tuple(
        Line(row.label, tuple(sorted((point.rate, point.score.value) for point in row.tuning))) for row in tuned
    )
    drawable = len(rates) > 1 and any(value is not None for line in curves for _, value in line.points)
    chart = LineChart(f"{metric.title} by learning rate", "learning rate", by.metric, curves, rates)
    tuning = ", ".join(map(str, summary.seeds.tuning))
    return Section(
        "rates",
        "Learning rates",
        f"Chosen by {metric.phrase} (not reported above) on separate seeds ({tuning}). ★ marks the chosen rate.",
        tables=(Table(("", *(rate(one) for one in rates)), lines, metric.title),),
        charts=(chart,) if drawable else (),
        legend=True,
    )


def _score_cell(row: Row, at: float) -> Cell:
    point = next((one for one in row.tuning if one.rate == at), None)
    if point is None:
        return MISSING
    if point.score.value is None:
        return Cell("failed") if point.failed else MISSING
    return Cell(number(point.score.value), "failed on a seed" if point.failed else "", row.rate == at)
