"""What came out: the deciding metric with intervals and tests, gain against drift, all other metrics, the sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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
    mean,
    metrics,
    result,
    rows,
    stages,
    starred,
    verdict,
)
from ballast.compare.numbers import counted, figure, interval, joined, number, p_value, rate, signed
from ballast.records.folder import AFTER, BASE, BEFORE
from ballast.records.summary import ChooseSummary, Difference, Result, Row, RungPoint, Summary
from ballast.report.charts.data import (
    MISSING,
    UNTRAINED,
    Cell,
    Dot,
    DotChart,
    IntervalChart,
    IntervalRow,
    Line,
    LineChart,
    Section,
    Table,
)
from ballast.report.source import Source

KINDS = {"start": "not fine-tuned", "random": "from random weights"}
BASES = {BEFORE: BASE, AFTER: f"{BASE} + RL"}
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
        metric.title,
        f"{'Higher' if metric.sign > 0 else 'Lower'} is better; ★ marks the best objective.",
        tables=(_main_table(summary, metric, to_base),),
        charts=tuple(_interval_charts(summary, metric)),
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
    seeds = "" if _common_seeds(summary) or row.kind == "start" else _seeds(row, stage)
    return _result_cell(measured, metric, row.label in best, seeds, answers_words(row, stage, metric))


def _result_cell(measured: Result, metric: Metric, best: bool, beside: str = "", note: str = "") -> Cell:
    """Return a mean with its interval below it, and below that what became of the answers."""
    value = clipped(measured, metric)
    span = interval(value.low, value.high, show=lambda bound: figure(bound, share=metric.share))
    detail = ", ".join(part for part in (span, beside) if part)
    return Cell(figure(value.value, share=metric.share), detail, best, note)


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
    return Cell(signed(value.value), interval(value.low, value.high, show=signed), note=test)


def _seeds(row: Row, stage: str) -> str:
    return counted(len(row.stages[stage].seeds), "seed")


def _common_seeds(summary: Summary) -> str:
    """Return how many seeds every method has at every stage; nothing where they differ."""
    counts = {_seeds(row, stage) for row in rows(summary, "method") for stage in row.stages}
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
    seeds = _common_seeds(summary)
    each = f" ({seeds} each)" if seeds else ""
    return f"Intervals: {summary.level:.0%}, {most}{each}{''.join(f'; {other}' for other in others)}."


def _interval_charts(summary: Summary, metric: Metric) -> Iterator[IntervalChart]:
    measured = [
        (row.label, stage, one) for row in rows(summary) for stage in STAGES if (one := result(row, stage, metric))
    ]
    if not measured:
        return
    lines = tuple(IntervalRow(label, _stage_name(label, stage), clipped(one, metric)) for label, stage, one in measured)
    references = tuple((mean(one), BASES[stage]) for label, stage, one in measured if label == BASE)
    yield IntervalChart(metric.title, f"{metric.name} {metric.arrow}", lines, references)
    differences = tuple(
        IntervalRow(label, STAGES[stage], difference_value(one.to_baseline, metric))
        for label, stage, one in measured
        if one.to_baseline is not None
    )
    if differences:
        name = f"difference to {summary.baseline}"
        yield IntervalChart(f"{metric.title}, {name}", name, differences, ((0.0, summary.baseline),))


def _stage_name(label: str, stage: str) -> str:
    """Return the name of a stage; the base model is after no training."""
    return UNTRAINED if label == BASE and stage == BEFORE else STAGES[stage]


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
    distance = next((metric for name in DISTANCES for metric in measured if metric.name == name), None)
    if distance is not None:
        on = distance.task if distance.name == "base_kl" else "the demonstrations"
        x = f"KL to {BASE} on {on}, nats per token"
        yield _Cost(distance, "Gain against KL to the base model", x, relative=False)
    forgetting = next((one for name in FORGETTING for one in measured if one.name == name and one != deciding), None)
    if forgetting is not None:
        x = f"rise in {forgetting.phrase}, nats per token"
        yield _Cost(forgetting, "Gain against forgetting", x, relative=True)


def _drift_chart(summary: Summary, deciding: Metric, cost: _Cost) -> DotChart | None:
    dots = []
    for row in rows(summary, "start", "method"):
        for stage, name in STAGES.items():
            gain, distance = _gain_over_base(row, stage, deciding), _distance(row, stage, cost)
            if gain is not None and distance is not None:
                dots.append(Dot(row.label, name, distance, gain))
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


def other_metrics(summary: Summary, deciding: Metric | None) -> Section | None:
    """Return a table of all other metrics for each stage, None where there is none."""
    others = _by_rising_k([metric for metric in metrics(summary) if metric != deciding])
    if not others:
        return None
    tables = tuple(_metrics_table(summary, stage, others) for stage in stages(summary) or [BEFORE])
    lead = "↑ higher is better, ↓ lower is better; ★ marks the best objective."
    return Section("metrics", "All other metrics", lead, tables=tables)


def _by_rising_k(listed: Sequence[Metric]) -> list[Metric]:
    """Return the metrics with pass@1, pass@2, … of a task by rising k, where the first of them stood."""
    first = {(metric.task, _family(metric)): place for place, metric in reversed(list(enumerate(listed)))}
    return sorted(listed, key=lambda metric: (first[metric.task, _family(metric)], _k(metric)))


def _family(metric: Metric) -> str:
    return metric.name.partition("@")[0]


def _k(metric: Metric) -> int:
    k = metric.name.partition("@")[2]
    return int(k) if k.isdecimal() else 0


def _metrics_table(summary: Summary, stage: str, listed: Sequence[Metric]) -> Table:
    measured = [row for row in rows(summary) if stage in row.stages or row.kind == "start"]
    lines = []
    for metric in listed:
        best = starred(summary, stage, metric)
        one_each = [(row, result(row, stage, metric)) for row in measured]
        cells = [
            MISSING
            if one is None
            else _result_cell(one, metric, row.label in best, note=answers_words(row, stage, metric))
            for row, one in one_each
        ]
        lines.append((Cell(f"{metric.name} {metric.arrow}".strip(), metric.task), *cells))
    return Table(("", *(row.label for row in measured)), tuple(lines), STAGES[stage])


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
    seeds = ", ".join(map(str, summary.seeds.tuning))
    return Section(
        "rates",
        "Learning rates",
        f"Chosen by {metric.phrase} (not reported above) on separate seeds ({seeds}). ★ marks the chosen rate.",
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
