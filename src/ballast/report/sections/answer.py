"""The answer in three sentences: what is best after fine-tuning, what after RL, and what nobody measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ballast.records.runs import AFTER, BEFORE
from ballast.report.figures import VERDICTS, Metric, Row, apart, best_of, bounded, ranked, shown, verdict
from ballast.report.gaps import gaps
from ballast.report.pairs import against_start, start_result
from ballast.report.source import Source
from ballast.report.text import ROUNDING, counted, figure, interval, joined, number, p_value, signed

LEADS = {BEFORE: "After fine-tuning", AFTER: "After reinforcement learning"}
STARTS = {BEFORE: "the start", AFTER: "RL from the start itself"}
NOTHING = {
    BEFORE: "After fine-tuning nothing has been measured yet, so there is no answer.",
    AFTER: "Reinforcement learning was not run, so which objective leaves the best start for it is not known.",
}

MENTIONED = 5
UNSURE = ("within noise", "on these items")

Found = Mapping[str, Any]
Pairs = Sequence[tuple[Row, Any]]


def answer(source: Source, metric: Metric | None) -> tuple[str, ...]:
    """Return three sentences; the figures are means over seeds with 95 % intervals."""
    return (*(_stage(source, stage, metric) for stage in (BEFORE, AFTER)), _unmeasured(source))


def _stage(source: Source, stage: str, metric: Metric | None) -> str:
    order = ranked(source.summary, stage, metric) if metric is not None else []
    if metric is None or not order:
        return NOTHING[stage]
    top, name = best_of(order), STARTS[stage]
    start = start_result(source, stage, metric)
    behind = against_start(source, stage, metric)
    to_start = [behind[row["label"]] for row, _ in top if row["label"] in behind]
    against = _against_baseline(source.summary, order, top, metric)
    if start is not None and metric.sign * (_mean(start) - _mean(top[0][1])) > ROUNDING:
        return f"{LEADS[stage]}, {_both(_start_ahead(name, start, to_start, top, metric), against)}."
    known = "" if start is None else f"{name}: {figure(_mean(start), share=metric.share)}"
    unsure = any(verdict(one) in UNSURE for one in to_start)
    beside = _compared(top, to_start, metric, name) if unsure else ""
    together = _both(against, beside)
    compared = f", {together}" if together else ""
    if len(order) == 1:
        alone = "there is no other objective here to compare it with"
        reached = f"{_labels(top)} reaches {_figure(top, metric, known)} in {metric.where}{compared}"
        return f"{LEADS[stage]}, {reached}; {alone}."
    verb = "is" if len(top) == 1 else "are"
    return f"{LEADS[stage]}, {_labels(top)} {verb} best by {metric.where} with {_figure(top, metric, known)}{compared}."


def _both(first: str, second: str) -> str:
    """Return two comparisons as one, with what the tests of both say said once."""
    untested = f": {VERDICTS['untested']}"
    if first.endswith(untested) and second.endswith(untested):
        first = first.removesuffix(untested)
    return ", and ".join(part for part in (first, second) if part)


def _mean(found: Found) -> float:
    return float(found["over_seeds"]["value"])


def _labels(pairs: Pairs) -> str:
    return joined([str(row["label"]) for row, _ in pairs])


def _figure(top: Pairs, metric: Metric, *beside: str) -> str:
    """Return the best mean, with its interval where one objective has it alone."""
    if len(top) > 1:
        return f"{figure(_mean(top[0][1]), share=metric.share)} each{_bracket(*beside)}"
    return _spanned(top[0][1], metric, *beside)


def _spanned(found: Found, metric: Metric, *beside: str) -> str:
    """Return a mean, with its interval and what else belongs beside it in brackets."""
    value = bounded(shown(found)[0], metric)
    span = interval(value.low, value.high, show=lambda bound: figure(bound, share=metric.share))
    return f"{figure(value.value, share=metric.share)}{_bracket(span, *beside)}"


def _start_ahead(name: str, start: Found, to_start: Sequence[Found], top: Pairs, metric: Metric) -> str:
    """Say that training did not pay: the start is better than the best that came of it."""
    verb = "comes" if len(top) == 1 else "come"
    behind = _compared(top, to_start, metric)
    return (
        f"no objective is ahead of {name}, which reaches {_spanned(start, metric)} in {metric.where}; "
        f"{_labels(top)} {verb} next with {_figure(top, metric)}{f', {behind}' if behind else ''}"
    )


def _compared(top: Pairs, differences: Sequence[Found], metric: Metric, than: str = "") -> str:
    """Return how the best differ from something, and what the tests say; nothing where one has no difference."""
    if len(differences) < len(top):
        return ""
    against = f" than {than}" if than else ""
    if len(top) == 1:
        return f"{_difference(differences[0], metric)}{against}{_tested(differences[0])}"
    told = {row["label"]: VERDICTS[verdict(one)] for (row, _), one in zip(top, differences, strict=True)}
    alike = len(set(told.values())) == 1
    each = next(iter(told.values())) if alike else "; ".join(f"{name} {text}" for name, text in told.items())
    size, way = _size(differences[0])
    return f"{f'{size} {way}' if size else 'no better'}{against}: {each}"


def _against_baseline(summary: Mapping[str, Any], order: Pairs, top: Pairs, metric: Metric) -> str:
    """Return how the best differ from the baseline; where the baseline is best, how it differs from the next."""
    baseline, others = summary["baseline"], order[len(top) :]
    names = [row["label"] for row, _ in top]
    differences = [found["to_baseline"] for _, found in top if found["to_baseline"] is not None]
    if names == [baseline] and others and others[0][1]["to_baseline"] is not None:
        row, second = others[0]
        against = _difference(second["to_baseline"], metric, turned=True)
        return f"{against} than the next, {row['label']}{_tested(second['to_baseline'])}"
    if baseline in names or len(order) == 1:
        return ""
    if len(differences) < len(top):
        there = any(row["label"] == baseline for row, _ in order)
        why = f"no seed is shared with {baseline}" if there else f"{baseline} was not measured"
        following = (
            f"before {others[0][0]['label']} with {figure(_mean(others[0][1]), share=metric.share)}; " if others else ""
        )
        return f"{following}{why}, so no difference to it is tested"
    return _compared(top, differences, metric, baseline)


def _size(difference: Found, *, turned: bool = False) -> tuple[str, str]:
    value = shown(difference)[0].value
    return ("", "") if abs(value) < ROUNDING else (number(abs(value)), "higher" if (value > 0) != turned else "lower")


def _difference(difference: Found, metric: Metric, *, turned: bool = False) -> str:
    """Return ``0.036 (0.010 to 0.062) higher``; `turned` where it was taken the other way round."""
    value = apart(difference, metric)
    size, way = _size(difference, turned=turned)
    if not size:
        return "no better"
    low, high = value.low, value.high
    if value.value < 0:
        low, high = (None if bound is None else -bound for bound in (high, low))
    return f"{size}{_bracket(interval(low, high, show=signed if low is not None and low < 0 else number))} {way}"


def _tested(difference: Found) -> str:
    seeds, p = len(difference["seeds"]), difference.get("p_holm")
    if p is None and seeds < 2:
        return f": {VERDICTS[verdict(difference)]}"
    tested = "" if p is None else f", Holm-adjusted p {'' if p < 0.001 else '= '}{p_value(p)}"
    return f" over {counted(seeds, 'seed')}{tested}: {VERDICTS[verdict(difference)]}"


def _bracket(*parts: str) -> str:
    told = "; ".join(part for part in parts if part)
    return f" ({told})" if told else ""


def _unmeasured(source: Source) -> str:
    short = [gap.short for gap in gaps(source) if gap.short]
    named, more = short[:MENTIONED], len(short) > MENTIONED
    return f"Not measured: {joined(named)}{'; more below' if more else ''}."
