"""Curves over training and over RL, and pass@k by k: means over seeds, with the range of the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import JsonValue

from ballast.compare.figures import STAGES, rows
from ballast.compare.numbers import counted, number
from ballast.compare.statistics import t_bounds
from ballast.evaluation.metrics import pass_at_k
from ballast.records.folder import AFTER, BASE, BEFORE
from ballast.records.runs import Measured, Run, Scores
from ballast.records.schema import LogRecord
from ballast.report.charts.data import Line, LineChart, Section
from ballast.report.source import Source

TRAINING: tuple[tuple[str, str, str], ...] = (
    ("nll", "Negative log-likelihood of trained tokens", "nats per token"),
    ("entropy", "Entropy at trained tokens", "nats per token"),
    ("kl", "KL to the reference at trained tokens", "nats per token"),
    ("log_ratio", "Mean of log p − log q at trained tokens", "nats per token"),
    ("weight_zero_share", "Tokens with weight 0", "share of tokens"),
    ("weight_mean", "Mean weight", "weight"),
    ("effective_tokens", "Effective tokens per step, (Σ|w|)²/Σw²", "tokens"),
    ("eval_loss", "Negative log-likelihood of held-out rows", "nats per token"),
)
"""(key of the log, title, unit)."""

REWARDS: tuple[tuple[str, str, str], ...] = (
    ("reward", "Reward of samples", "mean reward"),
    ("correct", "Samples with reward 1", "share of answers"),
    ("mixed", "Prompts with answers of different reward", "share of prompts"),
    ("entropy", "Entropy of samples", "nats per token"),
    ("kl", "KL of samples to the model before RL", "nats per token"),
    ("length", "Length of samples", "tokens"),
    ("cut_off", "Samples cut off at the maximum length", "share of answers"),
)

MAX_POINTS = 15
"""Points of a line; steps are averaged in blocks where a run logged more."""
MAX_STRETCH = 1.8
"""How many times as high a chart may become for the line from random weights."""
SAME_AS_REWARD = "correct"
"""A curve that equals the reward's where rewards are 0 and 1."""
STAGE_NAMES = {BEFORE: "in fine-tuning", AFTER: "in RL"}


def training(source: Source) -> Section | None:
    """Return the curves of fine-tuning; None where no run logged two points."""
    charts, block = _charts(source.reported(BEFORE), TRAINING)
    if not charts:
        return None
    readable = [_without_outliers(source, chart) for chart in charts]
    lead = f"{_means(block)} Gaps are values that are not finite."
    # One note for a label is enough: the first chart is that of the loss.
    notes = {line.label: _omitted(line, chart) for chart, omitted in reversed(readable) for line in omitted}
    shown = tuple(chart for chart, _ in readable)
    return Section("training", "Fine-tuning", lead, charts=shown, notes=tuple(notes.values()), legend=True)


def rewards(source: Source) -> Section | None:
    """Return the curves of RL; None where no run logged two points."""
    charts, block = _charts(source.reported(AFTER), REWARDS)
    grey = " The grey line is RL from the base model." if any(BASE in chart.labels for chart in charts) else ""
    lead = f"GRPO from each checkpoint. {_means(block)}{grey}"
    return Section("rl", "Reinforcement learning", lead, charts=charts, legend=True) if charts else None


def diverged(source: Source) -> list[str]:
    """Return the labels, with their stage, of which a reported run logged a value that is not finite."""
    labels: dict[str, None] = {}
    for stage, keys in ((BEFORE, TRAINING), (AFTER, REWARDS)):
        for run in source.reported(stage):
            curves = [_curve(run.log, key) for key in ("loss", *(key for key, _, _ in keys))]
            if any(value is None for curve in curves for value in curve.values()):
                labels[f"{run.label} {STAGE_NAMES[stage]}"] = None
    return list(labels)


def _means(block: int) -> str:
    each = f"; each point is the mean of up to {block} logged steps" if block > 1 else ""
    return f"Means over seeds, shaded from the lowest seed to the highest{each}."


def _without_outliers(source: Source, chart: LineChart) -> tuple[LineChart, tuple[Line, ...]]:
    """Return a chart without the lines from random weights where these would flatten the others, and those lines."""
    random = {row.label for row in rows(source.summary, "random")}
    others = tuple(line for line in chart.lines if line.label not in random)
    if not others or _height(chart.lines) <= MAX_STRETCH * _height(others):
        return chart, ()
    return replace(chart, lines=others), tuple(line for line in chart.lines if line.label in random)


def _height(lines: Iterable[Line]) -> float:
    values = [value for line in lines for _, value in line.points if value is not None]
    return max(values) - min(values)


def _omitted(line: Line, chart: LineChart) -> str:
    """Say where a line that is not drawn goes, by the example of one chart."""
    values = [value for _, value in line.points if value is not None]
    ends = f"from {number(values[0])} to {number(values[-1])}"
    return f"{line.label} is omitted where it would flatten the other lines; {chart.title}: {ends}."


