"""From records to everything that a report shows; pure, so that the same records give the same report."""

from __future__ import annotations

from ballast.report import weights
from ballast.report.charts.data import BASE, Report, Section
from ballast.report.drift import drift
from ballast.report.figures import deciding, rows
from ballast.report.gaps import gaps
from ballast.report.others import everything
from ballast.report.runs import FAILED, FINISHED, UNFINISHED
from ballast.report.sections import curves
from ballast.report.sections.answer import answer
from ballast.report.sections.results import results
from ballast.report.sections.settings import settings, subject
from ballast.report.source import Source
from ballast.report.sweep import sweep
from ballast.report.text import counted, joined


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
    found: list[Section | None] = []
    if decides is not None:
        found += [results(source, decides), drift(summary, decides)]
    found += [curves.pass_curves(source), everything(summary, decides), curves.training(source)]
    found += [curves.rewards(source), sweep(summary), weights.weights(source.tokens)]
    found += [_open(source), settings(source)]
    labels = [row["label"] for row in rows(summary)]
    labels += [run.label for run in source.runs] + weights.labels(source.tokens)
    return Report(
        title=f"{source.folders[0].resolve().name}: which objective leaves the model best",
        answer=answer(source, decides),
        status=_status(source),
        sections=tuple(section for section in found if section is not None),
        labels=tuple(dict.fromkeys(label for label in labels if label != BASE)),
        cautions=tuple(_cautions(source)),
        tokens=None if source.tokens is None else dict(source.tokens),
    )


def _status(source: Source) -> str:
    done = sum(run.status == FINISHED for run in source.runs)
    parts = [f"{subject(source)}; {counted(done, 'run')} finished"]
    for status in (UNFINISHED, FAILED):
        if some := sum(run.status == status for run in source.runs):
            parts.append(f"{some} {status}")
    missing = len(source.summary["missing"])
    if source.plan is not None and missing:
        parts.append(f"{missing} of the plan missing")
    return ", ".join(parts)


def _cautions(source: Source) -> list[str]:
    """Return what a reader must know before the answer."""
    cautions = []
    if source.summary["missing"]:
        cautions.append("Unfinished: the figures are of the runs that are done, and may change.")
    diverged = curves.diverged(source)
    if diverged:
        told = f"{joined(diverged)} logged values that are no finite number, as training that diverges does"
        cautions.append(f"{told}; the curves have gaps there.")
    versions = source.summary.get("provenance", {}).get("versions", ())
    if len(versions) > 1:
        cautions.append("The runs were made with different versions of the libraries below; see the settings.")
    models = {str((run.record.get("model") or {}).get("type")) for run in source.runs if run.label != "random"}
    paths = {str((run.record.get("recipe") or {}).get("model")) for run in source.runs if run.label != "random"}
    if source.plan is None and (len(models) > 1 or len(paths) > 1):
        cautions.append("The runs do not start from the same model, so differences are not the objectives' alone.")
    data = {str((run.record.get("recipe") or {}).get("data")) for run in source.runs}
    if source.plan is None and len(data) > 1:
        cautions.append("The runs do not train on the same data, so differences are not the objectives' alone.")
    return cautions


def _open(source: Source) -> Section:
    return Section("open", "What was not measured", notes=tuple(gap.long for gap in gaps(source)))
