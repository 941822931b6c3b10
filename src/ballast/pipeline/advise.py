"""`ballast advise`: what the demonstrations look like to the start, before any training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import Recipe
from ballast.config.source import Problem
from ballast.pipeline.prepare import Ready, ready
from ballast.pipeline.score import score
from ballast.protocols import Say

if TYPE_CHECKING:
    from ballast.advise import Advice, ScoredTokens, SuspectToken
    from ballast.objectives import Objective

CONTEXT = 16
"""Tokens shown before a suspect."""


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
    """The advice is on the start's own statistics."""
    if "reference" not in broken and recipe.reference.model is not None:
        yield Problem(
            ("reference", "model"),
            "is another model than the start, whose scores `ballast score` does not keep; leave it out, or set "
            f"model={recipe.reference.model} to be advised on that one",
        )


def check_has_demonstrations(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Stored groups are answers, not demonstrations."""
    if "data" not in broken and not recipe.data.train and (recipe.groups or {}).get("file"):
        yield Problem(("data", "train"), "is required: the advice is on demonstrations, groups.file holds groups")


def run_advise(recipe: Recipe, *, say: Say = print) -> Advised:
    """Score the demonstrations that the recipe's cache lacks under its start, and say what the scores tell.

    Without ``reference.cache`` they are scored into a folder that is thrown away. Objective, groups and evaluation of
    the recipe play no part, but that the objective's options replace the defaults of its kind.

    Raises:
        BallastError: the input cannot be used.
    """
    from ballast.advise import advise, gather
    from ballast.evaluation.generation import end_ids

    objectives = _objectives(recipe)
    gate = next(one for one in objectives if one.name == "prift-mass")
    temporary = tempfile.TemporaryDirectory(prefix="ballast-") if recipe.reference.cache is None else None
    if temporary is not None:
        say("scored for this once: reference.cache names a folder to keep the scores in")
    with temporary or nullcontext() as folder:
        made = ready(_scoring_only(recipe, folder), say)
        assert made.train is not None
        model = models.load_model(made.model)
        cache = score(made, model, say if folder is None else _silent)
        tokens = gather(made.train.dataset, cache.lookup, end_ids(model, made.tokenizer))
    advice = advise(tokens, objectives, threshold=gate.threshold, ties=gate.ties)  # type: ignore[attr-defined]
    shown = [*advice.suspects, *(token for row in advice.outliers for token in row.worst)]
    start = f"{made.model.path}" + (f" with {made.model.adapter}" if made.model.adapter else "")
    return Advised(advice, recipe.data.train, start, texts(tokens, shown, made.tokenizer), _notes(made))


def _silent(_: str) -> None:
    return None


def _objectives(recipe: Recipe) -> list[Objective]:
    """Return one of each kind, the recipe's own with its options."""
    from ballast.objectives import list_objectives, objective

    own = [] if recipe.objective is None else [recipe.objective.build()]
    named = {info.name: objective(info.name) for info in list_objectives() if info.name != "reweight"}
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
    tokens: ScoredTokens, shown: Sequence[SuspectToken], tokenizer: Any
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
