"""Views of a record of `ballast inspect`: coloured text and tables, in the terminal and on a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ballast.errors import BallastError
from ballast.records.old_reading import REMEDY, finite
from ballast.records.old_reading import field as at
from ballast.report.text import inert, number

PER_TOKEN = ("logprob", "entropy", "kl", "mass", "ref_logprob", "ref_entropy", "ref_mass")
HEADS = ("weight", "p live", "p reference", "entropy", "KL", "mass u", "selection")
MEANING = (
    "p: probability of the token under the model that trains (live) and under the reference; entropy and KL of live to "
    "reference in nats; u: the reference's mass of tokens no more likely than this one."
)
SHORT_HEADS = ("p", "q", "H", "KL", "u")
LEGEND = (
    "Text and last columns: weight of each token, strongest where largest, struck out where 0; H, KL before it: picked "
    "out by entropy, by KL. p, q: probability under the live model and the reference; H: entropy, KL: of live to "
    "reference, in nats; u: the reference's mass of tokens no more likely than this one."
)
SHADES = 9
FIGURE, GAP, LABEL = 5, 2, 12
"""Widths in the terminal: of a figure, between columns, of a label before it is folded."""


@dataclass(frozen=True)
class Token:
    """A token of the text; `shade` is the weight's share of the largest, None where nothing is trained."""

    text: str
    shade: int | None = None
    negative: bool = False
    told: str = ""


@dataclass(frozen=True)
class Line:
    """A trained token's line in a table."""

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
    """All rows under one objective."""

    label: str
    note: str
    rows: tuple[RowView, ...]


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Refuse a record that a table cannot show.

    Raises:
        BallastError: naming the row and what does not fit.
    """
    at(record, where, "live", str)
    rows = at(record, where, "rows", list)
    for row in rows:
        place = f"{where}: row {row.get('row') if isinstance(row, dict) else row!r}"
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), list) for key in ("text", "trained", *PER_TOKEN)
        ):
            raise BallastError(f"{place}: has not all of its tokens' statistics; {REMEDY}")
        count = len(row["trained"])
        inside = all(isinstance(one, int) and 0 <= one < len(row["text"]) for one in row["trained"])
        if not inside or any(len(row[key]) != count for key in PER_TOKEN):
            raise BallastError(f"{place}: {count} trained tokens, and not as many statistics; {REMEDY}")
        for key in PER_TOKEN:
            for value in row[key]:
                finite(value, f"{place}: {key}")
    for one in at(record, where, "objectives", list):
        label = at(one, where, "label", str)
        given = at(one, where, "rows", list)
        fits = len(given) == len(rows) and all(
            len(mine["weight"]) == len(mine["selected"]) == len(row["trained"])
            for mine, row in zip(given, rows, strict=True)
        )
        if not fits:
            raise BallastError(f"{where}: objective {label!r} has not one weight for each token; {REMEDY}")
        for mine in given:
            for value in mine["weight"]:
                finite(value, f"{where}: {label}: weight")


def views(record: Mapping[str, Any]) -> tuple[ObjectiveView, ...]:
    """Return one view for each objective of a record."""
    return tuple(
        ObjectiveView(
            inert(one["label"]),
            inert(one.get("note") or ""),
            tuple(_row(row, mine, _largest(one)) for row, mine in zip(record["rows"], one["rows"], strict=True)),
        )
        for one in record["objectives"]
    )


def _largest(objective: Mapping[str, Any]) -> float:
    """Return the largest size of a weight, at least 1, so that shades compare between rows."""
    return max([1.0, *(abs(value) for row in objective["rows"] for value in row["weight"])])


def _row(row: Mapping[str, Any], mine: Mapping[str, Any], largest: float) -> RowView:
    lines = tuple(_lines(row, mine, largest))
    by_place = {line.place: line.token for line in lines}
    text = tuple(by_place.get(place, Token(visible(token))) for place, token in enumerate(row["text"]))
    return RowView(int(row["row"]), text, lines)


def _lines(row: Mapping[str, Any], mine: Mapping[str, Any], largest: float) -> Iterator[Line]:
    live = mine.get("logprob") or row["logprob"]
    for index, place in enumerate(row["trained"]):
        weight, selected = float(mine["weight"][index]), inert(mine["selected"][index])
        selection = ", ".join(part for part in (selected, "left out" if weight == 0 else "") if part)
        p, q = _probability(live[index]), _probability(row["ref_logprob"][index])
        shade = math.ceil(SHADES * abs(weight) / largest - 1e-9)
        told = f"weight {_figure(weight)}, p {p}, reference {q}{f', {selection}' if selection else ''}"
        token = Token(visible(row["text"][place]), shade, weight < 0, told)
        figures = (_figure(row[key][index]) for key in ("entropy", "kl", "ref_mass"))
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
"""Styles of the terminal by shade; a token of weight 0 is struck out, so that it is told without colours."""


def terminal(record: Mapping[str, Any], *, say: Any) -> None:
    """Print every row: its text coloured by each objective's weight, then a table of its tokens."""
    from rich.text import Text

    found = views(record)
    # One width for the labels, so that a token stands below itself.
    room = max((len(view.label) for view in found), default=0) + 2
    for place, row in enumerate(record["rows"]):
        say(Text(f"row {row['row']}", style="bold"))
        for view in found:
            say(Text.assemble((f"{view.label}:".ljust(room), "italic"), _coloured(view.rows[place])))
        say(_Tables(found, place))
    notes = [f"{view.label}: {view.note}." for view in found if view.note]
    if record.get("same"):
        notes.append("Live and reference are the same model here, so every KL is 0: name a checkpoint with --model.")
    say(Text("\n".join([*notes, LEGEND]), style="dim"))


