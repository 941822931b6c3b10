"""A summary as tables, for a terminal and in Markdown: every mean with its interval and its number of seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ballast.records.runs import AFTER, BEFORE

Form = Callable[[Mapping[str, Any], str], str]
"""Writes an estimate, with the sign format of its value."""

REPEATS = ("perplexity", "bits_per_character", "answer_tokens", "chance")
"""Metrics that tables leave out: they say another one again, or nothing of how good a model is."""
NARROW, WIDE = 8, 18
"""Characters of a label up to which columns stand apart by two spaces, and up to which it is shown in full."""
DETAILS = ("mean@", "distinct@", "demonstrations_")
"""Beginnings of metrics that a terminal leaves out where the task has others that say more."""

LEGEND = (
    "Intervals: 95 %, Student's t over seeds, on these items; with i: over items, where runs are one or alike.",
    "Δ: difference to {baseline} on the same seeds and items. p: two-sided paired t test, Holm's adjustment over rows.",
)
BY_RATE = "Learning rates were chosen by {task} {metric} on {seeds} seeds of their own, on items that are not reported."


@dataclass(frozen=True)
class Sheet:
    """One metric: a row per method, the cells as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(summary: Mapping[str, Any], *, short: bool = False) -> Iterator[Sheet]:
    """Yield a table for every reported task and metric; ``short`` writes ± half an interval instead of its bounds."""
    text = _half if short else _bounds
    after = any(AFTER in row["stages"] for row in summary["rows"])
    for task in summary["tasks"]:
        for metric, about in task["metrics"].items():
            if metric in REPEATS or (short and "pass@1" in task["metrics"] and metric.startswith(DETAILS)):
                continue
            better = f", {about['better']} is better" if about["better"] else ""
            columns = ("", "rate", "seeds", "after SFT", "Δ", "p")
            rows = [_row(row, task["name"], metric, after, text) for row in summary["rows"] if row["stages"]]
            yield Sheet(
                f"{task['name']}: {metric} ({task['n']} items{better})",
                (*columns, *(("after RL", "Δ", "p", "gain") if after else ())),
                tuple(rows),
            )


def show(summary: Mapping[str, Any], *, say: Callable[[Any], Any]) -> None:
    """Print the tables and how to read them."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    # On 80 columns a mean stands above its interval, and no number breaks.
    narrow = max(len(row["label"]) for row in summary["rows"]) <= NARROW
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


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the tables and how to read them as Markdown."""
    parts = []
    for sheet in sheets(summary):
        lines = [_pipes(sheet.columns), _pipes(["---"] * len(sheet.columns)), *map(_pipes, sheet.rows)]
        parts.append(f"**{_plain(sheet.title)}**\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, "\n".join(f"- {_plain(line)}" for line in notes(summary))]) + "\n"


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of the tables: intervals, how rates were chosen, what is missing."""
    lines = [line.format(baseline=summary["baseline"]) for line in LEGEND]
    by = summary["choose_by"]
    if by is not None:
        lines.append(BY_RATE.format(**by, seeds=len(summary["seeds"]["tuning"])))
    for row in summary["rows"]:
        if row["edge"] is not None:
            beyond = "larger" if row["edge"] == "highest" else "smaller"
            lines.append(
                f"{row['label']}: the {row['edge']} rate won the sweep, so a {beyond} one might do better still."
            )
    lines += [f"failed: {one['run']}: {one['error']}" for one in summary["failed"]]
    if summary["missing"]:
        some = ", ".join(summary["missing"][:3]) + (", …" if len(summary["missing"]) > 3 else "")
        lines.append(f"Not done yet: {len(summary['missing'])} runs ({some}); the figures are of the others.")
    return lines


def _row(row: Mapping[str, Any], task: str, metric: str, after: bool, text: Form) -> tuple[str, ...]:
    stages = [row["stages"].get(stage) for stage in (BEFORE, AFTER)]
    results = [(stage or {}).get("tasks", {}).get(task, {}).get(metric) for stage in stages]
    seeds = str(max((len(stage["seeds"]) for stage in stages if stage), default=0))
    first = (row["label"], "" if row["rate"] is None else f"{row['rate']:g}", "" if row["kind"] == "start" else seeds)
    cells = [*first, *_result(results[0], text)]
    if after:
        cells += [*_result(results[1], text), _shown((results[1] or {}).get("gain"), text, "+")]
    return tuple(cells)


def _result(result: Mapping[str, Any] | None, text: Form) -> tuple[str, str, str]:
    if result is None:
        return "–", "", ""
    difference = result["to_baseline"]
    p = None if difference is None else difference["p_holm"]
    shown = "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}"
    return _shown(result, text, ""), _shown(difference, text, "+"), shown


def _shown(result: Mapping[str, Any] | None, text: Form, sign: str) -> str:
    """Return mean and interval over seeds, or over items where seeds give none."""
    if result is None:
        return ""
    over, items = result["over_seeds"], result["over_items"]
    if over["low"] is None and items is not None and items["low"] is not None:
        return f"{text(items, sign)} i"
    return text(over, sign)


def _bounds(estimate: Mapping[str, Any], sign: str) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None:
        return "–"
    return f"{value:{sign}.3f} " + ("[no interval]" if low is None else f"[{low:.3f}, {high:.3f}]")


def _half(estimate: Mapping[str, Any], sign: str) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None:
        return "–"
    return f"{value:{sign}.3f} ±{'–' if low is None else f'{(high - low) / 2:.3f}'}"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Return text without Markdown's signs in it: names are the user's."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}<>#|" else sign for sign in " ".join(text.split()))
