"""Charts as data: what is plotted, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SFT, RL = "after SFT", "after RL"
STARTED = "before any training"
"""Stage of the start itself."""
BASE = "base"


@dataclass(frozen=True)
class Value:
    """A figure with its interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One label's values along x; None breaks the line. `band` holds (x, low, high)."""

    label: str
    points: tuple[tuple[float, float | None], ...]
    band: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class LineChart:
    """Lines over a common x; with `places` x is spaced by its logarithm and has its ticks there."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    places: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Dot:
    """A label at a stage, at a place with an interval in each direction."""

    label: str
    stage: str
    x: Value
    y: Value


@dataclass(frozen=True)
class DotChart:
    """Dots; the stages of one label are joined. `mark` is the place (x, y) of the start."""

    title: str
    x: str
    y: str
    dots: tuple[Dot, ...]
    mark: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class IntervalChart:
    """One row for each label and stage: a dot and its interval. `lines` holds (value, name) to compare with."""

    title: str
    x: str
    rows: tuple[tuple[str, str, Value], ...]
    lines: tuple[tuple[float, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Histogram:
    """Counts between edges, one more edge than counts."""

    title: str
    x: str
    label: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    note: str = ""


Chart = LineChart | DotChart | IntervalChart | Histogram


@dataclass(frozen=True)
class Cell:
    """A cell of a table: text, what stands small below it in two lines, and whether it is the best of its kind."""

    text: str
    detail: str = ""
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its label. With `words` its cells hold text that may be long."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    words: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the report. `code` holds (heading, text) of what is to be copied."""

    id: str
    title: str
    lead: str = ""
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()
    code: tuple[tuple[str, str], ...] = ()
    legend: bool = False


@dataclass(frozen=True)
class Report:
    """Everything that the page and the Markdown show."""

    title: str
    answer: tuple[str, ...]
    status: str
    sections: tuple[Section, ...]
    labels: tuple[str, ...]
    cautions: tuple[str, ...] = ()
    tokens: dict[str, Any] | None = field(default=None, repr=False)
