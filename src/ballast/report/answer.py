"""The answer in three sentences: what is best after fine-tuning, what after RL, and what nobody measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ballast.compare.read import AFTER, BEFORE
from ballast.report.figures import VERDICTS, Metric, Row, bounded, ranked, result, rows, shown, verdict
from ballast.report.gaps import gaps
from ballast.report.source import Source
from ballast.report.text import counted, interval, joined, number, p_value, signed

LEADS = {BEFORE: "After fine-tuning", AFTER: "After reinforcement learning"}
NOTHING = {
    BEFORE: "After fine-tuning nothing has been measured yet, so there is no answer.",
    AFTER: "Reinforcement learning was not run, so which objective leaves the best start for it is not known.",
}

MENTIONED = 5


def answer(source: Source, metric: Metric | None) -> tuple[str, ...]:
    """Return three sentences; the figures are means over seeds with 95 % intervals."""
    return (*(_stage(source.summary, stage, metric) for stage in (BEFORE, AFTER)), _unmeasured(source))


def _stage(summary: Mapping[str, Any], stage: str, metric: Metric | None) -> str:
    order = ranked(summary, stage, metric) if metric is not None else []
    if metric is None or not order:
        return NOTHING[stage]
    (best, found), others = order[0], order[1:]
    value = bounded(shown(found)[0], metric)
    head = f"{LEADS[stage]}, {best['label']} "
    beside = [interval(value.low, value.high), _start(summary, metric)]
    figure = f"{number(value.value)}{_bracket('; '.join(part for part in beside if part))}"
    where = f"{metric.name} on {metric.task}"
    if not others:
        return f"{head}reaches {figure} in {where}; there is no other objective here to compare it with."
    comparison = _comparison(summary, best, found, others)
    return f"{head}is best by {where} with {figure}, {comparison}."


def _start(summary: Mapping[str, Any], metric: Metric) -> str:
    start = next(iter(rows(summary, "start")), None)
    found = None if start is None else result(start, BEFORE, metric)
    return "" if found is None else f"the start: {number(found['over_seeds']['value'])}"


def _comparison(summary: Mapping[str, Any], best: Row, found: Mapping[str, Any], others: list[tuple[Row, Any]]) -> str:
    if found["to_baseline"] is not None:
        return f"{_difference(found['to_baseline'])} than {summary['baseline']}{_tested(found['to_baseline'])}"
    row, second = others[0]
    if best["label"] == summary["baseline"] and second["to_baseline"] is not None:
        against = _difference(second["to_baseline"], turned=True)
        return f"{against} than the next, {row['label']}{_tested(second['to_baseline'])}"
    next_best = number(second["over_seeds"]["value"])
    return f"before {row['label']} with {next_best}; the two share no seed, so nothing is tested"


def _difference(difference: Mapping[str, Any], *, turned: bool = False) -> str:
    """Return ``0.036 (0.010 to 0.062) higher``; `turned` where it was taken the other way round."""
    value, _ = shown(difference)
    if value.value == 0:
        return "no better"
    higher = (value.value > 0) != turned
    low, high = value.low, value.high
    if value.value < 0:
        low, high = (None if bound is None else -bound for bound in (high, low))
    span = interval(low, high, show=signed if low is not None and low < 0 else number)
    return f"{number(abs(value.value))}{_bracket(span)} {'higher' if higher else 'lower'}"


def _tested(difference: Mapping[str, Any]) -> str:
    seeds, p = len(difference["seeds"]), difference.get("p_holm")
    if p is None and seeds < 2:
        return f": {VERDICTS[verdict(difference)]}"
    tested = "" if p is None else f", Holm-adjusted p {'' if p < 0.001 else '= '}{p_value(p)}"
    return f" over {counted(seeds, 'seed')}{tested}: {VERDICTS[verdict(difference)]}"


def _bracket(text: str) -> str:
    return f" ({text})" if text else ""


def _unmeasured(source: Source) -> str:
    short = [gap.short for gap in gaps(source) if gap.short]
    named, more = short[:MENTIONED], len(short) > MENTIONED
    return f"Not measured: {joined(named)}{'; more below' if more else ''}."