def _charts(runs: Sequence[Run], keys: Iterable[tuple[str, str, str]]) -> tuple[tuple[LineChart, ...], int]:
    """Return the charts of the keys that two points were logged of, and how many logged steps a point stands for."""
    labels = dict.fromkeys(run.label for run in runs)
    charts: list[LineChart] = []
    most = 1
    for key, title, unit in keys:
        averaged = [_line(label, [_curve(run.log, key) for run in runs if run.label == label]) for label in labels]
        shown = [(line, block) for line, block in averaged if _drawable(line)]
        lines = tuple(line for line, _ in shown)
        if lines and not (key == SAME_AS_REWARD and charts and charts[0].lines == lines):
            charts.append(LineChart(title, "optimiser step", unit, lines))
            most = max(most, *(block for _, block in shown))
    return tuple(charts), most


def _drawable(line: Line) -> bool:
    return sum(value is not None for _, value in line.points) > 1


def _curve(log: Iterable[LogRecord], key: str) -> dict[float, float | None]:
    """Return a logged value by step, None where it is not finite."""
    curve: dict[float, float | None] = {}
    for line in log:
        step, value = _finite(line.step), line.values.get(key)
        if step is not None and isinstance(value, int | float):
            curve[step] = _finite(value)
    return curve


def _finite(value: JsonValue) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _line(label: str, curves: Sequence[Mapping[float, float | None]]) -> tuple[Line, int]:
    """Return the mean of curves at the steps that all have, with their range; and how many steps a point has."""
    logged = [curve for curve in curves if curve]
    steps = sorted(set.intersection(*(set(curve) for curve in logged))) if logged else []
    block = max(math.ceil(len(steps) / MAX_POINTS), 1)
    points: list[tuple[float, float | None]] = []
    band: list[tuple[float, float, float]] = []
    # Blocks of one size but for one step: a short one at the end would stand out by its noise.
    for part in _blocks(steps, block):
        at = sum(part) / len(part)
        values = [_mean([curve[step] for step in part]) for curve in logged]
        finite = [value for value in values if value is not None]
        points.append((at, _mean(values)))
        if len(finite) == len(values) > 1:
            band.append((at, min(finite), max(finite)))
    # A band would close over a gap.
    whole = len(band) == len(points)
    return Line(label, tuple(points), tuple(band) if whole else (), counted(len(logged), "seed")), block


def _blocks(steps: Sequence[float], block: int) -> list[list[float]]:
    return [part.tolist() for part in np.array_split(steps, math.ceil(len(steps) / block))] if steps else []


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if finite and len(finite) == len(values) else None


def pass_curves(source: Source) -> Section | None:
    """Return pass@k by k of every task that took several samples; None where none did."""
    charts = [
        chart
        for stage, name in STAGES.items()
        for task in _sampled(source, stage)
        if (chart := _pass_chart(source, stage, task, f"{task}: pass@k {name}")) is not None
    ]
    if not charts:
        return None
    readable = [_without_outliers(source, chart) for chart in charts]
    lead = (
        "The share of problems that at least one of k samples solves, estimated without bias from all samples. Lines "
        "that meet at large k are of models that solve the same number of problems, but not equally often."
    )
    notes = ["Shaded: 95% t intervals over seeds, where there are several."]
    notes += [_omitted(line, chart) for chart, omitted in readable for line in omitted]
    shown = tuple(chart for chart, _ in readable)
    return Section("pass", "pass@k", lead, charts=shown, notes=tuple(notes), legend=True)


def _results(source: Source, stage: str) -> list[tuple[str, Measured]]:
    return [(run.label, run.result) for run in source.reported(stage) if run.done and run.result is not None]


def _sampled(source: Source, stage: str) -> list[str]:
    tasks = [task for _, one in _results(source, stage) for task, scores in one.scores.items() if len(scores[0]) > 1]
    return list(dict.fromkeys(tasks))


def _pass_chart(source: Source, stage: str, task: str, title: str) -> LineChart | None:
    by_label: dict[str, list[Scores]] = {}
    for label, measured in _results(source, stage):
        if task in measured.scores:
            by_label.setdefault(label, []).append(measured.scores[task])
    if stage == BEFORE and source.base is not None and task in source.base.scores:
        by_label.setdefault(BASE, [source.base.scores[task]])
    samples = min(len(scores) for tables in by_label.values() for table in tables for scores in table)
    if samples < 2:
        return None
    ks = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    ks += [samples] if ks[-1] != samples else []
    lines = tuple(_pass_line(label, tables, ks) for label, tables in by_label.items())
    return LineChart(title, "k", "pass@k", lines, tuple(map(float, ks)))


def _pass_line(label: str, tables: Sequence[Scores], ks: Sequence[int]) -> Line:
    points, band = [], []
    for k in ks:
        centre, low, high = t_bounds(np.array([_pass_at_k(table, k) for table in tables]))
        points.append((float(k), float(centre)))
        if len(tables) > 1:
            band.append((float(k), max(float(low), 0.0), min(float(high), 1.0)))
    return Line(label, tuple(points), tuple(band), "" if label == BASE else counted(len(tables), "seed"))


def _pass_at_k(scores: Scores, k: int) -> float:
    """Return pass@k averaged over items; an answer passes with a score of 1."""
    return sum(pass_at_k(len(item), sum(score >= 1.0 for score in item), k) for item in scores) / len(scores)
