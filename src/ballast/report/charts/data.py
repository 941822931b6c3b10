"""What a report shows, as data: charts, tables and sections before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ballast.compare.figures import Value
from ballast.records.folder import BASE

if TYPE_CHECKING:
    from ballast.records.tokens import TokensRecord

UNTRAINED = "before any training"
"""Stage of the base model."""


@dataclass(frozen=True)
class Line:
    """One label's values along x; None breaks the line. `band` holds (x, low, high), `note` more for its hover text."""

    label: str
    points: tuple[tuple[float, float | None], ...]
    band: tuple[tuple[float, float, float], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class LineChart:
    """Lines over a common x; with `x_ticks` x is spaced by its logarithm and has its ticks there."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    x_ticks: tuple[float, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in order; one may come twice."""
        return tuple(line.label for line in self.lines)


@dataclass(frozen=True)
class Dot:
    """A label at a stage, at a place with an interval in each direction; `note` has more for its hover text."""

    label: str
    stage: str
    x: Value
    y: Value
    note: str = ""


@dataclass(frozen=True)
class DotChart:
    """Dots; the stages of one label are joined. `base` is the place (x, y) of the base model."""

    title: str
    x: str
    y: str
    dots: tuple[Dot, ...]
    base: tuple[float, float] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in order; one may come twice."""
        return (*(dot.label for dot in self.dots), *((BASE,) if self.base else ()))


@dataclass(frozen=True)
class IntervalRow:
    """A label at a stage with its value, None where it was not measured; `note` has more for its hover text."""

    label: str
    stage: str
    value: Value | None
    note: str = ""


@dataclass(frozen=True)
class IntervalChart:
    """One row for each label and stage: a dot and its interval; the rows of a label follow each other.

    Attributes:
        references: (value, name) of dashed lines.
        holds: values that the axis holds in any case.
        names: lines of names above the rows that room is left for, so that charts side by side have rows at one height.
    """

    title: str
    x: str
    rows: tuple[IntervalRow, ...]
    references: tuple[tuple[float, str], ...] = ()
    holds: tuple[float, ...] = ()
    names: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in order; one may come twice."""
        return tuple(row.label for row in self.rows)


@dataclass(frozen=True)
class Histogram:
    """Counts between edges, one more edge than counts."""

    title: str
    x: str
    label: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The one label."""
        return (self.label,)


Chart = LineChart | DotChart | IntervalChart | Histogram


@dataclass(frozen=True)
class Cell:
    """A cell of a table: text, two small lines below it, and whether it is the best of its kind."""

    text: str
    detail: str = ""
    best: bool = False
    note: str = ""


MISSING = Cell("–")


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its label. With `prose` its cells hold text that may be long."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    prose: bool = False


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
    tokens: TokensRecord | None = field(default=None, repr=False)
