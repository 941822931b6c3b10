"""Views of a record of `ballast inspect`: coloured text and tables, in the terminal and on a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ballast.compare.numbers import counted, number
from ballast.protocols import Say
from ballast.records import tokens as stored
from ballast.report.charts.data import Histogram, Section
from ballast.text import inert

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

COLUMNS = ("weight", "p live", "p reference", "entropy", "KL", "mass u", "selection")
MEANING = (
    "p: probability of the token under the model in training (live) and under the reference; entropy and KL of live to "
    "reference in nats; u: the reference's mass of tokens no more likely than this one."
)
SHORT_COLUMNS = ("p", "q", "H", "KL", "u")
LEGEND = (
    "Text and last columns: weight of each token, strongest where largest, struck out where 0; H, KL before it: "
    "selected by entropy, by KL. p, q: probability under the live model and the reference; H: entropy, KL: of live to "
    "reference, in nats; u: the reference's mass of tokens no more likely than this one."
)
SHADES = 9
FIGURE_WIDTH, GAP_WIDTH, LABEL_WIDTH = 5, 2, 12
"""Widths in the terminal: of a figure, between columns, of a label before it is folded."""


@dataclass(frozen=True)
class Token:
    """A token of the text; `shade` is the weight's share of the largest, None where nothing is trained."""

    text: str
    shade: int | None = None
    negative: bool = False
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A trained token's line in a table; `mark` is its selection in few letters."""

    place: int
    token: Token
    cells: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True)
