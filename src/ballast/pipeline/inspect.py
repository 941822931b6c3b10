"""`ballast inspect`: what each objective makes of every token of chosen rows, as a record that views are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.advise.ends import end_warning, end_weight, weights_tell
from ballast.config.recipe import Check, Recipe
from ballast.config.training import check_training
from ballast.errors import BallastError
from ballast.objectives import Objective
from ballast.objectives import objective as build_objective
from ballast.pipeline import sources
from ballast.pipeline.checks.common import check_data, check_model, check_required
from ballast.pipeline.row_statistics import Piece, concatenated, load_models, reference_name, row_pieces, statistics
from ballast.records.folder import TOKENS
from ballast.records.schema import SCHEMA
from ballast.records.tokens import Histogram, TokenObjective, TokenRow, TokensRecord, TokenWeights
from ballast.statistics import is_of_models
from ballast.stats import GROUP_FIELDS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ballast.stats import TokenStats

INSPECT_CHECKS: tuple[Check, ...] = (check_required("model"), check_model, check_data, check_training)
RECORDED = ("logprob", "entropy", "kl", "mass", "ref_logprob", "ref_entropy", "ref_mass")
"""Statistics in the record, beside what the objectives need."""
BINS = 20
HISTOGRAM_ROWS = 64
MAX_ROWS = 1000
REPORT_ROWS = (1, 2, 3)
"""Rows in the token views of a report by default."""


def run_inspect(
    recipe: Recipe,
    rows: str,
    *,
    objectives: Sequence[str] = (),
    model: str | None = None,
    over: int = HISTOGRAM_ROWS,
    record: Path | None = None,
) -> TokensRecord:
    """Return what objectives make of rows such as ``3,7``, and write it to a file where asked.

    Raises:
        BallastError: what `inspect_rows` refuses, or a file that cannot be written.
    """
    chosen = [parse_objective(one) for one in objectives]
    inspected = inspect_rows(recipe, parse_rows(rows), objectives=chosen, model=model, over=over)
    if record is not None:
        _write(record, inspected)
    return inspected


def write_tokens(recipe: Recipe, objectives: Sequence[Objective], folder: str | Path) -> str:
    """Write what objectives make of the first rows as ``tokens.json``; return why not where that cannot be, else "".

    Objectives on groups have no weights of a single row and are left out; one that comes twice is shown once.
    An existing file stays as it is, with the rows that were chosen for it.
    """
    path = Path(folder) / TOKENS
    single: list[Objective] = []
    for one in objectives:
        if one not in single and not set(one.needs) & set(GROUP_FIELDS):
            single.append(one)
    if path.exists() or not single:
        return ""
    try:
        _write(path, inspect_rows(recipe, REPORT_ROWS, objectives=single))
    except BallastError as error:
        return str(error)
    return ""


def _write(path: Path, record: TokensRecord) -> None:
    from ballast.records.write import unwritable_as_error, write_json

    with unwritable_as_error(path):
        write_json(path, record.plain())


def parse_rows(text: str) -> list[int]:
    """Return the rows that ``3,7`` or ``3-5`` names, counted from 1, each once.

    Raises:
        BallastError: it names none.
    """
    rows: list[int] = []
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
        if high - low >= MAX_ROWS:
            raise BallastError(f"--rows {text}: more than {MAX_ROWS} rows, which no page can show; name a few")
        rows += range(low, high + 1)
    return list(dict.fromkeys(rows))


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
        parsed = YAML(typ="safe").load(text)
    except YAMLError as error:
        first = str(error).strip().splitlines()[0]
        raise BallastError(
            f"--objective {text}: cannot be read ({first}); write {{name: NAME, option: value}}"
        ) from error
    return parsed if isinstance(parsed, dict) else text


def inspect_rows(
    recipe: Recipe,
    rows: Sequence[int],
    *,
    objectives: Sequence[str | Mapping[str, Any] | Objective] = (),
    model: str | None = None,
    over: int = HISTOGRAM_ROWS,
) -> TokensRecord:
    """Return the statistics of every token of these rows and the weight that each objective gives it.

    Args:
        rows: rows of ``data.train``, counted from 1.
        objectives: names, mappings or objectives; the recipe's where there is none.
        model: the live model, a folder or hub id; the recipe's by default, which is also the reference.
        over: first rows of the data whose weights the histograms count; 0 makes none.

    Raises:
        BallastError: a row is not there or has no trained token, or an objective cannot be shown on its own.
    """
    from ballast.training.inputs import input_change

    chosen = [build_objective(one) for one in objectives] or _own_objective(recipe)
    labels = _labels(chosen)
    for one in chosen:
        _check_objective(one)
    # Groups serve objectives on groups alone, which are refused.
    recipe = recipe.model_copy(update={"groups": None, "objective": None})
    raw = sources.load_train(recipe.data)
    if missing := [row for row in rows if row > len(raw)]:
        raise BallastError(f"--rows: there is no row {missing[0]}; data.train has {len(raw):,} rows")
    loaded = load_models(recipe, model)
    columns = {name: column for one in chosen for name, column in one.columns.items()}
    shown = [piece for row in rows for piece in row_pieces(recipe, raw, [row], loaded.tokenizer, columns)]
    sample = row_pieces(recipe, raw, range(1, min(over, len(raw)) + 1), loaded.tokenizer, columns) if over else []
    needs = (need for one in chosen for need in one.needs if is_of_models(need))
    fields = tuple(dict.fromkeys((*RECORDED, *needs)))
    of_shown, of_sample = (statistics(loaded, pieces, fields) for pieces in (shown, sample))

    def weighed(objective: Objective, label: str) -> TokenObjective:
        prepare = input_change(objective, recipe.seed, int(model is not None), 1)
        if prepare is None:
            return _token_objective(objective, label, of_shown, of_sample)
        own = (statistics(loaded, pieces, fields, prepare) for pieces in (shown, sample))
        return _token_objective(objective, label, *own, changed=True)

    return TokensRecord(
        schema=SCHEMA,
        live=model or str(recipe.model.path if recipe.model else ""),
        reference=reference_name(recipe),
        same=loaded.live is loaded.reference,
        data=tuple(recipe.data.train),
        rows=tuple(_token_row(piece, one, loaded.tokenizer) for piece, one in zip(shown, of_shown, strict=True)),
        objectives=tuple(weighed(one, label) for one, label in zip(chosen, labels, strict=True)),
    )


def _own_objective(recipe: Recipe) -> list[Objective]:
    if recipe.objective is None:
        raise BallastError("names no objective to inspect; --objective NAME, or objective=NAME")
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
        raise BallastError(f"--objective {double}: is named twice, so its table would come twice; name it once")
    return labels


def _check_objective(objective: Objective) -> None:
    needs = [name for name in objective.needs if name in GROUP_FIELDS]
    if needs:
        raise BallastError(
            f"--objective {objective.name}: its weights are the {needs[0]} of an answer among those sampled to the "
            "same prompt, and a single row has none; look at the answers with `ballast sample`"
        )


def _token_objective(
    objective: Objective,
    label: str,
    of_shown: Sequence[TokenStats],
    of_sample: Sequence[TokenStats],
    *,
    changed: bool = False,
) -> TokenObjective:
    """Return what an objective makes of the pieces shown and of the sample; `changed`: it reads inputs of its own."""
    mean = end = histogram = None
    if of_sample:
        stats = concatenated(of_sample)
        weight = objective.weight(stats).detach().float()
        histogram = _histogram(weight, len(of_sample))
        if weights_tell(objective):
            mean, end = float(weight.double().mean()), end_weight(weight, stats)
    return TokenObjective(
        label=label,
        name=objective.name,
        options={key: value for key, value in objective.to_dict().items() if key != "name"},
        note=_note(objective, changed),
        rows=_weights(objective, of_shown, with_logprob=changed),
        histogram=histogram,
        mean_weight=mean,
        end_weight=end,
        end_warning=end_warning(objective, end, mean),
    )


def _weights(objective: Objective, parts: Sequence[TokenStats], *, with_logprob: bool) -> tuple[TokenWeights, ...]:
    """Return weights, further terms and selection of every piece."""
    stats = concatenated(parts)
    sizes = [len(part.require("logprob")) for part in parts]
    weight, extra = (values.detach().float() for values in (objective.weight(stats), objective.extra(stats)))
    has_extra, selected = bool(extra.any()), iter(_selected(objective, stats))
    return tuple(
        TokenWeights(
            weight=tuple(own_weight.tolist()),
            extra=tuple(own_extra.tolist()) if has_extra else None,
            selected=tuple(next(selected) for _ in own_weight),
            logprob=tuple(part.require("logprob").tolist()) if with_logprob else None,
        )
        for part, own_weight, own_extra in zip(parts, weight.split(sizes), extra.split(sizes), strict=True)
    )


def _selected(objective: Objective, stats: TokenStats) -> list[str]:
    """Return by which of its criteria an objective selects each token."""
    selections = getattr(objective, "selections", None)
    if selections is None:
        return [""] * len(stats.require("logprob"))
    by_entropy, by_kl, _ = (mask.tolist() for mask in selections(stats))
    return [
        " and ".join(name for name, selected in (("entropy", entropy), ("KL", kl)) if selected)
        for entropy, kl in zip(by_entropy, by_kl, strict=True)
    ]


def _note(objective: Objective, changed: bool) -> str:
    notes = []
    if objective.scope in ("batch", "step"):
        within = "a micro-batch" if objective.scope == "batch" else "an optimiser step"
        notes.append(f"weighed among the rows shown together; in training, among those of {within}")
    if "old_logprob" in objective.needs:
        notes.append("at a scoring, where the model is the old one")
    if changed:
        notes.append("the model reads inputs mixed with its own greedy tokens: its probabilities are of these inputs")
    return "; ".join(notes)


def _histogram(weight: Tensor, rows: int) -> Histogram:
    """Return how often each of the weights ``[N]`` of so many rows occurs."""
    import torch

    low, high = min(0.0, float(weight.min())), max(1.0, float(weight.max()))
    return Histogram(
        edges=tuple(low + (high - low) * place / BINS for place in range(BINS + 1)),
        counts=tuple(torch.histc(weight, bins=BINS, min=low, max=high).long().tolist()),
        zero=int((weight == 0).sum()),
        tokens=len(weight),
        rows=rows,
    )


def _token_row(piece: Piece, stats: TokenStats, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    columns = {name: tuple(round(value, 6) for value in stats.require(name).tolist()) for name in RECORDED}
    return TokenRow(
        row=piece.row,
        text=tuple(_text(tokenizer, one) for one in piece.ids),
        trained=tuple(place for place in range(1, len(piece.ids)) if piece.labels[place] != -100),
        **columns,
    )


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token's text with its leading space; the vocabulary's own spelling where it is part of a character."""
    spelling = str(tokenizer.convert_ids_to_tokens(token))
    if spelling.startswith("▁"):
        return spelling.replace("▁", " ")
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    return spelling if "\N{REPLACEMENT CHARACTER}" in text or not text else text
