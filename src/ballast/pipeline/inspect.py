"""`ballast inspect`: what each objective makes of every token of chosen rows, as a record that views are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.config.recipe import Check, Recipe
from ballast.config.training import check_training
from ballast.errors import BallastError
from ballast.objectives import Objective
from ballast.objectives import objective as build_objective
from ballast.pipeline import sources
from ballast.pipeline.checks.common import check_data, check_model, check_required
from ballast.protocols import Say
from ballast.report.measure import Models, Piece, load, pieces, reference_name, statistics, together
from ballast.report.text import counted
from ballast.stats import GROUP_FIELDS, LAYOUT_FIELDS

if TYPE_CHECKING:
    from ballast.stats import TokenStats

INSPECT_CHECKS: tuple[Check, ...] = (check_required("model"), check_model, check_data, check_training)
SHOWN = ("logprob", "entropy", "kl", "mass", "ref_logprob", "ref_entropy", "ref_mass")
"""Statistics in the record, beside what the objectives need."""
BINS = 20
HISTOGRAM_ROWS = 64
MOST_ROWS = 1000

_Measured = tuple[Sequence[Piece], Sequence["TokenStats"]]


def parse_rows(text: str) -> list[int]:
    """Return the rows that ``3,7`` or ``3-5`` names, counted from 1, each once.

    Raises:
        BallastError: it names none.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        bounds = (first, last) if dash else (first, first)
        if not all(bound.isascii() and bound.isdigit() and len(bound) < 12 for bound in bounds):
            raise BallastError(
                f"--rows {text}: {part.strip()!r} is no row; rows are counted from 1, such as 3,7 or 3-5"
            )
        low, high = (int(bound) for bound in bounds)
        if not 1 <= low <= high:
            raise BallastError(f"--rows {text}: {part.strip()!r} holds no row; rows are counted from 1")
        if high - low >= MOST_ROWS:
            raise BallastError(f"--rows {text}: more than a thousand rows; nobody reads that many, name a few")
        found += range(low, high + 1)
    return list(dict.fromkeys(found))


