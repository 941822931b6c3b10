"""A summary as tables, for a terminal and in Markdown: every mean with its interval and its number of seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ballast.compare.figures import (
    COVERAGE,
    SIGNS,
    STAGES,
    Metric,
    Value,
    clipped,
    difference_value,
    interval_of,
)
from ballast.compare.numbers import counted, half_or_bounds, percentage
from ballast.compare.sentences import cautions, sentences
from ballast.protocols import Say
from ballast.records.folder import AFTER
from ballast.records.summary import Difference, Result, Row, Summary

Form = Callable[[Value, str], str]
"""Writes a figure with its interval, with the sign format of its value."""

REPEATS = ("perplexity", "bits_per_character", "answer_tokens", "chance")
"""Metrics that tables leave out: they repeat another one, or do not say how good a model is."""
NARROW, WIDE = 8, 18
"""Characters of a label up to which columns stand apart by two spaces, and up to which it is shown in full."""
MARKS = {**dict(zip(COVERAGE, ("", "s", "i"), strict=True)), "": ""}
"""What stands behind a figure whose interval covers less than seeds and items."""
DETAILS = ("mean@", "distinct@", "demonstrations_")
"""Prefixes of metrics that a terminal leaves out where the task has more telling ones."""

LEGEND = (
    "Intervals: 95 %, the widest that the records allow: over seeds and items; s: over seeds; i: over items.",
    "Δ: difference to {baseline} on the same seeds and items. p: two-sided paired t test, Holm's adjustment over rows.",
)
CHOSEN_BY = "Learning rates were chosen by {task} {metric} on {seeds} other seeds and on items that are not reported."


@dataclass(frozen=True)
class Sheet:
    """One metric: a row per method, the cells as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def sheets(summary: Summary, *, short: bool = False) -> Iterator[Sheet]:
    """Yield a table for every reported task and metric; ``short`` writes ± where an interval is symmetric."""
    text = _half if short else _bounds
    after = any(AFTER in row.stages for row in summary.rows)
    for task in summary.tasks:
        for metric, about in task.metrics.items():
            if metric in REPEATS or (short and "pass@1" in task.metrics and metric.startswith(DETAILS)):
                continue
            better = f", {about.better} is better" if about.better else ""
            columns = ("", "rate", "seeds", "after SFT", "Δ", "p")
            measured = Metric(task.name, metric, SIGNS[about.better])
            rows = [_row(row, measured, after, text) for row in summary.rows if row.stages or row.left]
            yield Sheet(
                f"{task.name}: {metric} ({task.n} items{better})",
                (*columns, *(("after RL", "Δ", "p", "gain") if after else ())),
                tuple(rows),
                tuple(answers_notes(summary, task.name)) if measured.share and measured.sign else (),
            )


