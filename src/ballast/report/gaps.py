"""What was not measured, read off the records: a report that leaves it out claims more than it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ballast.records.runs import AFTER
from ballast.report.figures import metrics, rows, stages
from ballast.report.runs import FAILED, UNFINISHED
from ballast.report.source import Source
from ballast.report.text import counted, joined, rate

MANY = 8


@dataclass(frozen=True)
class Gap:
    """Something that was not measured: a few words for the answer (none for lesser gaps), and a sentence."""

    short: str
    long: str


def gaps(source: Source) -> list[Gap]:
    """Return everything that these records leave open, the plainest first."""
    return [gap for find in FINDERS for gap in find(source)]


def _missing(source: Source) -> Iterator[Gap]:
    missing = source.summary["missing"]
    if missing:
        more = [f"{len(missing) - MANY} more"] if len(missing) > MANY else []
        named = joined([str(name) for name in missing[:MANY]] + more)
        yield Gap(counted(len(missing), "planned run"), f"{counted(len(missing), 'run')} not finished: {named}.")
    unfinished = [run.folder.name for run in source.runs if run.status == UNFINISHED]
    if unfinished and source.plan is None:
        yield Gap("", f"Shown as far as they came: {joined(unfinished)}. Their curves end where the run stopped.")
    for run in source.runs:
        if run.status == FAILED:
            yield Gap("", f"{run.label} (seed {run.seed}, rate {rate(run.rate)}) failed: {run.error or 'unknown'}")


def _stages(source: Source) -> Iterator[Gap]:
    if AFTER not in stages(source.summary):
        yield Gap("the state after reinforcement learning", "No reinforcement learning followed these runs.")
        return
    without = [row["label"] for row in rows(source.summary, "method") if AFTER not in row["stages"]]
    if without:
        yield Gap(f"{joined(without)} after RL", f"No reinforcement learning followed {joined(without)}.")


def _seeds(source: Source) -> Iterator[Gap]:
    planned = len(source.summary["seeds"]["report"])
    fewest = min((len(s["seeds"]) for row in rows(source.summary, "method") for s in row["stages"].values()), default=0)
    if fewest == 1 or planned == 1:
        yield Gap(
            "other seeds",
            "One seed for at least one objective: the spread over seeds is unknown, a difference may be the seed's.",
        )


def _start(source: Source) -> Iterator[Gap]:
    if not rows(source.summary, "start"):
        yield Gap("the start", "The model before training was not measured, so gain and loss cannot be told apart.")


def _rates(source: Source) -> Iterator[Gap]:
    methods = rows(source.summary, "method")
    if not any(row["tuning"] for row in methods):
        told = "One learning rate for each objective, and the rate can decide more than the objective."
        yield Gap("other learning rates", told)
        return
    edges = [f"{row['label']} ({row['edge']}, {rate(row['rate'])})" for row in methods if row.get("edge")]
    if edges:
        ends = [str(row["label"]) for row in methods if row.get("edge")]
        best = "every objective was" if len(ends) == len(methods) > 1 else f"{joined(ends)} {_was(ends)}"
        told = f"The chosen rate is the end of the sweep for {joined(edges)}: a rate beyond may be better."
        yield Gap(f"rates beyond the ends of the sweep (where {best} best)", told)


def _was(names: list[str]) -> str:
    return "was" if len(names) == 1 else "were"


def _abilities(source: Source) -> Iterator[Gap]:
    names = {metric.name for metric in metrics(source.summary)}
    if not any("kl" in name for name in names):
        yield Gap("drift from the start", "No task measured the KL to the start (`base_kl`).")
    if not names & {"nll", "forgetting", "bits_per_character"}:
        yield Gap("forgetting", "No task measured the likelihood of text beside the demonstrations (`kind: nll`).")
    if not any(name.startswith("pass@") for name in names):
        yield Gap("pass@k", "No task took several samples, so pass@k is not known.")


def _scope(source: Source) -> Iterator[Gap]:
    yield Gap(
        "other models and data",
        "One model, one set of demonstrations and these tasks: what holds here need not hold on others.",
    )


FINDERS: tuple[Callable[[Source], Iterator[Gap]], ...] = (_missing, _stages, _seeds, _start, _rates, _abilities, _scope)
