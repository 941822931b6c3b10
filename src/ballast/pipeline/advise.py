"""`ballast advise`: what the demonstrations look like to the base model before any training, and how that is shown."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import Recipe
from ballast.config.source import Problem
from ballast.errors import BallastError
from ballast.pipeline.inputs import Ready, ready, silent
from ballast.pipeline.score import score
from ballast.protocols import Say, Tokenizer
from ballast.ranks import Ranks, join
from ballast.text import inert

if TYPE_CHECKING:
    from rich.table import Table

    from ballast.advise import Advice, ScoredTokens, SuspectToken
    from ballast.objectives import Objective

CONTEXT = 16
"""Tokens shown before a suspect."""
SHOWN = 10
"""Rows and tokens listed; all of them are in the JSON."""
FOLDED = ("holds", "text", "worst tokens (q)")
"""Columns that give way where the terminal is narrow."""
GENERAL = ("product", "reweight")
"""Forms of others; only the recipe's own says anything."""


@dataclass(frozen=True)
class Advised:
    """Advice with what it takes to show it.

    Attributes:
        texts: for a suspect, by row and place: the text before it and its own.
        notes: what became of the rows, where numbers of rows are not those of the source.
    """

    advice: Advice
    source: tuple[str, ...]
    start: str
    texts: Mapping[tuple[int, int], tuple[str, str]]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; rows count from 1, as in messages."""
        values = self.advice.to_dict()
        for row in values["outliers"]:
            row["worst"] = [self._plain(token) for token in row["worst"]]
            row["row"] += 1
        values["suspects"] = [self._plain(token) for token in values["suspects"]]
        return {"start": self.start, "source": list(self.source), "notes": list(self.notes), **values}

    def _plain(self, token: Mapping[str, Any]) -> dict[str, Any]:
        before, text = self.texts[token["row"], token["place"]]
        return {**token, "row": token["row"] + 1, "before": before, "text": text}


def check_reference_is_start(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """The advice is on the base model's own statistics."""
    if "reference" not in broken and recipe.reference.model is not None:
        yield Problem(
            ("reference", "model"),
            "is a second model, whose scores `ballast score` does not keep; leave it out, or set "
            f"model={recipe.reference.model} to be advised on that one",
        )


