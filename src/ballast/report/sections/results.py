"""What came out: the table of the deciding metric with its intervals and tests, and the same as charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ballast.records.runs import AFTER, BEFORE
from ballast.report.charts.data import BASE, STARTED, Cell, IntervalChart, Section, Table
from ballast.report.figures import (
    COVERAGE,
    STAGES,
    VERDICTS,
    Metric,
    Row,
    apart,
    best_of,
    bounded,
    ranked,
    result,
    rows,
    shown,
    stages,
    verdict,
    with_results,
)
from ballast.report.pairs import against_start
from ballast.report.source import Source
from ballast.report.text import counted, figure, interval, joined, p_value, rate, signed

NONE = Cell("–")
KINDS = {"start": "the start", "random": "from random weights"}
LINES = {BEFORE: "base", AFTER: "base + RL"}

Against = Mapping[str, Mapping[str, Any]]


def results(source: Source, metric: Metric) -> Section:
    """Return the table of the deciding metric, its charts, and notes on how to read them."""
    summary = source.summary
    to_start = {stage: against_start(source, stage, metric) for stage in stages(summary)}
    return Section(
        "results",
        metric.where,
        f"{'Higher' if metric.sign > 0 else 'Lower'} is better; ★ marks the best of the objectives.",
        tables=(_main_table(summary, metric, to_start.get(AFTER, {})),),
        charts=tuple(_interval_charts(summary, metric)),
        notes=tuple(_notes(summary, metric, to_start.get(AFTER, {}))),
    )


def cell(found: Mapping[str, Any], metric: Metric, best: bool = False, beside: str = "") -> Cell:
    """Return a mean with its interval below it."""
    value = bounded(shown(found)[0], metric)
    parts = [interval(value.low, value.high, show=lambda bound: figure(bound, share=metric.share)), beside]
    return Cell(figure(value.value, share=metric.share), ", ".join(part for part in parts if part), best)


def _main_table(summary: Mapping[str, Any], metric: Metric, to_start: Against) -> Table:
    reached, baseline = stages(summary), summary["baseline"]
    heads = ["", *(STAGES[stage] for stage in reached)]
    if AFTER in reached:
        heads.append("gain by RL")
    compared = len(rows(summary, "method")) > 1
    heads += [f"{STAGES[stage]}, against {baseline}" for stage in reached if compared]
    if to_start:
        heads.append(f"{STAGES[AFTER]}, against {LINES[AFTER]}")
    best = {stage: {row["label"] for row, _ in best_of(ranked(summary, stage, metric))} for stage in reached}
    lines = []
    for row in rows(summary):
        found = {stage: result(row, stage, metric) for stage in reached}
        cells = [Cell(row["label"], KINDS.get(row["kind"], ""))]
        cells += [_reached(summary, row, stage, one, metric, best) for stage, one in found.items()]
        if AFTER in reached:
            cells.append(difference(_gain(row, found[AFTER]), metric))
        if compared:
            cells += [difference(None if one is None else one["to_baseline"], metric) for one in found.values()]
        if to_start:
            cells.append(difference(to_start.get(row["label"]), metric))
        lines.append((*cells, Cell(rate(row["rate"]), f"{row['edge']} tried" if row.get("edge") else "")))
    return Table((*heads, "rate"), tuple(lines))


def _reached(
    summary: Mapping[str, Any], row: Row, stage: str, found: Any, metric: Metric, best: Mapping[str, set[str]]
) -> Cell:
    if found is None:
        return NONE
    beside = "" if _seeds_of_all(summary) or row["kind"] == "start" else _seeds(row, stage)
    return cell(found, metric, row["label"] in best[stage], beside)


def _gain(row: Row, found: Any) -> Mapping[str, Any] | None:
    if found is None:
        return None
    gain: Mapping[str, Any] | None = found.get("gain")
    return found["to_start"] if gain is None and row["kind"] == "start" else gain


def difference(found: Mapping[str, Any] | None, metric: Metric) -> Cell:
    """Return a difference with its interval, and below it what the test says where there was one."""
    if found is None:
        return NONE
    value = apart(found, metric)
    p = found.get("p_holm")
    test = "" if p is None else f"p {p_value(p)}, {verdict(found)}"
    return Cell(signed(value.value), interval(value.low, value.high, show=signed), note=test)


def _seeds(row: Row, stage: str) -> str:
    return counted(len(row["stages"][stage]["seeds"]), "seed")


def _seeds_of_all(summary: Mapping[str, Any]) -> str:
    """Return how many seeds every method has at every stage; nothing where they differ."""
    found = {_seeds(row, stage) for row in rows(summary, "method") for stage in row["stages"]}
    return found.pop() if len(found) == 1 else ""


def _notes(summary: Mapping[str, Any], metric: Metric, to_start: Against) -> Iterator[str]:
    """Yield what rows, columns, intervals and p-values are, for readers who see such a table for the first time."""
    kinds, baseline = {row["kind"] for row in rows(summary)}, summary["baseline"]
    rl = AFTER in stages(summary)
    then = f", “{STAGES[AFTER]}” after GRPO from the model that fine-tuning left" if rl else ""
    yield f"“{STAGES[BEFORE]}” is after fine-tuning with the row's objective{then}."
    if "start" in kinds:
        straight = "; after RL it is RL straight from the start, which fine-tuning has to beat" if rl else ""
        yield f"{BASE} is the model that all runs start from, not fine-tuned{straight}."
    if "random" in kinds:
        yield f"random is {baseline} from random weights: what the demonstrations teach without the start."
    yield _coverage(summary, metric)
    tested = _differences(summary, metric, to_start)
    if any(one["p_holm"] is not None for one in tested):
        yield (
            "Differences are paired by seed and item; p is of the paired t test over seeds, adjusted by Holm for the "
            "number of objectives. Intervals are not adjusted, so one may leave out 0 where p is above 0.05."
        )
        words = {verdict(one) for one in tested} & {"on these items", "no spread"}
        yield from (f"“{word}”: {VERDICTS[word]}." for word in sorted(words))
    elif tested:
        yield "Differences are paired by seed and item; with one seed, or no spread over seeds, none can be tested."


def _differences(summary: Mapping[str, Any], metric: Metric, to_start: Against) -> list[Mapping[str, Any]]:
    found = [one["to_baseline"] for stage in STAGES for _, one in with_results(summary, stage, metric, "method")]
    return [one for one in found if one is not None] + list(to_start.values())


def _coverage(summary: Mapping[str, Any], metric: Metric) -> str:
    """Return what the intervals of this metric are for: of most rows, then of those for which it is less."""
    found: dict[str, list[str]] = {text: [] for text in (*COVERAGE.values(), "")}
    for stage, name in STAGES.items():
        for row, one in with_results(summary, stage, metric):
            start = row["kind"] == "start" and stage == BEFORE
            found[shown(one)[1]].append(BASE if start else f"{row['label']} {name}")
    without = found.pop("")
    covered = {text: cells for text, cells in found.items() if cells}
    if not covered:
        return "No interval: one run, whose items were not kept."
    most = max(covered, key=lambda text: len(covered[text]))
    others = [f"of {joined(cells)} for {text}" for text, cells in covered.items() if text != most]
    others += [f"of {joined(without)} there is none"] if without else []
    seeds = _seeds_of_all(summary)
    told = f" ({seeds} each)" if seeds else ""
    level = f"{summary.get('level', 0.95):.0%}"
    return f"Small figures are {level} intervals for {most}{told}{''.join(f'; {other}' for other in others)}."


def _named(label: str, stage: str) -> str:
    """Return the name of a stage; the start itself is after nothing."""
    return STARTED if label == BASE and stage == BEFORE else STAGES[stage]


def _interval_charts(summary: Mapping[str, Any], metric: Metric) -> list[IntervalChart]:
    entries = [
        (str(row["label"]), stage, found)
        for row in rows(summary)
        for stage in STAGES
        if (found := result(row, stage, metric)) is not None
    ]
    drawn = [(label, _named(label, stage), bounded(shown(found)[0], metric)) for label, stage, found in entries]
    if not drawn:
        return []
    lines = tuple((float(one["over_seeds"]["value"]), LINES[at]) for label, at, one in entries if label == BASE)
    charts = [IntervalChart(metric.where, f"{metric.name} {metric.arrow}", tuple(drawn), lines)]
    differences = [
        (label, STAGES[stage], apart(found["to_baseline"], metric))
        for label, stage, found in entries
        if found["to_baseline"] is not None
    ]
    if differences:
        name = f"difference to {summary['baseline']}"
        charts.append(IntervalChart(f"{metric.where}: {name}", name, tuple(differences), ((0.0, summary["baseline"]),)))
    return charts
