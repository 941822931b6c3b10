"""A verdict in words: first what to do, then the figures behind it; the same in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterator

from ballast.compare.figures import SIGNS, VERDICTS, WITHIN, Metric, clipped, difference_value, verdict
from ballast.compare.numbers import ROUNDING, counted, figure, interval, joined, number, p_value, signed
from ballast.compare.statistics import POWER, seeds_needed
from ballast.progress import duration
from ballast.records.folder import AFTER, BASE, BEFORE
from ballast.records.summary import Difference, Row, Summary, Verdict

LEADS = {BEFORE: "After fine-tuning", AFTER: "After reinforcement learning"}
BASES = {BEFORE: "the base model", AFTER: "RL from the base model"}
NO_ANSWER = {
    BEFORE: "After fine-tuning, nothing has been measured yet.",
    AFTER: "Reinforcement learning was not run, so which objective is the best start for it is unknown.",
}


def sentences(found: Verdict, summary: Summary) -> str:
    """Return what to do after a stage, what the rows that this names reached, and what limits it."""
    if found.kind == "none":
        return NO_ANSWER[found.stage]
    metric = metric_of(found)
    limits = "; ".join(found.cautions)
    parts = [
        f"{LEADS[found.stage]}, {_decision(found, metric)}.",
        _more_seeds(found, summary),
        f"Means: {reached}." if (reached := _reached(found, summary, metric)) else "",
        f"But note: {limits}." if limits else "",
    ]
    return " ".join(part for part in parts if part)


def metric_of(found: Verdict) -> Metric:
    """Return the metric that a verdict is about."""
    return Metric(found.task, found.metric, SIGNS[found.better])


def _decision(found: Verdict, metric: Metric) -> str:
    against = BASES[found.stage] if found.against == BASE else found.against
    if found.kind == "open":
        return f"nothing can be concluded from {metric.phrase}: {'; '.join(found.reasons)}"
    if found.kind == "use":
        return f"use {found.winner}: {_over(found.difference, against, metric)}{_lead(found, metric)}"
    if found.kind == "base":
        advice = "keep the base model" if found.stage == BEFORE else "leave fine-tuning out"
        closest = _apart(found.runner_up, found.difference, metric)
        return f"{advice}: no objective beats {against} in {metric.phrase}. The best of them, {closest}"
    if found.winner is None:
        apart = _apart(found.runner_up, found.difference, metric)
        return f"nothing shows that fine-tuning pays in {metric.phrase}: against {against}, {apart}"
    verb = "differs from" if found.kind == "same" else "is better than"
    others = _apart(found.runner_up, found.difference, metric)
    return f"no objective {verb} {against} in {metric.phrase}: use {found.winner}. The best of the others, {others}"


def _more_seeds(found: Verdict, summary: Summary) -> str:
    """Say what it would take to tell the best of the others from what it is compared with."""
    difference = found.difference
    if found.kind not in ("same", "baseline") or difference is None or verdict(difference) != WITHIN:
        return ""
    needed, there = seeds_needed(difference.values), len(difference.values)
    if needed is None:
        return "A thousand seeds would not show a difference of this size."
    if needed <= there:
        return ""
    more = needed - there
    rows = [row for row in summary.rows if row.label in (found.runner_up, found.against)]
    seconds = sum(_mean_seconds(row, found.stage) for row in rows) * more
    cost = f", about {duration(seconds)} of training" if seconds else ""
    return (
        f"If the difference is what was seen, {counted(needed, 'seed')} would show it with a chance of {POWER:.0%}: "
        f"{more} more{cost}."
    )


def _mean_seconds(row: Row, stage: str) -> float:
    known = [one for one in row.stages[stage].budget.seconds if one is not None] if stage in row.stages else []
    return sum(known) / len(known) if known else 0.0


def _over(difference: Difference | None, against: str, metric: Metric) -> str:
    less = ", where less is better" if metric.sign < 0 else ""
    return f"{_figure(difference, metric)} {metric.phrase} over {against}{less}, {_seeds(difference)}"


def _lead(found: Verdict, metric: Metric) -> str:
    if found.runner_up is None:
        return ""
    if found.lead is None:
        return f"; {found.runner_up} is the runner-up"
    return f"; over the runner-up {found.runner_up} {_figure(found.lead, metric)}: {_tested(found.lead)}"


def _apart(label: str | None, difference: Difference | None, metric: Metric) -> str:
    if difference is None:
        return f"{label}, shares no seed with it"
    if not any(abs(value) > ROUNDING for value in difference.values):
        return f"{label}, is equal to it on each of {_seeds(difference)}"
    return f"{label}, differs by {_figure(difference, metric)} over {_seeds(difference)}: {_tested(difference)}"


def _tested(difference: Difference) -> str:
    p = difference.p_holm
    text = "" if p is None else f" (adjusted p {'' if p < 0.001 else '= '}{p_value(p)})"
    return f"{VERDICTS[verdict(difference)]}{text}"


def _seeds(difference: Difference | None) -> str:
    return counted(0 if difference is None else len(difference.seeds), "seed")


def _figure(difference: Difference | None, metric: Metric) -> str:
    if difference is None:
        return "–"
    value = difference_value(difference, metric)
    sign = value.low is None or value.low < 0
    span = interval(value.low, value.high, show=lambda bound: _difference(bound, metric, sign=sign))
    return f"{_difference(value.value, metric)}{f' ({span})' if span else ''}"


def _difference(value: float, metric: Metric, *, sign: bool = True) -> str:
    text = signed(value, share=metric.share)
    return text if sign else text.removeprefix("+")


def _reached(found: Verdict, summary: Summary, metric: Metric) -> str:
    """Say what the rows reached that a verdict names, in the order of the table."""
    named = dict.fromkeys(label for label in (found.winner, found.against, found.runner_up, BASE) if label)
    if found.kind == "open":
        named = dict.fromkeys(row.label for row in summary.rows if row.kind != "random")
    known = {row.label: row for row in summary.rows}
    parts = [_row(known[label], found.stage, metric) for label in named if label in known]
    return ", ".join(part for part in parts if part)


def _row(row: Row, stage: str, metric: Metric) -> str:
    result = row.result(stage, metric.task, metric.name)
    if result is None:
        return ""
    value = clipped(result, metric)
    span = interval(value.low, value.high, show=lambda bound: figure(bound, share=metric.share))
    name = BASES[stage].removeprefix("the ") if row.label == BASE else row.label
    return f"{name} {figure(value.value, share=metric.share)}{f' ({span})' if span else ''}"


def cautions(summary: Summary) -> Iterator[str]:
    """Yield what makes runs hard to compare, and what they warn of: one line each."""
    yield from _made_with(summary)
    yield from _budgets(summary)
    for row in summary.rows:
        scores = {one.score.value for one in row.tuning}
        if len(scores) == 1 and None not in scores and len(row.tuning) > 1:
            [score] = scores
            yield (
                f"{row.label}: every learning rate scored {number(score)}, so the smallest was taken; which is best is "
                "not known."
            )
    warned: dict[str, list[str]] = {}
    for one in summary.warnings:
        warned.setdefault(one.warning, []).append(one.run)
    for warning, runs in warned.items():
        more = f" and {len(runs) - 2} more" if len(runs) > 2 else ""
        yield f"{', '.join(runs[:2])}{more}: {warning}"
    for failed in summary.unplanned[:1]:
        yield (
            f"{counted(len(summary.unplanned), 'run')} that the recipe no longer has broke off ({failed.run}, …); "
            "remove the folders to be rid of this line."
        )


def _made_with(summary: Summary) -> Iterator[str]:
    versions = summary.provenance.versions
    packages = dict.fromkeys(name for one in versions for name in one)
    differing = {name: dict.fromkeys(one.get(name, "none") for one in versions) for name in packages}
    named = [f"{name} {', '.join(found)}" for name, found in differing.items() if len(found) > 1]
    if named:
        yield f"The runs were made with different versions: {'; '.join(named)}; a difference may be due to them."
    kinds = dict.fromkeys(device.partition(":")[0] for device in summary.provenance.devices)
    if len(kinds) > 1:
        yield f"The runs were made on different devices ({', '.join(kinds)}); a difference may be due to them."


def _budgets(summary: Summary) -> Iterator[str]:
    """Name methods that trained for more or fewer steps than the baseline."""
    for stage, lead in LEADS.items():
        steps = {row.label: _steps(row, stage) for row in summary.rows if row.kind == "method"}
        own = steps.get(summary.baseline)
        others = {label: one for label, one in steps.items() if one is not None and own is not None and one != own}
        if others:
            named = joined([f"{label} {one:,.0f}" for label, one in others.items()])
            yield f"{lead}, steps differ: {summary.baseline} {own:,.0f}, {named}."


def _steps(row: Row, stage: str) -> float | None:
    known = [one for one in row.stages[stage].budget.steps if one is not None] if stage in row.stages else []
    return sum(known) / len(known) if known else None