class RowView:
    """A row under one objective."""

    row: int
    text: tuple[Token, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class ObjectiveView:
    """All rows under one objective; `ends` has the mean weight of the ends of turns in words, `warning` what of it."""

    label: str
    note: str
    ends: str
    warning: str
    rows: tuple[RowView, ...]


def views(record: stored.TokensRecord) -> tuple[ObjectiveView, ...]:
    """Return one view for each objective of a record."""
    return tuple(
        ObjectiveView(
            inert(objective.label),
            inert(objective.note),
            _ends(objective),
            inert(objective.end_warning),
            tuple(
                _row(row, weights, _largest(objective))
                for row, weights in zip(record.rows, objective.rows, strict=True)
            ),
        )
        for objective in record.objectives
    )


def _ends(objective: stored.TokenObjective) -> str:
    """Return an objective's mean weight at ends of turns beside that of all tokens; "" where they were not measured."""
    if objective.end_weight is None or objective.mean_weight is None:
        return ""
    return (
        f"mean weight {_figure(objective.mean_weight)}, of the tokens that end a turn {_figure(objective.end_weight)}"
    )


def _largest(objective: stored.TokenObjective) -> float:
    """Return the largest size of a weight, at least 1, so that shades compare between rows."""
    return max([1.0, *(abs(weight) for row in objective.rows for weight in row.weight)])


def _row(row: stored.TokenRow, weights: stored.TokenWeights, largest: float) -> RowView:
    lines = tuple(_lines(row, weights, largest))
    by_place = {line.place: line.token for line in lines}
    text = tuple(by_place.get(place, Token(visible(token))) for place, token in enumerate(row.text))
    return RowView(row.row, text, lines)


def _lines(row: stored.TokenRow, weights: stored.TokenWeights, largest: float) -> Iterator[Line]:
    live = weights.logprob or row.logprob
    for index, place in enumerate(row.trained):
        weight, selected = weights.weight[index], inert(weights.selected[index])
        selection = ", ".join(part for part in (selected, "left out" if weight == 0 else "") if part)
        p, q = _probability(live[index]), _probability(row.ref_logprob[index])
        shade = math.ceil(SHADES * abs(weight) / largest - 1e-9)
        title = f"weight {_figure(weight)}, p {p}, reference {q}{f', {selection}' if selection else ''}"
        token = Token(visible(row.text[place]), shade, weight < 0, title)
        figures = (_figure(column[index]) for column in (row.entropy, row.kl, row.ref_mass))
        yield Line(place, token, (_figure(weight), p, q, *figures, selection), _mark(selected))


def _probability(logprob: float) -> str:
    return _figure(math.exp(min(logprob, 0.0)))


def _figure(value: float) -> str:
    """Return a number with three decimals: in a column of them a longer one would say nothing more."""
    return f"{value:.3f}".replace("-", "−") if abs(value) < 1000 else number(value)


def _mark(selected: str) -> str:
    """Return a selection in few letters, for a narrow column."""
    return selected.replace("entropy", "H").replace(" and ", "+")


def visible(text: str) -> str:
    """Return a token so that its spaces and breaks are seen, and nothing in it acts."""
    return inert(text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣"))


STYLES = (
    "strike dim",
    "on #10263a",
    "on #12344f",
    "on #144164",
    "on #164f7a",
    "on #185d90",
    "white on #1a6ca6",
    "white on #1c7abd",
    "white on #1e89d3",
    "bold white on #2097ea",
)
"""Styles of the terminal by shade; a token of weight 0 is struck out, so that it differs without colours."""


def histograms(record: stored.TokensRecord | None) -> Section | None:
    """Return a histogram of the weights for each objective of a record; None where it has none."""
    weights = {one.label: one.histogram for one in record.objectives if one.histogram} if record else {}
    if record is None or not weights:
        return None
    first = next(iter(weights.values()))
    over = f"{counted(first.rows, 'row')}, {counted(first.tokens, 'token')}"
    charts = tuple(_histogram(label, histogram) for label, histogram in weights.items())
    return Section("weights", "Token weights", f"At {record.live}, over {over}.", charts=charts)


def _histogram(label: str, weights: stored.Histogram) -> Histogram:
    x = f"weight; {weights.zero / max(weights.tokens, 1):.0%} of the tokens have weight 0"
    return Histogram(label, x, label, weights.edges, weights.counts)


def labels(record: stored.TokensRecord | None) -> list[str]:
    """Return the labels of the objectives in a record."""
    return [] if record is None else [objective.label for objective in record.objectives]


def terminal(record: stored.TokensRecord, *, say: Say) -> None:
    """Print every row: its text coloured by each objective's weight, then a table of its tokens."""
    from rich.text import Text

    shown = views(record)
    # One width for the labels, so that a token is below itself.
    width = max((len(view.label) for view in shown), default=0) + 2
    for place, row in enumerate(record.rows):
        say(Text(f"row {row.row}", style="bold"))
        for view in shown:
            say(Text.assemble((f"{view.label}:".ljust(width), "italic"), _coloured(view.rows[place])))
        say(_Tables(shown, place))
    for view in shown:
        if view.ends:
            say(Text(f"{view.label}: {view.ends}."))
        if view.warning:
            say(Text(f"{view.warning}.", style="yellow"))
    notes = [f"{view.label}: {view.note}." for view in shown if view.note]
    if record.same:
        notes.append("Live and reference are the same model here, so every KL is 0: name a checkpoint with --model.")
    say(Text("\n".join([*notes, LEGEND]), style="dim"))


def _coloured(row: RowView) -> Text:
    from rich.text import Text

    text = Text()
    for token in row.text:
        text.append(token.text, style="dim" if token.shade is None else _style(token))
    return text


def _style(token: Token) -> str:
    return "white on #b34700" if token.negative else STYLES[min(token.shade or 0, len(STYLES) - 1)]


@dataclass(frozen=True)
class _Tables:
    """A row's tokens in figures: as many objectives side by side as fit into the terminal without cutting any."""

    views: Sequence[ObjectiveView]
    place: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.cells import cell_len

        texts = [line.token.text for view in self.views for line in view.rows[self.place].lines]
        tokens = max(map(cell_len, ["token", *texts]))
        width = options.max_width - tokens - GAP_WIDTH - len(SHORT_COLUMNS) * (FIGURE_WIDTH + GAP_WIDTH)
        part: list[ObjectiveView] = []
        left = width
        for view in self.views:
            needed = _width(view, self.place) + GAP_WIDTH
            if part and needed > left:
                yield _table(part, self.place)
                part, left = [], width
            part.append(view)
            left -= needed
        yield _table(part, self.place)


def _width(view: ObjectiveView, place: int) -> int:
    """Return the width of an objective's column; a long label is folded."""
    marks = max((len(line.mark) + 1 for line in view.rows[place].lines if line.mark), default=0)
    return max(FIGURE_WIDTH + marks, min(len(view.label), LABEL_WIDTH))


def _table(shown: Sequence[ObjectiveView], place: int) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("token", overflow="fold")
    for head in SHORT_COLUMNS:
        table.add_column(head, justify="right", no_wrap=True, min_width=FIGURE_WIDTH)
    for view in shown:
        table.add_column(Text(view.label), justify="right", width=_width(view, place), overflow="fold")
    for lines in zip(*(view.rows[place].lines for view in shown), strict=True):
        shaded = [_shaded(line) for line in lines]
        table.add_row(Text(lines[0].token.text), *(Text(cell) for cell in lines[0].cells[1:-1]), *shaded)
    return table


def _shaded(line: Line) -> Text:
    from rich.text import Text

    mark = Text(f"{line.mark} " if line.mark else "")
    return mark + Text(line.cells[0], style=_style(line.token))