def _coloured(row: RowView) -> Any:
    from rich.text import Text

    text = Text()
    for token in row.text:
        text.append(token.text, style="dim" if token.shade is None else _style(token))
    return text


def _style(token: Token) -> str:
    return "white on #b34700" if token.negative else STYLES[min(token.shade or 0, len(STYLES) - 1)]


@dataclass(frozen=True)
class _Tables:
    """A row's tokens in figures: as many objectives side by side as the terminal has room for without cutting any."""

    found: Sequence[ObjectiveView]
    place: int

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.cells import cell_len

        tokens = max(
            (cell_len(line.token.text) for view in self.found for line in view.rows[self.place].lines), default=5
        )
        room = options.max_width - max(tokens, len("token")) - GAP - len(SHORT_HEADS) * (FIGURE + GAP)
        part: list[ObjectiveView] = []
        left = room
        for view in self.found:
            width = _width(view, self.place) + GAP
            if part and width > left:
                yield _table(part, self.place)
                part, left = [], room
            part.append(view)
            left -= width
        yield _table(part, self.place)


def _width(view: ObjectiveView, place: int) -> int:
    """Return the width of an objective's column; a long label is folded."""
    marks = max((len(line.mark) + 1 for line in view.rows[place].lines if line.mark), default=0)
    return max(FIGURE + marks, min(len(view.label), LABEL))


def _table(found: Sequence[ObjectiveView], place: int) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("token", overflow="fold")
    for head in SHORT_HEADS:
        table.add_column(head, justify="right", no_wrap=True, min_width=FIGURE)
    for view in found:
        table.add_column(Text(view.label), justify="right", width=_width(view, place), overflow="fold")
    for lines in zip(*(view.rows[place].lines for view in found), strict=True):
        shaded = [_shaded(line) for line in lines]
        table.add_row(Text(lines[0].token.text), *(Text(cell) for cell in lines[0].cells[1:-1]), *shaded)
    return table


def _shaded(line: Line) -> Any:
    from rich.text import Text

    mark = Text(f"{line.mark} " if line.mark else "")
    return mark + Text(line.cells[0], style=_style(line.token))
