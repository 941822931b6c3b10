"""Advice in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ballast.advise import Advice, SuspectToken
    from ballast.pipeline.advise import Advised

SHOWN = 10
"""Rows and tokens listed; all of them are in the JSON."""

FOLDED = ("holds", "text", "worst tokens (q)")
"""Columns that give way where the terminal is narrow."""


def view(advised: Advised) -> Iterator[Any]:
    """Yield what rich prints: the regime first, then what it rests on; text of the data is shown as it is, inert."""
    from ballast.advise import RULE, TESTED
    from ballast.advise.suspects import CONFIDENT, EXCESS

    advice = advised.advice
    yield _plain(f"Prior: {advice.regime.name}. {_sentence(advice.regime.meaning)}", style="bold")
    yield _plain(f"Because {'; '.join(advice.regime.reasons)}.")
    yield _plain(f"The rule: {RULE}. It was {TESTED}.")
    yield _plain(
        f"Contradicted: the start is sure (entropy up to {CONFIDENT:g} nat) of something else (−log q at least "
        f"{EXCESS:g} nats above its entropy)."
    )
    yield _plain(f"\n{_overview(advice)}")
    yield _distribution(advice)
    yield _plain("What each objective would keep")
    yield _objectives(advice)
    yield from (_plain(one.warning, style="bold") for one in advice.kept if one.warning)
    yield from _outliers(advised)
    yield from _suspects(advised)
    yield _plain("What the scores do not tell")
    yield _items((*advice.not_known, *advised.notes))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _overview(advice: Advice) -> str:
    found = advice.support
    below = ", ".join(f"{share:.1%} q < {level:g}" for level, share in found.below_probability.items())
    ties = f"; {found.tied:.1%} are kept or dropped by how ties count" if found.tied >= 0.001 else ""
    return (
        f"{found.rows:,} rows, {found.tokens:,} trained tokens: mean q {found.mean_probability:.3f}, nll "
        f"{found.nll:.3f}, entropy {found.entropy:.3f} nats. Of the tokens {found.below_mass:.1%} have u < "
        f"{found.threshold:g}, {below}; {found.contradicted:.1%} are contradicted{ties}."
    )


def _distribution(advice: Advice) -> Table:
    table = _table("tokens at or below", *(f"{level:.0%}" for level in advice.support.probability))
    for name, values in (("q(y)", advice.support.probability), ("u", advice.support.mass)):
        table.add_row(name, *(f"{value:.2g}" for value in values.values()))
    return table


def _objectives(advice: Advice) -> Table:
    headings = ("mean\nweight", "weight\n0", "end of\nturn", "effective\ntokens", "contra-\ndicted\nloss", "holds")
    table = _table("objective", *headings)
    for one in advice.kept:
        shares = (one.weight_mean, one.zero_share, one.end_weight, one.effective_tokens, one.contradicted_share)
        formats = ("{:.3f}", "{:.1%}", "{:.3f}", "{:,.0f}", "{:.1%}")
        cells = ("–" if value is None else form.format(value) for value, form in zip(shares, formats, strict=True))
        table.add_row(one.name, *cells, one.known)
    return table


def _outliers(advised: Advised) -> Iterator[Any]:
    rows = advised.advice.outliers
    if not rows:
        yield _plain("No row lies far below the others.")
        return
    yield _plain(f"{len(rows):,} rows lie far below the others{_first(rows)}")
    table = _table("row", "tokens", "mean q", "deviation", "worst tokens (q)")
    for row in rows[:SHOWN]:
        worst = "  ".join(f"{_quoted(advised, token)} {token.probability:.1g}" for token in row.worst)
        cells = (f"{row.row + 1}", f"{row.tokens}", f"{row.mean_probability:.3f}", f"{row.deviation:.1f}", worst)
        table.add_row(*(_plain(cell) for cell in cells))
    yield table


def _suspects(advised: Advised) -> Iterator[Any]:
    advice = advised.advice
    if not advice.suspects:
        yield _plain("No token is contradicted.")
        return
    likely = "likely label noise, or mistakes of a start that is too sure: read them"
    what = likely if advice.separable else "noise or what is new to the start, the scores do not say which"
    yield _plain(f"Contradicted tokens in {advice.suspect_rows:.1%} of the rows: {what}{_first(advice.suspects)}")
    table = _table("row", "text", "token", "q", "u", "entropy")
    for token in advice.suspects[:SHOWN]:
        numbers = (f"{token.probability:.1g}", f"{token.mass:.1g}", f"{token.entropy:.2f}")
        cells = (f"{token.row + 1}", _before(advised, token), _quoted(advised, token), *numbers)
        table.add_row(*(_plain(cell) for cell in cells))
    yield table


def _first(found: Any) -> str:
    return f"; the first {SHOWN}" if len(found) > SHOWN else ""


def _before(advised: Advised, token: SuspectToken) -> str:
    from ballast.pipeline.advise import CONTEXT

    return ("…" if token.place > CONTEXT else "") + inert(advised.texts[token.row, token.place][0])


def _quoted(advised: Advised, token: SuspectToken) -> str:
    return f"'{inert(advised.texts[token.row, token.place][1])}'"


def inert(text: str) -> str:
    """Return text with what would steer a terminal written out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _plain(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(text, style=style)


def _table(*headings: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading not in FOLDED)
    return table


def _items(lines: Sequence[str]) -> Table:
    """Return a list whose long lines go on below their own beginning."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row("-", _plain(line))
    return table
