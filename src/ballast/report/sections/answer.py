"""The answer in three sentences: what is best after fine-tuning, what after RL, and what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ballast.records.folder import AFTER, BEFORE
from ballast.records.summary import Difference, Result, Summary
from ballast.report.charts.data import Section
from ballast.report.figures import (
    VERDICTS,
    Entry,
    Metric,
    base_result,
    best_of,
    clipped,
    difference_value,
    mean,
    metrics,
    ranked,
    rows,
    stages,
    verdict,
)
from ballast.report.source import Source
from ballast.report.text import ROUNDING, counted, figure, interval, joined, number, p_value, rate, signed

LEADS = {BEFORE: "After fine-tuning", AFTER: "After reinforcement learning"}
BASES = {BEFORE: "the base model", AFTER: "RL from the base model"}
NO_ANSWER = {
    BEFORE: "After fine-tuning, nothing has been measured yet.",
    AFTER: "Reinforcement learning was not run, so which objective is the best start for it is unknown.",
}
UNSURE = ("within noise", "across seeds only")
NAMED_GAPS = 5
NAMED_RUNS = 8


def answer(source: Source, metric: Metric | None) -> tuple[str, ...]:
    """Return three sentences; the figures are means over seeds with 95 % intervals."""
    return (*(_stage(source, stage, metric) for stage in (BEFORE, AFTER)), _not_measured(source))


def _stage(source: Source, stage: str, metric: Metric | None) -> str:
    order = ranked(source.summary, stage, metric) if metric is not None else []
    if metric is None or not order:
        return NO_ANSWER[stage]
    top, base_name = best_of(order), BASES[stage]
    base = base_result(source.summary, stage, metric)
    all_to_base = source.against_base(stage, metric.task, metric.name)
    to_base = [all_to_base[row.label] for row, _ in top if row.label in all_to_base]
    to_baseline = _against_baseline(source.summary, order, top, metric)
    if base is not None and metric.sign * (mean(base) - mean(top[0][1])) > ROUNDING:
        return f"{LEADS[stage]}, {_both(_base_ahead(base_name, base, to_base, top, metric), to_baseline)}."
    base_figure = "" if base is None else f"{base_name.removeprefix('the ')}: {figure(mean(base), share=metric.share)}"
    unsure = any(verdict(difference) in UNSURE for difference in to_base)
    compared = _both(to_baseline, _compared(top, to_base, metric, base_name) if unsure else "")
    compared = f", {compared}" if compared else ""
    if len(order) == 1:
        reached = f"{_labels(top)} reaches {_best_figure(top, metric, base_figure)} in {metric.phrase}{compared}"
        return f"{LEADS[stage]}, {reached}; there is no other objective to compare it with."
    best = "has the best" if len(top) == 1 else "share the best"
    reached = f"{metric.phrase} with {_best_figure(top, metric, base_figure)}{compared}"
    return f"{LEADS[stage]}, {_labels(top)} {best} {reached}."


def _both(first: str, second: str) -> str:
    """Return two comparisons as one; that there is one seed is said once."""
    untested = f": {VERDICTS['one seed']}"
    if first.endswith(untested) and second.endswith(untested):
        first = first.removesuffix(untested)
    return ", and ".join(part for part in (first, second) if part)


def _labels(entries: Sequence[Entry]) -> str:
    return joined([row.label for row, _ in entries])


def _best_figure(top: Sequence[Entry], metric: Metric, *beside: str) -> str:
    """Return the best mean, with its interval where one objective has it alone."""
    if len(top) > 1:
        return f"{figure(mean(top[0][1]), share=metric.share)} each{_bracket(*beside)}"
    return _with_interval(top[0][1], metric, *beside)


def _with_interval(result: Result, metric: Metric, *beside: str) -> str:
    value = clipped(result, metric)
    span = interval(value.low, value.high, show=lambda bound: figure(bound, share=metric.share))
    return f"{figure(value.value, share=metric.share)}{_bracket(span, *beside)}"


def _base_ahead(name: str, base: Result, to_base: Sequence[Difference], top: Sequence[Entry], metric: Metric) -> str:
    """Say that training did not pay: the base model is better than the best that came of it."""
    verb = "comes" if len(top) == 1 else "come"
    behind = _compared(top, to_base, metric)
    return (
        f"no objective beats {name}, which reaches {_with_interval(base, metric)} in {metric.phrase}; "
        f"{_labels(top)} {verb} next with {_best_figure(top, metric)}{f', {behind}' if behind else ''}"
    )


def _compared(top: Sequence[Entry], differences: Sequence[Difference], metric: Metric, than: str = "") -> str:
    """Return how the best differ from something, and what the tests say; nothing where one has no difference."""
    if len(differences) < len(top):
        return ""
    than = f" than {than}" if than else ""
    if len(top) == 1:
        return f"{_difference(differences[0], metric)}{than}{_tested(differences[0])}"
    verdicts = {row.label: VERDICTS[verdict(one)] for (row, _), one in zip(top, differences, strict=True)}
    alike = len(set(verdicts.values())) == 1
    each = next(iter(verdicts.values())) if alike else "; ".join(f"{label} {text}" for label, text in verdicts.items())
    size, direction = _size(differences[0])
    return f"{f'{size} {direction}' if size else 'no better'}{than}: {each}"


def _against_baseline(summary: Summary, order: Sequence[Entry], top: Sequence[Entry], metric: Metric) -> str:
    """Return how the best differ from the baseline; where the baseline is best, how it differs from the next."""
    baseline, others = summary.baseline, order[len(top) :]
    labels = [row.label for row, _ in top]
    differences = [result.to_baseline for _, result in top if result.to_baseline is not None]
    if labels == [baseline] and others and (to_baseline := others[0][1].to_baseline) is not None:
        against = _difference(to_baseline, metric, turned=True)
        return f"{against} than the runner-up {others[0][0].label}{_tested(to_baseline)}"
    if baseline in labels or len(order) == 1:
        return ""
    if len(differences) < len(top):
        measured = any(row.label == baseline for row, _ in order)
        why = f"no seed is shared with {baseline}" if measured else f"{baseline} was not measured"
        ahead = (
            f"ahead of {others[0][0].label} with {figure(mean(others[0][1]), share=metric.share)}; " if others else ""
        )
        return f"{ahead}{why}, so there is no difference to test"
    return _compared(top, differences, metric, baseline)


def _size(difference: Difference, *, turned: bool = False) -> tuple[str, str]:
    value = mean(difference)
    return ("", "") if abs(value) < ROUNDING else (number(abs(value)), "higher" if (value > 0) != turned else "lower")


def _difference(difference: Difference, metric: Metric, *, turned: bool = False) -> str:
    """Return ``0.036 (0.010 to 0.062) higher``; `turned` where it was taken the other way round."""
    value = difference_value(difference, metric)
    size, direction = _size(difference, turned=turned)
    if not size:
        return "no better"
    low, high = value.low, value.high
    if value.value < 0:
        low, high = (None if bound is None else -bound for bound in (high, low))
    return f"{size}{_bracket(interval(low, high, show=signed if low is not None and low < 0 else number))} {direction}"


def _tested(difference: Difference) -> str:
    seeds, p = len(difference.seeds), difference.p_holm
    if p is None and seeds < 2:
        return f": {VERDICTS[verdict(difference)]}"
    tested = "" if p is None else f", Holm-adjusted p {'' if p < 0.001 else '= '}{p_value(p)}"
    return f" over {counted(seeds, 'seed')}{tested}: {VERDICTS[verdict(difference)]}"


def _bracket(*parts: str) -> str:
    text = "; ".join(part for part in parts if part)
    return f" ({text})" if text else ""


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
    without = [row.label for row in rows(source.summary, "method") if AFTER not in row.stages]
    if without:
        yield Gap(f"{joined(without)} after RL", f"No reinforcement learning followed {joined(without)}.")


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
    if not any(row.tuning for row in methods):
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


FINDERS: tuple[Callable[[Source], Iterator[Gap]], ...] = (_missing, _stages, _seeds, _base, _rates, _abilities, _scope)