def run_inspect(
    recipe: Recipe,
    rows: str,
    *,
    objectives: Sequence[str] = (),
    model: str | None = None,
    over: int = HISTOGRAM_ROWS,
    page: Path | None = None,
    record: Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Print what objectives make of rows such as ``3,7``; write a page and the record where asked; return the record.

    Raises:
        BallastError: what `inspect_rows` refuses, or a file that cannot be written.
    """
    from ballast.files import write_atomically
    from ballast.records.write import write_json
    from ballast.report import render, tokens

    for option, path in (("--html", page), ("--record", record)):
        if path is not None and path.is_dir():
            raise BallastError(f"{option} {path}: is a folder; name a file in it")
    chosen = [parse_objective(one) for one in objectives]
    found = inspect_rows(recipe, parse_rows(rows), objectives=chosen, model=model, over=over if page or record else 0)
    tokens.terminal(found, say=say)
    if page is not None:
        write_atomically(page, render.tokens_html(found))
        say(f"{page}: written")
    if record is not None:
        write_json(record, found)
        say(f"{record}: written")
    return found


def parse_objective(text: str) -> str | dict[str, Any]:
    """Return a name, or the mapping that YAML such as ``{name: prift-mass, threshold: 0.3}`` describes.

    Raises:
        BallastError: it is neither.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not text.lstrip().startswith("{"):
        return text
    try:
        found = YAML(typ="safe").load(text)
    except YAMLError as error:
        first = str(error).strip().splitlines()[0]
        raise BallastError(
            f"--objective {text}: cannot be read ({first}); write {{name: NAME, option: value}}"
        ) from error
    return found if isinstance(found, dict) else text


def inspect_rows(
    recipe: Recipe,
    rows: Sequence[int],
    *,
    objectives: Sequence[str | Mapping[str, Any] | Objective] = (),
    model: str | None = None,
    over: int = HISTOGRAM_ROWS,
) -> dict[str, Any]:
    """Return the statistics of every token of these rows and the weight that each objective gives it, JSON-able.

    Args:
        rows: rows of ``data.train``, counted from 1.
        objectives: names, mappings or objectives; the recipe's where there is none.
        model: the live model, a folder or hub id; the recipe's start by default, which is also the reference.
        over: first rows of the data whose weights the histograms count; 0 makes none.

    Raises:
        BallastError: a row is not there or has no trained token, or an objective cannot be shown on its own.
    """
    chosen = [build_objective(one) for one in objectives] or _own_objective(recipe)
    labels = _labels(chosen)
    for one in chosen:
        _check(one)
    # Groups serve objectives on groups alone, which are not looked at here.
    recipe = recipe.model_copy(update={"groups": None, "objective": None})
    raw = sources.load_train(recipe.data)
    if beyond := [row for row in rows if row > len(raw)]:
        raise BallastError(f"--rows: there is no row {beyond[0]}; data.train has {counted(len(raw), 'row')}")
    loaded = load(recipe, model)
    shown = [piece for row in rows for piece in pieces(recipe, raw, [row], loaded.tokenizer)]
    sample = pieces(recipe, raw, range(1, min(over, len(raw)) + 1), loaded.tokenizer) if over else []
    fields = tuple(
        dict.fromkeys((*SHOWN, *(need for one in chosen for need in one.needs if need not in LAYOUT_FIELDS)))
    )
    look = _Look(loaded, recipe.seed, trained=model is not None, fields=fields)
    stats = [look.statistics(None, piece, place) for place, piece in enumerate(shown)]
    counted_in = [look.statistics(None, piece, place) for place, piece in enumerate(sample)]
    return {
        "format": 1,
        "live": model or str(recipe.model.path if recipe.model else ""),
        "reference": reference_name(recipe),
        "same": loaded.live is loaded.reference,
        "data": list(recipe.data.train),
        "rows": [_row_record(piece, one, loaded.tokenizer) for piece, one in zip(shown, stats, strict=True)],
        "objectives": [
            {"label": label, **look.objective(one, (shown, stats), (sample, counted_in))}
            for one, label in zip(chosen, labels, strict=True)
        ],
    }


def _own_objective(recipe: Recipe) -> list[Objective]:
    if recipe.objective is None:
        raise BallastError("names no objective to look through; --objective NAME, or objective=NAME")
    return [recipe.objective.build()]


def _labels(chosen: Sequence[Objective]) -> list[str]:
    """Return a label for each objective: its name, with its options where a name comes twice."""
    names = [one.name for one in chosen]
    labels = []
    for one in chosen:
        options = ", ".join(
            f"{key} {value}" for key, value in one.to_dict().items() if key != "name" and value is not None
        )
        labels.append(f"{one.name} ({options})" if names.count(one.name) > 1 and options else one.name)
    double = next((label for place, label in enumerate(labels) if label in labels[:place]), None)
    if double is not None:
        raise BallastError(f"--objective {double}: is named twice; its table would be there twice, name it once")
    return labels


def _check(objective: Objective) -> None:
    needs = [name for name in objective.needs if name in GROUP_FIELDS]
    if needs:
        raise BallastError(
            f"--objective {objective.name}: its weights are the {needs[0]} of an answer among those sampled to the "
            "same prompt, and a row by itself has none; look at the answers with `ballast sample`"
        )


class _Look:
    """Looks at rows through objectives; an objective that changes inputs has statistics of its own."""

    def __init__(self, loaded: Models, seed: int, *, trained: bool, fields: tuple[str, ...]) -> None:
        self.loaded, self.fields = loaded, fields
        self._place = (seed, int(trained), 1)

    def statistics(self, prepare: Any, piece: Piece, place: int) -> TokenStats:
        """Return the statistics of one row; `prepare` changes what the live model reads."""
        return statistics(self.loaded, piece, self.fields, place, prepare)

    def objective(self, objective: Objective, shown: _Measured, sample: _Measured) -> dict[str, Any]:
        """Return an objective's weights of the rows shown, and their histogram over the sample."""
        from ballast.training.inputs import input_change

        prepare = input_change(objective, *self._place)
        of_rows, of_sample = shown[1], sample[1]
        if prepare is not None:
            of_rows, of_sample = (
                [self.statistics(prepare, piece, place) for place, piece in enumerate(part)]
                for part in (shown[0], sample[0])
            )
        return {
            "name": objective.name,
            "options": {key: value for key, value in objective.to_dict().items() if key != "name"},
            "note": _note(objective, prepare is not None),
            "rows": _weights(objective, of_rows, own=prepare is not None),
            "histogram": _histogram(objective, of_sample) if of_sample else None,
        }


def _weights(objective: Objective, of_rows: Sequence[TokenStats], *, own: bool) -> list[dict[str, Any]]:
    """Return weights, further terms and selection of every row; `own` keeps the probabilities as well."""
    stats = together(of_rows)
    weight, extra = objective.weight(stats).detach().float(), objective.extra(stats).detach().float()
    selected = _selected(objective, stats)
    found, start = [], 0
    for one in of_rows:
        logprob = one.require("logprob")
        at = slice(start, start + len(logprob))
        start = at.stop
        found.append(
            {
                "weight": weight[at].tolist(),
                "extra": extra[at].tolist() if bool(extra.any()) else None,
                "selected": selected[at],
                "logprob": logprob.tolist() if own else None,
            }
        )
    return found


def _selected(objective: Any, stats: TokenStats) -> list[str]:
    """Return by which of its criteria an objective picks each token out."""
    if not hasattr(objective, "selections"):
        return [""] * len(stats.require("logprob"))
    by_entropy, by_kl, _ = (mask.tolist() for mask in objective.selections(stats))
    return [
        " and ".join(name for name, taken in (("entropy", entropy), ("KL", kl)) if taken)
        for entropy, kl in zip(by_entropy, by_kl, strict=True)
    ]


def _note(objective: Objective, changed: bool) -> str:
    notes = []
    if objective.scope == "batch":
        notes.append("selected among the rows shown together; in training, among those of a micro-batch")
    if changed:
        notes.append("the model reads inputs mixed with its own greedy tokens: its probabilities are of these inputs")
    return "; ".join(notes)


def _histogram(objective: Objective, of_sample: Sequence[TokenStats]) -> dict[str, Any]:
    import torch

    weight = objective.weight(together(of_sample)).detach().float()
    low, high = min(0.0, float(weight.min())), max(1.0, float(weight.max()))
    counts = torch.histc(weight, bins=BINS, min=low, max=high).long().tolist()
    edges = [low + (high - low) * place / BINS for place in range(BINS + 1)]
    zero = int((weight == 0).sum())
    return {"edges": edges, "counts": counts, "zero": zero, "tokens": len(weight), "rows": len(of_sample)}


def _row_record(piece: Piece, stats: TokenStats, tokenizer: Any) -> dict[str, Any]:
    trained = [place for place in range(1, len(piece.ids)) if piece.labels[place] != -100]
    values = {name: [round(value, 6) for value in stats.require(name).tolist()] for name in SHOWN}
    return {"row": piece.row, "text": [_text(tokenizer, one) for one in piece.ids], "trained": trained, **values}


def _text(tokenizer: Any, token: int) -> str:
    """Return a token's text with its leading space; the vocabulary's own spelling where it is part of a character."""
    spelling = str(tokenizer.convert_ids_to_tokens(token))
    if spelling.startswith("▁"):
        return spelling.replace("▁", " ")
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return spelling if "\N{REPLACEMENT CHARACTER}" in text or not text else text
