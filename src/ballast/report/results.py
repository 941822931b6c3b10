"""What came out: the table with intervals, what it cost in drift, and how the learning rates were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ballast.compare.read import AFTER, BEFORE
from ballast.report.charts import BASE, Cell, Dot, DotChart, IntervalChart, Line, LineChart, Section, Table, Value
from ballast.report.figures import (
    COVERAGE,
    STAGES,
    VERDICTS,
    Metric,
    Row,
    bounded,
    metrics,
    ranked,
    result,
    rows,
    shown,
    stages,
    verdict,
    with_results,
)
from ballast.report.text import counted, interval, number, p_value, rate, signed

DRIFT = ("base_kl", "demonstrations_kl")
FORGOTTEN = ("forgetting", "nll")
NONE = Cell("–")
MARKS = " In the charts full marks are after SFT, hollow ones after RL."
TESTED = {
    True: "p-values are of paired t tests over seeds, adjusted by Holm for the number of objectives",
    False: "with one seed each, or the same difference on every seed, none can be tested",
}


def results(summary: Mapping[str, Any], metric: Metric) -> Section:
    """Return the table of the deciding metric and its chart."""
    return Section(
        "results",
        f"{metric.name} on {metric.task}",
        f"{'Higher' if metric.sign > 0 else 'Lower'} is better. Differences are to {summary['baseline']}, paired by "
        f"seed and item; {TESTED[_tested(summary, metric)]}.{MARKS if AFTER in stages(summary) else ''}",
        tables=(_main_table(summary, metric),),
        charts=tuple(_interval_charts(summary, metric)),
        notes=(_coverage(summary, metric), *_meaning(summary, metric)),
    )


def _main_table(summary: Mapping[str, Any], metric: Metric) -> Table:
    reached = stages(summary)
    heads = ["", "rate"]
    tested = _tested(summary, metric)
    for stage in reached:
        heads += [STAGES[stage], f"against {summary['baseline']}", *(["p (Holm)"] if tested else [])]
    if AFTER in reached:
        heads.append("gain by RL")
    best = {stage: {row["label"] for row, _ in ranked(summary, stage, metric)[:1]} for stage in reached}
    return Table(tuple(heads), tuple(_main_row(summary, row, reached, best, metric, tested) for row in rows(summary)))


def _tested(summary: Mapping[str, Any], metric: Metric) -> bool:
    """Whether any difference could be tested: it takes several seeds."""
    found = [one["to_baseline"] for stage in STAGES for _, one in with_results(summary, stage, metric, "method")]
    return any(one is not None and one["p_holm"] is not None for one in found)


def _seeds(row: Row, stage: str) -> str:
    return counted(len(row["stages"][stage]["seeds"]), "seed")


def _seeds_of_all(summary: Mapping[str, Any]) -> str:
    """Return how many seeds every method has at every stage; nothing where they differ."""
    found = {_seeds(row, stage) for row in rows(summary, "method") for stage in row["stages"]}
    return found.pop() if len(found) == 1 else ""


def _main_row(
    summary: Mapping[str, Any], row: Row, reached: list[str], best: Mapping[str, set[str]], metric: Metric, tested: bool
) -> tuple[Cell, ...]:
    even = _seeds_of_all(summary) != ""
    cells = [Cell(row["label"], {"random": "from random weights", "start": "the start"}.get(row["kind"], ""))]
    cells.append(Cell(rate(row["rate"]), f"{row['edge']} tried" if row.get("edge") else ""))
    for stage in reached:
        found = result(row, stage, metric)
        if found is None:
            cells += [NONE] * (2 + tested)
            continue
        cells.append(_cell(found, metric, row["label"] in best[stage], "" if even else _seeds(row, stage)))
        difference = found["to_baseline"]
        if difference is None:
            cells += [NONE] * (1 + tested)
        else:
            test = [Cell(p_value(difference["p_holm"]), verdict(difference))] if tested else []
            cells += [_difference(difference), *test]
    if AFTER in reached:
        found = result(row, AFTER, metric)
        gain = None if found is None else found.get("gain") or (found["to_start"] if row["kind"] == "start" else None)
        cells.append(NONE if gain is None else _difference(gain))
    return tuple(cells)


def _cell(found: Mapping[str, Any], metric: Metric, best: bool = False, beside: str = "") -> Cell:
    value = bounded(shown(found)[0], metric)
    parts = [interval(value.low, value.high), beside]
    return Cell(number(value.value), ", ".join(part for part in parts if part), best)


def _difference(difference: Mapping[str, Any]) -> Cell:
    value, _ = shown(difference)
    return Cell(signed(value.value), interval(value.low, value.high, show=signed))


def _coverage(summary: Mapping[str, Any], metric: Metric) -> str:
    """Return what the intervals of this metric are for."""
    found = [shown(one)[1] for stage in STAGES for _, one in with_results(summary, stage, metric, "method")]
    covered = [text for text in COVERAGE.values() if text in found]
    level = f"{summary.get('level', 0.95):.0%}"
    if not covered:
        return "No interval: one run, whose items were not kept."
    seeds = _seeds_of_all(summary)
    told = f"; {seeds} each" if seeds else ""
    return f"Small figures are {level} intervals for {' or '.join(covered)}{told}."


def _meaning(summary: Mapping[str, Any], metric: Metric) -> list[str]:
    """Return what the words beside the p-values say, where they need it."""
    found = [one["to_baseline"] for stage in STAGES for _, one in with_results(summary, stage, metric, "method")]
    words = {verdict(one) for one in found if one is not None} & {"on these items", "no spread"}
    return [f"“{word}”: {VERDICTS[word]}." for word in sorted(words)] if _tested(summary, metric) else []


def _interval_charts(summary: Mapping[str, Any], metric: Metric) -> list[IntervalChart]:
    entries = [(row, stage) for row in rows(summary) for stage in STAGES if result(row, stage, metric) is not None]
    drawn = [
        (row["label"], STAGES[stage], bounded(shown(found)[0], metric))
        for row, stage in entries
        if (found := result(row, stage, metric)) is not None
    ]
    if not drawn:
        return []
    starts = [value for label, stage, value in drawn if label == BASE and stage == STAGES[BEFORE]]
    kept = tuple(entry for entry in drawn if (entry[0], entry[1]) != (BASE, STAGES[BEFORE]))
    line = starts[0].value if starts else None
    charts = [IntervalChart(metric.title, f"{metric.name} {metric.arrow}", kept or tuple(drawn), line, "start")]
    differences = [
        (row["label"], STAGES[stage], shown(found["to_baseline"])[0])
        for row, stage in entries
        if (found := result(row, stage, metric)) is not None and found["to_baseline"] is not None
    ]
    if differences:
        name = f"difference to {summary['baseline']}"
        charts.append(IntervalChart(f"{metric.name}: {name}", name, tuple(differences), 0.0, summary["baseline"]))
    return charts


def everything(summary: Mapping[str, Any], deciding: Metric | None) -> Section | None:
    """Return a table of all other metrics for each stage, None where there is none."""
    others = [metric for metric in metrics(summary) if metric != deciding]
    if not others:
        return None
    tables = [_all_table(summary, stage, others) for stage in stages(summary) or [BEFORE]]
    return Section("metrics", "All other metrics", "↑ more is better, ↓ less is better.", tables=tuple(tables))


def _all_table(summary: Mapping[str, Any], stage: str, listed: list[Metric]) -> Table:
    best = {metric: {row["label"] for row, _ in ranked(summary, stage, metric)[:1]} for metric in listed if metric.sign}
    measured = [row for row in rows(summary) if stage in row["stages"] or row["kind"] == "start"]
    lines = []
    for row in measured:
        own = BEFORE if row["kind"] == "start" and stage not in row["stages"] else stage
        found = [result(row, own, metric) for metric in listed]
        marks = [row["label"] in best.get(metric, ()) for metric in listed]
        figures = [NONE if one is None else _cell(one, *of) for one, *of in zip(found, listed, marks, strict=True)]
        lines.append((Cell(row["label"]), *figures))
    heads = ("", *(f"{metric.title} {metric.arrow}".strip() for metric in listed))
    return Table(heads, tuple(lines), STAGES[stage])


def drift(summary: Mapping[str, Any], deciding: Metric) -> Section | None:
    """Return what each objective gained and how far it moved for it; None where no distance was measured."""
    known = metrics(summary)
    moved = next((metric for name in DRIFT for metric in known if metric.name == name), None)
    forgotten = next((metric for name in FORGOTTEN for metric in known if metric.name == name != deciding.name), None)
    gained = f"gain in {deciding.name} over the start"
    charts = []
    if moved is not None:
        title = "Gain against distance from the start"
        charts.append(_drift_chart(summary, deciding, moved, title, "KL to the start, nats per token", gained, False))
    if forgotten is not None:
        title = "Gain against forgetting"
        named = f"rise of {forgotten.name} on {forgotten.task}, nats per token"
        charts.append(_drift_chart(summary, deciding, forgotten, title, named, gained, True))
    drawn = tuple(chart for chart in charts if chart is not None)
    if not drawn:
        return None
    lead = "Up is better, left is closer to the start. Full marks after SFT, hollow ones after RL."
    return Section("drift", "Gain and drift", lead, charts=drawn, legend=True)


def _drift_chart(
    summary: Mapping[str, Any], deciding: Metric, other: Metric, title: str, x: str, y: str, relative: bool
) -> DotChart | None:
    """`relative` takes the difference to the start along x as well."""
    dots = []
    for row in rows(summary, "method"):
        for stage, name in STAGES.items():
            gain, cost = result(row, stage, deciding), result(row, stage, other)
            at = cost and (cost["to_start"] if relative else cost)
            if gain is not None and gain["to_start"] is not None and at is not None:
                place = shown(at)[0] if relative else bounded(shown(at)[0], other)
                dots.append(Dot(row["label"], name, place, _signed_gain(gain["to_start"], deciding)))
    return DotChart(title, x, y, tuple(dots), (0.0, 0.0)) if dots else None


def _signed_gain(difference: Mapping[str, Any], metric: Metric) -> Value:
    """Return the difference so that more is better."""
    value, _ = shown(difference)
    if metric.sign > 0:
        return value
    low, high = (None if bound is None else -bound for bound in (value.high, value.low))
    return Value(-value.value, low, high)


def sweep(summary: Mapping[str, Any]) -> Section | None:
    """Return the scores that chose the learning rates; None where every objective had one."""
    by, tuned = summary.get("choose_by"), [row for row in rows(summary) if row["tuning"]]
    if by is None or not tuned:
        return None
    places = tuple(sorted({tried["rate"] for row in tuned for tried in row["tuning"]}))
    heads = ("", *(rate(place) for place in places))
    lines = tuple((Cell(row["label"]), *(_tried(row, place) for place in places)) for row in tuned)
    curves = tuple(Line(row["label"], tuple(_scores(row))) for row in tuned)
    named = f"{by['metric']} on {by['task']}"
    seeds = ", ".join(str(seed) for seed in summary["seeds"]["tuning"])
    return Section(
        "rates",
        "Learning rates",
        f"Chosen by {named}, a task that is not reported, on seeds of their own ({seeds}).",
        tables=(Table(heads, lines, f"{named}; the rate taken is marked"),),
        charts=(
            LineChart(
                f"{by['metric']} on {by['task']} by learning rate", "learning rate", by["metric"], curves, places
            ),
        )
        if len(places) > 1
        else (),
        legend=True,
    )


def _tried(row: Row, place: float) -> Cell:
    tried = next((one for one in row["tuning"] if one["rate"] == place), None)
    if tried is None:
        return NONE
    if tried["score"]["value"] is None:
        return Cell("failed" if tried["failed"] else "–")
    return Cell(number(tried["score"]["value"]), "failed on a seed" if tried["failed"] else "", row["rate"] == place)


def _scores(row: Row) -> list[tuple[float, float | None]]:
    return [(tried["rate"], tried["score"]["value"]) for tried in sorted(row["tuning"], key=lambda one: one["rate"])]
