"""From records to everything that a report shows; pure, so that the same records give the same report."""

from __future__ import annotations

from collections.abc import Iterator

from ballast.compare.figures import deciding, rows
from ballast.compare.numbers import counted, joined
from ballast.compare.sentences import cautions
from ballast.records.folder import BASE, RANDOM
from ballast.report import tokens
from ballast.report.charts.data import Report
from ballast.report.sections import curves
from ballast.report.sections.answer import answer, not_measured
from ballast.report.sections.halving import halving
from ballast.report.sections.results import drift, learning_rates, results
from ballast.report.sections.settings import settings, subject
from ballast.report.sections.tasks import task_sections
from ballast.report.source import Source


def build(source: Source, *, metric: str | None = None) -> Report:
    """Return the report on what was read.

    Args:
        metric: which metric decides, as ``metric`` or ``task/metric``; None takes the one that chose the rates, or the
            first that has a better and a worse.

    Raises:
        BallastError: the metric asked for was not measured.
    """
    summary = source.summary
    decides = deciding(summary, metric)
    sections = (
        None if decides is None else results(source, decides),
        None if decides is None else drift(summary, decides),
        curves.pass_curves(source),
        *task_sections(summary, decides),
        curves.training(source),
        curves.rewards(source),
        halving(summary),
        learning_rates(summary),
        tokens.histograms(source.tokens),
        not_measured(source),
        settings(source),
    )
    labels = [row.label for row in rows(summary)]
    labels += [run.label for run in source.runs] + tokens.labels(source.tokens)
    return Report(
        title=f"{source.folders[0].resolve().name}: {_about(source)}",
        answer=answer(source, decides),
        status=_status(source),
        sections=tuple(section for section in sections if section is not None),
        labels=tuple(dict.fromkeys(label for label in labels if label != BASE)),
        cautions=tuple(_cautions(source)),
        tokens=source.tokens,
    )


def _about(source: Source) -> str:
    methods = rows(source.summary, "method")
    return f"fine-tuning with {methods[0].label}" if len(methods) == 1 else "comparison of objectives"


def _status(source: Source) -> str:
    finished, failed = sum(run.done for run in source.runs), sum(run.failed for run in source.runs)
    unfinished = len(source.runs) - finished - failed
    parts = [f"{subject(source)}; {counted(finished, 'run')} finished"]
    parts += [f"{count} {state}" for count, state in ((unfinished, "unfinished"), (failed, "failed")) if count]
    if source.plan is not None and source.summary.missing:
        parts.append(f"{len(source.summary.missing)} planned but missing")
    return ", ".join(parts)


def _cautions(source: Source) -> Iterator[str]:
    """Yield what a reader must know before the answer."""
    if source.summary.missing:
        yield "Unfinished: the figures are of the finished runs, and may change."
    diverged = curves.diverged(source)
    if diverged:
        yield f"{joined(diverged)} logged values that are not finite: training diverged; the curves have gaps there."
    yield from cautions(source.summary)
    if source.plan is None:
        records = [run.record for run in source.runs if run.label != RANDOM]
        models = {(record.model.type if record.model else None, str(record.recipe.get("model"))) for record in records}
        if len(models) > 1:
            yield "The runs start from different models, so their differences are not due to the objectives alone."
        if len({str(record.recipe.get("data")) for record in records}) > 1:
            yield "The runs train on different data, so their differences are not due to the objectives alone."
