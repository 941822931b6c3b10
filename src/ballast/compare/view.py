"""A summary as tables, for a terminal and in Markdown: every mean with its interval and its number of seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ballast.protocols import Say
from ballast.records.folder import AFTER, BEFORE
from ballast.records.schema import Estimate
from ballast.records.summary import Difference, Result, Row, Summary

Form = Callable[[Estimate, str], str]
"""Writes an estimate, with the sign format of its value."""

STAGES = (BEFORE, AFTER)
REPEATS = ("perplexity", "bits_per_character", "answer_tokens", "chance")
"""Metrics that tables leave out: they repeat another one, or do not say how good a model is."""
NARROW, WIDE = 8, 18
"""Characters of a label up to which columns stand apart by two spaces, and up to which it is shown in full."""
DETAILS = ("mean@", "distinct@", "demonstrations_")
"""Prefixes of metrics that a terminal leaves out where the task has more telling ones."""

LEGEND = (
    "Intervals: 95 %, Student's t over seeds, on these items; i: over items, where there is one run or all are alike.",
    "Δ: difference to {baseline} on the same seeds and items. p: two-sided paired t test, Holm's adjustment over rows.",
)
CHOSEN_BY = "Learning rates were chosen by {task} {metric} on {seeds} other seeds and on items that are not reported."


@dataclass(frozen=True)
class Sheet:
    """One metric: a row per method, the cells as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(summary: Summary, *, short: bool = False) -> Iterator[Sheet]:
    """Yield a table for every reported task and metric; ``short`` writes ± half an interval instead of its bounds."""
    text = _half if short else _bounds
    after = any(AFTER in row.stages for row in summary.rows)
    for task in summary.tasks:
        for metric, about in task.metrics.items():
            if metric in REPEATS or (short and "pass@1" in task.metrics and metric.startswith(DETAILS)):
                continue
            better = f", {about.better} is better" if about.better else ""
            columns = ("", "rate", "seeds", "after SFT", "Δ", "p")
            rows = [_row(row, task.name, metric, after, text) for row in summary.rows if row.stages]
            yield Sheet(
                f"{task.name}: {metric} ({task.n} items{better})",
                (*columns, *(("after RL", "Δ", "p", "gain") if after else ())),
                tuple(rows),
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
    for line in notes(summary):
        say(Text(line))


def markdown(summary: Summary) -> str:
    """Return the tables and how to read them as Markdown."""
    parts = []
    for sheet in sheets(summary):
        lines = [_pipes(sheet.columns), _pipes(["---"] * len(sheet.columns)), *map(_pipes, sheet.rows)]
        parts.append(f"**{_plain(sheet.title)}**\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, "\n".join(f"- {_plain(line)}" for line in notes(summary))]) + "\n"


def notes(summary: Summary) -> list[str]:
    """Return what a reader must know of the tables: intervals, how rates were chosen, what is missing."""
    lines = [line.format(baseline=summary.baseline) for line in LEGEND]
    by = summary.choose_by
    if by is not None:
        lines.append(CHOSEN_BY.format(task=by.task, metric=by.metric, seeds=len(summary.seeds.tuning)))
    for row in summary.rows:
        if row.edge is not None:
            beyond = "larger" if row.edge == "highest" else "smaller"
            lines.append(f"{row.label}: the {row.edge} rate of the sweep was best; a {beyond} one may be better.")
    lines += [f"failed: {one.run}: {one.error}" for one in summary.failed]
    if summary.missing:
        some = ", ".join(summary.missing[:3]) + (", …" if len(summary.missing) > 3 else "")
        lines.append(f"Not done yet: {len(summary.missing)} runs ({some}); the figures are of the others.")
    return lines


def _row(row: Row, task: str, metric: str, after: bool, text: Form) -> tuple[str, ...]:
    results = [stage.tasks.get(task, {}).get(metric) if (stage := row.stages.get(name)) else None for name in STAGES]
    seeds = str(max(len(stage.seeds) for stage in row.stages.values()))
    first = (row.label, "" if row.rate is None else f"{row.rate:g}", "" if row.kind == "start" else seeds)
    cells = [*first, *_result(results[0], text)]
    if after:
        cells += [*_result(results[1], text), _figure(None if results[1] is None else results[1].gain, text, "+")]
    return tuple(cells)


def _result(result: Result | None, text: Form) -> tuple[str, str, str]:
    if result is None:
        return "–", "", ""
    difference = result.to_baseline
    p = None if difference is None else difference.p_holm
    value = "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}"
    return _figure(result, text, ""), _figure(difference, text, "+"), value


def _figure(result: Result | Difference | None, text: Form, sign: str) -> str:
    """Return mean and interval over seeds, or over items where seeds give none."""
    if result is None:
        return ""
    over, items = result.over_seeds, result.over_items
    if over.low is None and items is not None and items.low is not None:
        return f"{text(items, sign)} i"
    return text(over, sign)


def _bounds(estimate: Estimate, sign: str) -> str:
    if estimate.value is None:
        return "–"
    interval = "[no interval]" if estimate.low is None else f"[{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:{sign}.3f} {interval}"


def _half(estimate: Estimate, sign: str) -> str:
    if estimate.value is None:
        return "–"
    low, high = estimate.low, estimate.high
    half = "–" if low is None or high is None else f"{(high - low) / 2:.3f}"
    return f"{estimate.value:{sign}.3f} ±{half}"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Return text with Markdown's signs escaped: names are the user's."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}<>#|" else sign for sign in " ".join(text.split()))