def check_has_demonstrations(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Stored groups are answers, not demonstrations."""
    if "data" not in broken and not recipe.data.train and recipe.groups is not None and recipe.groups.file:
        yield Problem(("data", "train"), "is required: the advice is on demonstrations, groups.file holds groups")


def run_advise(recipe: Recipe, *, say: Say = print) -> Advised | None:
    """Score the demonstrations that the recipe's cache lacks under its model, and say what the scores tell.

    Without ``reference.cache`` they are scored into a folder that is thrown away. Objective, groups and evaluation of
    the recipe play no part, but that the objective's options replace the defaults of its kind. Ranks that a launcher
    started share the scoring, and the first returns the advice, the others None.

    Raises:
        BallastError: the input cannot be used, or ranks on several machines have no folder in common.
    """
    from ballast.advise import advise, gather
    from ballast.evaluation.generation import end_ids

    objectives = _objectives(recipe)
    gate = next(one for one in objectives if one.name == "prift-mass")
    ranks = join()
    say = say if ranks.main else silent
    with _once(recipe, ranks, say) as folder:
        made = ready(_scoring_only(recipe, folder), say)
        assert made.train is not None
        model = models.load_model(made.model)
        cache = score(made, model, say if folder is None else silent)
        if not ranks.main:
            return None
        tokens = gather(made.train.dataset, cache.lookup, end_ids(model, made.tokenizer))
    advice = advise(tokens, objectives, threshold=gate.threshold, ties=gate.ties)  # type: ignore[attr-defined]
    shown = [*advice.suspects, *(token for row in advice.outliers for token in row.worst)]
    start = f"{made.model.path}" + (f" with {made.model.adapter}" if made.model.adapter else "")
    return Advised(advice, recipe.data.train, start, texts(tokens, shown, made.tokenizer), _notes(made))


@contextmanager
def _once(recipe: Recipe, ranks: Ranks, say: Say) -> Iterator[str | None]:
    """Give a folder for scores that nobody keeps; None where the recipe names one."""
    if recipe.reference.cache is not None:
        yield None
        return
    if ranks.here < ranks.size:
        raise BallastError(
            "reference.cache: is required on several machines, which share no temporary folder: name one on a disk "
            "that they share"
        )
    say("scored for this once: reference.cache names a folder to keep the scores in")
    with tempfile.TemporaryDirectory(prefix="ballast-") if ranks.main else nullcontext() as folder:
        own = folder
        yield ranks.first(lambda: own)


def _objectives(recipe: Recipe) -> list[Objective]:
    """Return one of each kind, the recipe's own with its options."""
    from ballast.objectives import list_objectives, objective

    own = [] if recipe.objective is None else [recipe.objective.build()]
    named = {info.name: objective(info.name) for info in list_objectives() if info.name not in GENERAL}
    return list({**named, **{one.name: one for one in own}}.values())


def _scoring_only(recipe: Recipe, folder: str | None) -> Recipe:
    """Return the recipe without what plays no part here; scores go to `folder`, by default to the recipe's cache."""
    reference = recipe.reference if folder is None else type(recipe.reference)(cache=folder)
    data = recipe.data.model_copy(update={"eval": ()})
    return recipe.model_copy(update={"groups": None, "reference": reference, "data": data})


def _notes(made: Ready) -> tuple[str, ...]:
    assert made.train is not None
    report = made.train.report
    moved = report.dropped_no_trained_token or report.added_by_split
    number = "row numbers count what is left after rows without a trained token were dropped and long ones split"
    return (number,) if moved else ()


def texts(
    tokens: ScoredTokens, shown: Sequence[SuspectToken], tokenizer: Tokenizer
) -> dict[tuple[int, int], tuple[str, str]]:
    """Return for tokens, by row and place, the text of up to `CONTEXT` tokens before and their own as it follows."""
    found = {}
    for token in shown:
        ids = tokens.ids[token.row]
        before = [int(one) for one in ids[max(0, token.place - CONTEXT) : token.place]]
        context = tokenizer.decode(before)
        whole = tokenizer.decode([*before, int(ids[token.place])])
        own = whole[len(context) :] if whole.startswith(context) else tokenizer.decode([int(ids[token.place])])
        found[token.row, token.place] = (context, own)
    return found


def view(advised: Advised) -> Iterator[Any]:
    """Yield what rich prints: the regime first, then what it rests on; text of the data is shown as it is, inert."""
    from ballast.advise import RULE, TESTED
    from ballast.advise.suspects import CONFIDENT, EXCESS

    advice = advised.advice
    yield _plain(f"Prior: {advice.regime.name}. {_sentence(advice.regime.meaning)}", style="bold")
    yield _plain(f"Because {'; '.join(advice.regime.reasons)}.")
    yield _plain(f"The rule: {RULE}. It was {TESTED}.")
    yield _plain(
        f"Contradicted: the base model is sure (entropy up to {CONFIDENT:g} nat) of something else (−log q at least "
        f"{EXCESS:g} nats above its entropy)."
    )
    yield _plain(f"\n{_overview(advice)}")
    yield _distribution(advice)
    yield _plain("What each objective would keep")
    yield _kept(advice)
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


def _kept(advice: Advice) -> Table:
    headings = ("mean\nweight", "weight\n0", "end of\nturn", "effective\ntokens", "contra-\ndicted\nloss", "holds")
    table = _table("objective", *headings)
    table.columns[-1].min_width = max((len(word) for one in advice.kept for word in one.known.split()), default=1)
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
    yield _plain(f"{len(rows):,} {'row lies' if len(rows) == 1 else 'rows lie'} far below the others{_first(rows)}")
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
    likely = "likely label noise, or mistakes of a base model that is too sure: read them"
    what = likely if advice.separable else "noise or what is new to the base model, the scores do not say which"
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
    return ("…" if token.place > CONTEXT else "") + _visible(advised.texts[token.row, token.place][0])


def _quoted(advised: Advised, token: SuspectToken) -> str:
    return f"'{_visible(advised.texts[token.row, token.place][1])}'"


def _visible(text: str) -> str:
    return inert(text.replace("\n", "⏎").replace("\t", "⇥"))


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
