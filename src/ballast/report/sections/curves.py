"""Curves over training and over RL, and pass@k by k: means over seeds, with what they span."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ballast.compare.statistics import t_bounds
from ballast.evaluation.metrics import pass_at_k
from ballast.records.runs import AFTER, BEFORE
from ballast.report.charts.data import BASE, Line, LineChart, Section
from ballast.report.figures import STAGES, rows
from ballast.report.runs import FINISHED, Measured, Run, Scores
from ballast.report.source import Source
from ballast.report.text import number

TRAINING: tuple[tuple[str, str, str], ...] = (
    ("nll", "Negative log-likelihood of what is trained on", "nats per token"),
    ("entropy", "Entropy on what is trained on", "nats per token"),
    ("kl", "KL to the reference on what is trained on", "nats per token"),
    ("log_ratio", "Mean of log p − log q on what is trained on", "nats per token"),
    ("weight_zero_share", "Tokens with weight 0", "share of tokens"),
    ("weight_mean", "Mean weight", "weight"),
    ("effective_tokens", "Effective tokens of a step, (Σ|w|)²/Σw²", "tokens"),
    ("eval_loss", "Negative log-likelihood of held-out rows", "nats per token"),
)
"""(key of the log, title, unit)."""

REWARDS: tuple[tuple[str, str, str], ...] = (
    ("reward", "Reward of the samples", "mean reward"),
    ("correct", "Samples with reward 1", "share of answers"),
    ("mixed", "Prompts whose answers differ in reward", "share of prompts"),
    ("entropy", "Entropy of the samples", "nats per token"),
    ("kl", "KL to the start of RL on the samples", "nats per token"),
    ("length", "Length of the samples", "tokens"),
    ("cut_off", "Samples that had not ended", "share of answers"),
)


MOST_POINTS = 15
"""Points of a line; steps are averaged in blocks where a run logged more."""
WIDEST = 1.8
"""How many times as high a chart may become for the line from random weights."""
DOUBLED = "correct"
"""A curve that says what the reward says where rewards are 0 and 1."""


STAGE_WORDS = {BEFORE: "in fine-tuning", AFTER: "in RL"}


def training(source: Source) -> Section | None:
    """Return the curves of fine-tuning; None where no run logged two points."""
    charts, block = _charts(source.reported(BEFORE), TRAINING)
    if not charts:
        return None
    readable = [_readable(source, chart) for chart in charts]
    lead = f"{_means(block)} A gap is a value that was no finite number."
    # One note for a label says enough: its first chart is that of the loss.
    notes = {line.label: _left_out(line, chart) for chart, left in reversed(readable) for line in left}
    drawn = tuple(chart for chart, _ in readable)
    return Section("training", "Fine-tuning", lead, charts=drawn, notes=tuple(notes.values()), legend=True)


def rewards(source: Source) -> Section | None:
    """Return the curves of RL; None where no run logged two points."""
    charts, block = _charts(source.reported(AFTER), REWARDS)
    grey = " Grey starts from the base itself." if BASE in labels_of(charts) else ""
    lead = f"GRPO from each checkpoint. {_means(block)}{grey}"
    return Section("rl", "Reinforcement learning", lead, charts=charts, legend=True) if charts else None


def labels_of(charts: Iterable[LineChart]) -> set[str]:
    """Return the labels of all lines."""
    return {line.label for chart in charts for line in chart.lines}


def diverged(source: Source) -> list[str]:
    """Return the labels, with their stage, of which a reported run logged a value that is no finite number."""
    found: dict[str, None] = {}
    for stage, keys in ((BEFORE, TRAINING), (AFTER, REWARDS)):
        for run in source.reported(stage):
            curves = [_curve(run.metrics, key) for key in ("loss", *(key for key, _, _ in keys))]
            if any(value is None for curve in curves for value in curve.values()):
                found[f"{run.label} {STAGE_WORDS[stage]}"] = None
    return list(found)


def _means(block: int) -> str:
    each = f"; a point is the mean of up to {block} logged steps" if block > 1 else ""
    return f"Means over seeds, the shade spans the seeds{each}."


def _readable(source: Source, chart: LineChart) -> tuple[LineChart, tuple[Line, ...]]:
    """Return a chart without the lines from random weights where these would press the others flat, and those lines."""
    outside = {str(row["label"]) for row in rows(source.summary, "random")}
    others = tuple(line for line in chart.lines if line.label not in outside)
    if not others or _span(chart.lines) <= WIDEST * _span(others):
        return chart, ()
    return replace(chart, lines=others), tuple(line for line in chart.lines if line.label in outside)


def _span(lines: Iterable[Line]) -> float:
    values = [value for line in lines for _, value in line.points if value is not None]
    return max(values) - min(values)


def _left_out(line: Line, chart: LineChart) -> str:
    """Say where a line that is not drawn goes, at the example of one chart."""
    known = [value for _, value in line.points if value is not None]
    ends = f"from {number(known[0])} to {number(known[-1])}"
    return f"{line.label} is left out where it would press the others flat; {chart.title}: {ends}."


def _charts(runs: Sequence[Run], keys: Iterable[tuple[str, str, str]]) -> tuple[tuple[LineChart, ...], int]:
    """Return the charts of the keys that two points were logged of, and how many logged steps a point stands for."""
    labels = dict.fromkeys(run.label for run in runs)
    charts: list[LineChart] = []
    most = 1
    for key, title, unit in keys:
        found = [_line(label, [_curve(run.metrics, key) for run in runs if run.label == label]) for label in labels]
        drawn = [(line, block) for line, block in found if _drawable(line)]
        lines = tuple(line for line, _ in drawn)
        if lines and not (key == DOUBLED and charts and charts[0].lines == lines):
            charts.append(LineChart(title, "optimiser step", unit, lines))
            most = max(most, *(block for _, block in drawn))
    return tuple(charts), most


def _drawable(line: Line) -> bool:
    return sum(value is not None for _, value in line.points) > 1


def _curve(logs: Iterable[Mapping[str, Any]], key: str) -> dict[float, float | None]:
    """Return a logged value by step, None where it is no finite number."""
    found: dict[float, float | None] = {}
    for log in logs:
        step, value = _number(log.get("step")), log.get(key)
        if step is not None and key in log and isinstance(value, int | float):
            found[step] = _number(value)
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _line(label: str, curves: Sequence[Mapping[float, float | None]]) -> tuple[Line, int]:
    """Return the mean of curves at the steps that all have, and what they span; and how many steps a point has."""
    there = [curve for curve in curves if curve]
    steps = sorted(set.intersection(*(set(curve) for curve in there))) if there else []
    block = max(math.ceil(len(steps) / MOST_POINTS), 1)
    points: list[tuple[float, float | None]] = []
    band: list[tuple[float, float, float]] = []
    # Blocks of one size but for one step: a short one at the end would stand out by its noise.
    for part in _blocks(steps, block):
        at = sum(part) / len(part)
        values = [_mean([curve[step] for step in part]) for curve in there]
        known = [value for value in values if value is not None]
        points.append((at, _mean(values)))
        if len(known) == len(values) > 1:
            band.append((at, min(known), max(known)))
    # A shade would close over a gap.
    whole = len(band) == len(points)
    return Line(label, tuple(points), tuple(band) if whole else ()), block


def _blocks(steps: Sequence[float], block: int) -> list[list[float]]:
    return [part.tolist() for part in np.array_split(steps, math.ceil(len(steps) / block))] if steps else []


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def pass_curves(source: Source) -> Section | None:
    """Return pass@k by k of every task that took several samples; None where none did."""
    charts = [
        chart
        for stage, name in STAGES.items()
        for task in _sampled(source, stage)
        if (chart := _pass_chart(source, stage, task, f"pass@k on {task}, {name}")) is not None
    ]
    if not charts:
        return None
    readable = [_readable(source, chart) for chart in charts]
    lead = (
        "The share of problems of which at least one of k samples is right, unbiased from the samples taken. Where "
        "lines meet at large k, the models solve as many problems and differ in how often they do."
    )
    notes = ["The shade is the t interval over seeds, where there are several."]
    notes += [_left_out(line, chart) for chart, left in readable for line in left]
    drawn = tuple(chart for chart, _ in readable)
    return Section("pass", "pass@k", lead, charts=drawn, notes=tuple(notes), legend=True)


def _results(source: Source, stage: str) -> list[tuple[str, Measured]]:
    done = [run for run in source.reported(stage) if run.status == FINISHED]
    return [(run.label, run.result) for run in done if run.result is not None]


def _sampled(source: Source, stage: str) -> list[str]:
    found = [task for _, one in _results(source, stage) for task, scores in one.scores.items() if len(scores[0]) > 1]
    return list(dict.fromkeys(found))


def _pass_chart(source: Source, stage: str, task: str, title: str) -> LineChart | None:
    measured = _results(source, stage)
    labels = dict.fromkeys(label for label, _ in measured)
    by_label = {
        label: [one.scores[task] for own, one in measured if own == label and task in one.scores] for label in labels
    }
    if stage == BEFORE and source.start is not None and task in source.start.scores and BASE not in by_label:
        by_label[BASE] = [source.start.scores[task]]
    by_label = {label: tables for label, tables in by_label.items() if tables}
    largest = min(len(given) for tables in by_label.values() for table in tables for given in table)
    if largest < 2:
        return None
    places = [2**power for power in range(largest.bit_length()) if 2**power <= largest]
    places += [largest] if places[-1] != largest else []
    lines = tuple(_pass_line(label, tables, places) for label, tables in by_label.items())
    return LineChart(title, "k", "pass@k", lines, tuple(float(place) for place in places))


def _pass_line(label: str, tables: Sequence[Scores], places: Sequence[int]) -> Line:
    points, band = [], []
    for k in places:
        centre, low, high = t_bounds(np.array([_pass(table, k) for table in tables]))
        points.append((float(k), float(centre)))
        if len(tables) > 1:
            band.append((float(k), max(float(low), 0.0), min(float(high), 1.0)))
    return Line(label, tuple(points), tuple(band))


def _pass(table: Scores, k: int) -> float:
    """Return pass@k averaged over items; an answer passes with a score of 1."""
    return sum(pass_at_k(len(given), sum(score >= 1.0 for score in given), k) for given in table) / len(table)
