"""Charts with a row for each objective: a metric, its difference to the baseline, answers that were cut off."""

from __future__ import annotations

from ballast.compare.figures import STAGES, Metric, Value, clipped, difference_value, result, rows
from ballast.compare.numbers import counted, figure, interval
from ballast.records.folder import AFTER, BASE, BEFORE
from ballast.records.summary import Answers, Result, Row, Summary
from ballast.report.charts.data import UNTRAINED, Cell, IntervalChart, IntervalRow

BASES = {BEFORE: BASE, AFTER: f"{BASE} + RL"}
FEW_CUT_OFF = 0.05
"""Share of answers that the axis of those cut off shows at least, so that one in a thousand looks like it."""

Place = tuple[Row, str]
"""A row at a stage."""


def result_cell(measured: Result, metric: Metric, best: bool, beside: str = "", note: str = "") -> Cell:
    """Return a mean with its interval below it, and below that what became of the answers."""
    value = clipped(measured, metric)
    span = interval(value.low, value.high, show=lambda bound: figure(bound, share=metric.share))
    detail = ", ".join(part for part in (span, beside) if part)
    return Cell(figure(value.value, share=metric.share), detail, best, note)


def places(summary: Summary) -> list[Place]:
    """Return every row at every stage that it reached."""
    return [(row, stage) for row in rows(summary) for stage in STAGES if stage in row.stages]


def metric_chart(summary: Summary, metric: Metric, title: str, *, x: str = "") -> IntervalChart | None:
    """Return a metric of every row, with the base model as dashed lines; None where none has it."""
    values = {
        (row.label, stage): clipped(one, metric)
        for row, stage in places(summary)
        if (one := result(row, stage, metric)) is not None
    }
    if not values:
        return None
    references = tuple((values[BASE, stage].value, name) for stage, name in BASES.items() if (BASE, stage) in values)
    drawn = tuple(
        IntervalRow(row.label, stage_name(row.label, stage), values.get((row.label, stage)), seeds(row, stage))
        for row, stage in places(summary)
    )
    return IntervalChart(title, x or f"{metric.name} {metric.arrow}".strip(), drawn, references)


def difference_chart(summary: Summary, metric: Metric, title: str) -> IntervalChart | None:
    """Return the differences to the baseline; None where there are none."""
    drawn = tuple(
        IntervalRow(row.label, STAGES[stage], difference_value(one.to_baseline, metric), seeds(row, stage))
        for row, stage in places(summary)
        if (one := result(row, stage, metric)) is not None and one.to_baseline is not None
    )
    name = f"difference to {summary.baseline}"
    return IntervalChart(f"{title}, {name}", name, drawn, ((0.0, summary.baseline),)) if drawn else None


def cut_off_chart(summary: Summary, task: str, title: str) -> IntervalChart | None:
    """Return the share of answers that were cut off before they ended; None where all ended, or nobody counted."""
    found = {
        (row.label, stage): answers
        for row, stage in places(summary)
        if (answers := row.answers(stage, task)) is not None and answers.total
    }
    if not any(answers.cut_off for answers in found.values()):
        return None
    shares = {place: answers.cut_off / answers.total for place, answers in found.items()}
    references = tuple((shares[BASE, stage], name) for stage, name in BASES.items() if (BASE, stage) in shares)
    drawn = tuple(
        IntervalRow(
            row.label,
            stage_name(row.label, stage),
            None if (row.label, stage) not in shares else Value(shares[row.label, stage]),
            _counted(found.get((row.label, stage))),
        )
        for row, stage in places(summary)
    )
    return IntervalChart(title, "share of answers", drawn, references, (0.0, FEW_CUT_OFF))


def _counted(answers: Answers | None) -> str:
    return "" if answers is None else f"{answers.cut_off:,} of {counted(answers.total, 'answer')} cut off"


def stage_name(label: str, stage: str) -> str:
    """Return the name of a stage; the base model is after no training."""
    return UNTRAINED if label == BASE and stage == BEFORE else STAGES[stage]


def seeds(row: Row, stage: str) -> str:
    """Return how many seeds a row has at a stage; nothing for the base model, which has none."""
    untrained = row.kind == "start" and stage == BEFORE
    return "" if untrained or stage not in row.stages else counted(len(row.stages[stage].seeds), "seed")
