"""The answer: what to do after fine-tuning, what after RL, and what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ballast.compare.figures import STAGES, Metric, contestants, metrics, rows, stages
from ballast.compare.numbers import counted, joined, rate
from ballast.compare.sentences import sentences
from ballast.compare.verdict import decide
from ballast.records.folder import AFTER
from ballast.report.charts.data import Section
from ballast.report.source import Source

NAMED_GAPS = 5
NAMED_RUNS = 8


def answer(source: Source, metric: Metric | None) -> tuple[str, ...]:
    """Return what to do after fine-tuning and after RL, and what was not measured."""
    found = (decide(source.summary, stage, metric, source.reported(stage)) for stage in STAGES)
    return (*(sentences(one, source.summary) for one in found), _not_measured(source))


def _not_measured(source: Source) -> str:
    short = [gap.short for gap in gaps(source) if gap.short]
    more = "; more below" if len(short) > NAMED_GAPS else ""
    return f"Not measured: {joined(short[:NAMED_GAPS])}{more}."


@dataclass(frozen=True)
class Gap:
    """Something that was not measured: a few words for the answer (none for lesser gaps), and a sentence."""

    short: str
    long: str


def not_measured(source: Source) -> Section:
    """Return a sentence on everything that was not measured."""
    return Section("gaps", "Not measured", notes=tuple(gap.long for gap in gaps(source)))


def gaps(source: Source) -> list[Gap]:
    """Return everything that these records leave open, the most important first."""
    return [gap for find in FINDERS for gap in find(source)]


def _missing(source: Source) -> Iterator[Gap]:
    missing = source.summary.missing
    if missing:
        more = [f"{len(missing) - NAMED_RUNS} more"] if len(missing) > NAMED_RUNS else []
        named = joined([*missing[:NAMED_RUNS], *more])
        noun, curves = "planned run", ""
        if source.plan is None:
            noun, curves = "unfinished run", ", with curves up to where they stopped"
        yield Gap(counted(len(missing), noun), f"{counted(len(missing), 'run')} not finished{curves}: {named}.")
    for run in (run for run in source.runs if run.failed):
        error = run.record.error or "unknown error"
        yield Gap("", f"{run.label} (seed {run.seed}, rate {rate(run.rate)}) failed: {error}")


def _stages(source: Source) -> Iterator[Gap]:
    if AFTER not in stages(source.summary):
        yield Gap("results after reinforcement learning", "No reinforcement learning followed these runs.")
        return
    without = [row.label for row in contestants(source.summary) if AFTER not in row.stages]
    if without:
        yield Gap(f"{joined(without)} after RL", f"No reinforcement learning followed {joined(without)}.")


def _halved(source: Source) -> Iterator[Gap]:
    gone = [row for row in source.summary.rows if row.left is not None]
    if gone:
        rungs = joined([f"{row.label} ({row.left.steps} steps)" for row in gone if row.left is not None])
        labels = joined([row.label for row in gone])
        yield Gap(
            f"{labels} beyond short runs",
            f"Left after short runs, so nothing is claimed of them: {rungs}. Longer, they might have caught up.",
        )


def _seeds(source: Source) -> Iterator[Gap]:
    planned = len(source.summary.seeds.report)
    reported = [stage for row in rows(source.summary, "method") for stage in row.stages.values()]
    if planned == 1 or any(len(stage.seeds) == 1 for stage in reported):
        text = "At least one objective has a single seed, so a difference may be due to the seed."
        yield Gap("other seeds", text)


def _base(source: Source) -> Iterator[Gap]:
    if not rows(source.summary, "start"):
        yield Gap("the base model", "The base model was not measured, so whether training helped is unknown.")


def _rates(source: Source) -> Iterator[Gap]:
    methods = rows(source.summary, "method")
    if not any(row.tuning or row.rungs for row in methods):
        yield Gap(
            "other learning rates",
            "Each objective has one learning rate, and the rate can matter more than the objective.",
        )
        return
    at_edge = [row for row in methods if row.edge]
    if at_edge:
        rates = joined([f"{row.label} ({row.edge}, {rate(row.rate)})" for row in at_edge])
        labels = "every objective" if len(at_edge) == len(methods) > 1 else joined([row.label for row in at_edge])
        yield Gap(
            f"learning rates outside the sweep (the best rate is at its end for {labels})",
            f"The best rate is at the end of the sweep for {rates}: a rate outside it may be better.",
        )


def _abilities(source: Source) -> Iterator[Gap]:
    names = {metric.name for metric in metrics(source.summary)}
    if not any("kl" in name for name in names):
        yield Gap("drift from the base model", "No task measured the KL to the base model (`base_kl`).")
    if not names & {"nll", "forgetting", "bits_per_character"}:
        yield Gap("forgetting", "No task measured the likelihood of text other than the demonstrations (`kind: nll`).")
    if not any(name.startswith("pass@") for name in names):
        yield Gap("pass@k", "No task took several samples, so pass@k is unknown.")


def _scope(source: Source) -> Iterator[Gap]:
    yield Gap(
        "other models and data",
        "The results are of one model, one set of demonstrations and these tasks; on others they may differ.",
    )


FINDERS: tuple[Callable[[Source], Iterator[Gap]], ...] = (
    _missing,
    _halved,
    _stages,
    _seeds,
    _base,
    _rates,
    _abilities,
    _scope,
)