def show(summary: Summary, *, say: Say) -> None:
    """Print the tables and how to read them."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    # On 80 columns the interval goes below its mean, and no number is broken.
    narrow = max(len(row.label) for row in summary.rows) <= NARROW
    for sheet in sheets(summary, short=True):
        title, padding = Text(sheet.title), (0, 1 if narrow else 0)
        view = Table(
            title=title, title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True, padding=padding
        )
        view.add_column(max_width=WIDE, no_wrap=True)
        for column, *cells in list(zip(sheet.columns, *sheet.rows, strict=True))[1:]:
            view.add_column(
                Text(column), min_width=max(len(word) for cell in (column, *cells) for word in cell.split())
            )
        for row in sheet.rows:
            view.add_row(*(Text(cell) for cell in row))
        say(view)
        for line in sheet.notes:
            say(Text(line))
    for line in (*notes(summary), *verdict_lines(summary)):
        say(Text(line))


def markdown(summary: Summary) -> str:
    """Return the tables and how to read them as Markdown."""
    parts = []
    for sheet in sheets(summary):
        lines = [_pipes(sheet.columns), _pipes(["---"] * len(sheet.columns)), *map(_pipes, sheet.rows)]
        parts.append("\n\n".join([f"**{_plain(sheet.title)}**", "\n".join(lines), *map(_plain, sheet.notes)]))
    said = [*parts, "\n".join(f"- {_plain(line)}" for line in notes(summary)), *map(_plain, verdict_lines(summary))]
    return "\n\n".join(said) + "\n"


def verdict_lines(summary: Summary) -> list[str]:
    """Return what to do after each stage, the stages that nobody ran left out."""
    return [sentences(one, summary) for one in summary.verdicts if one.kind != "none"]


def answers_notes(summary: Summary, task: str) -> Iterator[str]:
    """Yield for each stage how many answers ended and which rows have none right, where they were counted."""
    for stage, name in STAGES.items():
        found = {row.label: one for row in summary.rows if (one := row.answers(stage, task)) is not None}
        cut = {label: one for label, one in found.items() if one.cut_off and one.total}
        if cut:
            named = ", ".join(f"{label} {percentage(one.cut_off / one.total)}" for label, one in cut.items())
            rest = " (all other answers ended)" if len(cut) < len(found) else ""
            yield f"cut off before they ended, {name}: {named} of the answers{rest}"
        elif found:
            yield f"all answers ended, {name}"
        none = [f"{label}: 0 of {one.total:,} right" for label, one in found.items() if one.right == 0]
        if none:
            yield f"{name}, {', '.join(none)}"


def notes(summary: Summary) -> list[str]:
    """Return what a reader must know of the tables: intervals, how rates were chosen, what is missing."""
    lines = [line.format(baseline=summary.baseline) for line in LEGEND]
    by = summary.choose_by
    if by is not None:
        lines.append(CHOSEN_BY.format(task=by.task, metric=by.metric, seeds=len(summary.seeds.tuning)))
    lines += halving_notes(summary)
    for row in summary.rows:
        if row.edge is not None:
            beyond = "larger" if row.edge == "highest" else "smaller"
            lines.append(f"{row.label}: the {row.edge} rate of the sweep was best; a {beyond} one may be better.")
    lines += [f"failed: {one.run}: {one.error}" for one in summary.failed]
    lines += cautions(summary)
    if summary.missing:
        some = ", ".join(summary.missing[:3]) + (", …" if len(summary.missing) > 3 else "")
        lines.append(f"Not done yet: {len(summary.missing)} runs ({some}); the figures are of the others.")
    return lines


def halving_notes(summary: Summary) -> Iterator[str]:
    """Yield what a halving saved, and who left when."""
    found = summary.halving
    if found is None:
        return
    rungs = ", ".join(f"{counted(one.pairs, 'pair')} for {counted(one.steps, 'step')}" for one in found.rungs)
    if found.runs is not None and found.steps is not None:
        share = found.steps / found.full_steps
        yield (
            f"Halving: {rungs}, each a whole run; {found.runs:,} runs of {found.steps:,} steps in all, where the full "
            f"sweep has {found.full_runs:,} of {found.full_steps:,} ({share:.0%})."
        )
    for row in summary.rows:
        if row.left is not None:
            score = "its runs broke off" if row.left.score is None else f"{row.left.score:.3f} at {row.left.rate:g}"
            steps = counted(row.left.steps, "step")
            yield f"{row.label}: left after runs of {steps} ({score}); nothing is claimed of it."


def _row(row: Row, metric: Metric, after: bool, text: Form) -> tuple[str, ...]:
    if row.left is not None:
        return (row.label, f"{row.left.rate:g}", "", "left", *[""] * (6 if after else 2))
    results = [
        row.stages[name].tasks.get(metric.task, {}).get(metric.name) if name in row.stages else None for name in STAGES
    ]
    seeds = str(max(len(stage.seeds) for stage in row.stages.values()))
    first = (row.label, "" if row.rate is None else f"{row.rate:g}", "" if row.kind == "start" else seeds)
    cells = [*first, *_result(results[0], metric, text)]
    if after:
        gain = None if results[1] is None else results[1].gain
        cells += [*_result(results[1], metric, text), _difference(gain, metric, text)]
    return tuple(cells)


def _result(result: Result | None, metric: Metric, text: Form) -> tuple[str, str, str]:
    if result is None:
        return "–", "", ""
    difference = result.to_baseline
    p = None if difference is None else difference.p_holm
    value = "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}"
    own = "–" if result.over_seeds.value is None else _marked(result, text(clipped(result, metric), ""))
    return own, _difference(difference, metric, text), value


def _difference(difference: Difference | None, metric: Metric, text: Form) -> str:
    if difference is None or difference.over_seeds.value is None:
        return ""
    return _marked(difference, text(difference_value(difference, metric), "+"))


def _marked(estimates: Result | Difference, text: str) -> str:
    """Return a figure with the mark of what its interval covers."""
    return f"{text} {mark}" if (mark := MARKS[interval_of(estimates)[1]]) else text


def _bounds(value: Value, sign: str) -> str:
    interval = "[no interval]" if value.low is None else f"[{value.low:.3f}, {value.high:.3f}]"
    return f"{value.value:{sign}.3f} {interval}"


def _half(value: Value, sign: str) -> str:
    """Return a figure with ± half its interval, or with both bounds where it is not in their middle."""
    if value.low is None or value.high is None:
        return f"{value.value:{sign}.3f}"
    return f"{value.value:{sign}.3f} {half_or_bounds(value.value, value.low, value.high, sign=sign, spaced=True)}"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Return text with Markdown's signs escaped: names are the user's."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}<>#|" else sign for sign in " ".join(text.split()))
