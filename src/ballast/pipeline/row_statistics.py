"""Statistics of every trained token of chosen rows, under a live model and a reference; loads torch on use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.config.training import training_config
from ballast.errors import BallastError
from ballast.limits import check_tokenizer, positions
from ballast.protocols import Model

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ballast.stats import TokenStats

Prepare = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Piece:
    """A row as training sees it; a row that is split at the maximum length has several.

    `columns` are the data's own, by the names that objectives give them, one value for each token.
    """

    row: int
    ids: list[int]
    labels: list[int]
    columns: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Models:
    """The live model, the reference and their tokenizer; `vocab_size` where the two differ by padding rows."""

    live: Model
    reference: Model
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int | None


def load_models(recipe: Recipe, model: str | None) -> Models:
    """Return the live model (the recipe's, or `model`) and the recipe's reference; one object if they are equal.

    Raises:
        BallastError: one of them cannot be loaded, or their vocabularies differ.
    """
    from ballast.head import lm_head
    from ballast.reference.providers import AsItStands, check_vocabulary

    assert recipe.model is not None
    section = models.resolve(recipe.model)
    live_section = section
    if model is not None:
        live_section = models.resolve(models.section_of(model, recipe.model))
        problem = models.check_folder(live_section.path) or (
            live_section.adapter and models.check_adapter(live_section.adapter)
        )
        if problem:
            raise BallastError(f"--model {problem}")
    tokenizer = models.load_tokenizer(section, recipe.training)
    check_tokenizer(live_section.path, models.load_config(live_section), tokenizer)
    live = _load_model(live_section)
    reference_section = _reference_section(recipe, section)
    reference = live if reference_section == live_section else _load_model(reference_section)
    check_vocabulary(live, AsItStands(reference), len(tokenizer))
    same_size = len(lm_head(live).weight) == len(lm_head(reference).weight)
    return Models(live, reference, tokenizer, None if same_size else len(tokenizer))


def _load_model(section: ModelSection) -> Model:
    model: Model = models.load_model(section)
    model.to(models.default_device())
    return model


def _reference_section(recipe: Recipe, base: ModelSection) -> ModelSection:
    """Return what objectives compare with: the recipe's model, it without its adapter, or another model."""
    if recipe.reference.model is not None:
        return models.resolve(models.section_of(recipe.reference.model, base))
    if recipe.reference.use == "adapter-off":
        return base.model_copy(update={"adapter": None, "lora": None})
    return base


def reference_name(recipe: Recipe) -> str:
    if recipe.reference.model is not None:
        return recipe.reference.model
    base = str(recipe.model.path if recipe.model else "")
    return f"{base} without its adapter" if recipe.reference.use == "adapter-off" else base


def row_pieces(
    recipe: Recipe,
    raw: Dataset,
    rows: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    columns: Mapping[str, str],
) -> list[Piece]:
    """Tokenise rows as training does, with these columns of the data, ``{name: column}``.

    A single row without a trained token is refused, among others it is left out.
    """
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    from ballast.data import PrepareOptions, prepare

    with_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        context = positions(models.load_config(models.resolve(recipe.model))) if recipe.model else None
        options = PrepareOptions.from_training_args(training_config(recipe), context=context)
        part = raw.select([row - 1 for row in rows])
        read, options = tuple(dict.fromkeys(columns.values())), replace(options, shuffle_dataset=False)
        prepared = prepare(part, tokenizer, options, name="train", columns=read)
    except BallastError as error:
        raise BallastError(_with_row(str(error), rows)) from error
    finally:
        if with_bars:
            enable_progress_bars()
    return [
        Piece(rows[0], row["input_ids"], row["labels"], {name: row[column] for name, column in columns.items()})
        for row in prepared.dataset
    ]


def _with_row(message: str, rows: Sequence[int]) -> str:
    """Return a message about one row of a part of the data with the row's own number."""
    text = message.removeprefix("train: ")
    return f"row {rows[0]}: {text.removeprefix('row 1: ')}" if len(rows) == 1 else f"data.train: {text}"


def statistics(
    loaded: Models, pieces: Sequence[Piece], fields: tuple[str, ...], prepare: Prepare | None = None
) -> list[TokenStats]:
    """Return statistics of each piece's trained tokens, on the CPU: the fields, ``logprob`` among them, and the layout.

    `prepare` changes what the live model reads.
    """
    return [_piece_statistics(loaded, piece, fields, sequence, prepare) for sequence, piece in enumerate(pieces)]


def _piece_statistics(
    loaded: Models, piece: Piece, fields: tuple[str, ...], sequence: int, prepare: Prepare | None
) -> TokenStats:
    import torch

    from ballast.evaluation.generation import end_ids
    from ballast.head import backbone, backbone_hidden, lm_head, token_stats, trained_positions, unwrapped
    from ballast.reference.providers import evaluating
    from ballast.training.inputs import changed_inputs

    live, reference = loaded.live, loaded.reference
    ids_BT, labels_BT = (torch.tensor([values], device=live.device) for values in (piece.ids, piece.labels))
    mask_BT, targets_N = trained_positions(labels_BT)
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    with torch.no_grad(), evaluating(live), evaluating(reference):
        ref_hidden_BTH = backbone_hidden(reference, **inputs)
        if prepare is not None:
            causal = unwrapped(live)
            changed = changed_inputs(causal, inputs, labels_BT, prepare)
            hidden_BTH = backbone(causal)(**changed, use_cache=False).last_hidden_state
        else:
            hidden_BTH = ref_hidden_BTH if live is reference else backbone_hidden(live, **inputs)
        stats = token_stats(
            hidden_BTH[:, :-1][mask_BT],
            lm_head(live),
            targets_N,
            fields=fields,
            reference=(ref_hidden_BTH[:, :-1][mask_BT], lm_head(reference)),
            vocab_size=loaded.vocab_size,
        )
    place = mask_BT.nonzero()[:, 1].cpu() + 1
    on_cpu = {name: stats.require(name).float().cpu() for name in fields if name != "vocabulary"}
    for name, values in on_cpu.items():
        if not bool(values.isfinite().all()):
            raise BallastError(
                f"row {piece.row}: its {name} is not finite, so weights would mean nothing; a model has diverged, name "
                "another checkpoint"
            )
    ends = torch.tensor(sorted(end_ids(live, loaded.tokenizer)), device=targets_N.device, dtype=targets_N.dtype)
    layout = {"sequence": torch.full_like(place, sequence), "position": place, "end": torch.isin(targets_N, ends).cpu()}
    own = {name: torch.tensor(values)[place] for name, values in piece.columns.items()}
    # Nothing has been trained: the model is the old one too.
    start = {"old_logprob": on_cpu["logprob"], "progress": torch.zeros(len(place))}
    return stats.changed({**on_cpu, **layout, **own, **start})


def concatenated(parts: Sequence[TokenStats]) -> TokenStats:
    """Return the statistics of several pieces as one batch."""
    import torch

    joined = {name: torch.cat([part.require(name) for part in parts]) for name in parts[0].tensors()}
    return parts[0].changed(joined)
