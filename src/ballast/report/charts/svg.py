"""Charts as SVG: no script, no font, no colour of their own; the style sheet gives them light and dark."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from ballast.compare.figures import RL, SFT
from ballast.compare.numbers import number
from ballast.records.folder import BASE
from ballast.report.charts.data import Chart, DotChart, Histogram, IntervalChart, LineChart
from ballast.report.charts.dots import dot_chart
from ballast.report.charts.intervals import interval_chart
from ballast.report.charts.lines import line_chart
from ballast.report.charts.scales import linear
from ballast.report.charts.shapes import (
    BOTTOM,
    HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Styles,
    axes,
    css_class,
    dashes,
    group,
    left_of,
    mark,
    path,
    svg,
    titled,
)


def draw(chart: Chart, styles: Styles) -> Markup:
    """Return a chart as an SVG element that scales with its box."""
    match chart:
        case LineChart():
            return line_chart(chart, styles)
        case DotChart():
            return dot_chart(chart, styles)
        case IntervalChart():
            return interval_chart(chart, styles)
        case Histogram():
            return _histogram(chart, styles)


def label_key(label: str, styles: Styles) -> Markup:
    """Return a label's line and mark, for a legend."""
    line = path([(2, 7), (26, 7)], "line", dashes(label, styles))
    body = group(css_class(label, styles), line + mark(label, styles, (14, 7)))
    return Markup(f'<svg class="key" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">{body}</svg>')


def stage_key(stage: str) -> Markup:
    """Return the mark of a stage, for a legend: full after fine-tuning, hollow after RL."""
    body = group("s-base", mark(BASE, {}, (7, 7), hollow=stage == RL))
    return Markup(f'<svg class="key" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{body}</svg>')


def labels_in(charts: Iterable[Chart]) -> list[str]:
    """Return the labels in charts, for a legend; the base last."""
    labels = dict.fromkeys(label for chart in charts for label in chart.labels)
    return sorted(labels, key=lambda label: label == BASE)


def stages_in(charts: Iterable[Chart]) -> list[str]:
    """Return the stages whose marks charts show, none where a single one needs no legend."""
    stages = {dot.stage for chart in charts if isinstance(chart, DotChart) for dot in chart.dots}
    stages |= {row.stage for chart in charts if isinstance(chart, IntervalChart) for row in chart.rows}
    return [SFT, RL] if {SFT, RL} <= stages else []


def _histogram(chart: Histogram, styles: Styles) -> Markup:
    total = max(sum(chart.counts), 1)
    shares = [count / total for count in chart.counts]
    y = linear([0.0, *shares], HEIGHT - BOTTOM, TOP, count=4)
    x = linear(chart.edges, left_of(y), WIDTH - RIGHT)
    bars = "".join(
        f'<rect class="bar" x="{x(low) + 0.5:.1f}" y="{y(share):.1f}" '
        f'width="{max(x(high) - x(low) - 1, 0.5):.1f}" height="{max(y(0.0) - y(share), 0):.1f}">'
        f"{titled(f'{number(low)} to {number(high)}: {share:.1%} of tokens')}</rect>"
        for low, high, share in zip(chart.edges, chart.edges[1:], shares, strict=False)
    )
    parts = [axes(chart.x, "share of tokens", x, y, WIDTH - RIGHT), group(css_class(chart.label, styles), bars)]
    return svg(f"{chart.title}: share of tokens by {chart.x}", parts)


__all__ = ["draw", "label_key", "labels_in", "stage_key", "stages_in"]
