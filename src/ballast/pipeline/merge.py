"""`ballast merge`: an adapter put into the weights that it was trained on, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import checkpoints, models
from ballast.config.recipe import ModelSection, Recipe
from ballast.config.sections import QuantizationSection
from ballast.errors import BallastError
from ballast.files import check_place, temporary_folder
from ballast.limits import context_length
from ballast.protocols import Say
from ballast.records.runs import read_record
from ballast.records.write import disk_full_as_error

if TYPE_CHECKING:
    import numpy as np

TOKENS = 256
"""Random tokens on which the merged model is compared with the adapted one."""
SAME = 1e-3
"""Largest change of a log-probability, in nats, that float32's rounding explains."""


@dataclass(frozen=True)
class Merged:
    """Where a merged model lies, and by how many nats it moved any of `TOKENS` log-probabilities at most.

    Attributes:
        change: through merging, in float32.
        rounding: through merging and storing in `dtype`.
    """

    folder: Path
    dtype: str
    change: float
    rounding: float


def run_merge(
    path: str, output: Path, *, base: str | None = None, dtype: str | None = None, say: Say = print
) -> Merged:
    """Write the model of a folder with its PEFT adapter in the weights, as a model that needs no adapter.

    It is added in float32 and stored in `dtype`, by default that of the base. An adapter that was trained on weights in
    few bits goes into those in full precision, and what that changes is said.

    Args:
        base: the model to add to, in place of the one that the adapter names.

    Raises:
        BallastError: there is no adapter, the base is quantised, `output` has something in it, or the merged model's
            log-probabilities are others. Nothing is written then.
    """
    section = _section(path, base)
    check_place("--output", output)
    if output.exists() and any(output.iterdir()):
        raise BallastError(f"--output: {output}: is not empty, files would be mixed; choose another folder")
    config = models.load_config(section)
    if getattr(config, "quantization_config", None):
        raise BallastError(
            f"{section.path}: its weights are quantised, and merging would round the adapter to them; name the base in "
            "full precision: --base FOLDER"
        )
    tokenizer, trained_on = models.load_tokenizer(section), _quantisation(path)
    model: Any = models.load_model(section.model_copy(update={"dtype": "float32"}))
    ids = _ids(config, context_length(model))
    before = _logprobs(model, ids)
    model = model.merge_and_unload(safe_merge=True)
    change = _largest(before, _logprobs(model, ids))
    if not change <= SAME:
        raise BallastError(
            f"{path}: merged, a log-probability moves by up to {change:.2g} nats, so "
            "it would be another model; go on using the adapter, and please report its settings"
        )
    stored = dtype or _name(config.get_text_config().dtype) or "float32"
    model = model.to(getattr(_torch(), stored))
    merged = Merged(output, stored, change, _largest(before, _logprobs(model, ids)))
    _write(model, tokenizer, output)
    del model
    say(
        f"{output}: merged and stored in {stored}; of {len(ids)} log-probabilities none moved by more than "
        f"{merged.change:.1e} nats through merging, {merged.rounding:.1e} with the rounding of {stored}"
    )
    if trained_on is not None:
        coded = _logprobs(models.load_model(section.changed({"quantization": trained_on})), ids)
        say(
            f"{output}: the adapter was trained on weights in {trained_on.bits} bits, and is merged into those in full "
            f"precision: that moves these log-probabilities by {float(abs(coded - before).mean()):.2g} nats on "
            f"average, {_largest(coded, before):.2g} at most"
        )
    return merged


def _quantisation(path: str) -> QuantizationSection | None:
    """Return what the base was quantised to when the adapter was trained, as the record of its run says."""
    record = read_record(Path(path))
    if record is None:
        return None
    model = Recipe.from_dict({"model": record.recipe["model"]}).model if record.recipe.get("model") else None
    return None if model is None else model.quantization


def _section(path: str, base: str | None) -> ModelSection:
    section = models.section_of(path)
    if base is not None:
        if problem := models.check_folder(base):
            raise BallastError(f"--base: {problem}")
        section = models.section_of(path, models.resolve(ModelSection(path=base)))
    if section.adapter is None:
        problem = models.check_folder(section.path)
        raise BallastError(problem or f"{path}: is a model without an adapter: there is nothing to merge")
    return section


def _write(model: Any, tokenizer: Any, output: Path) -> None:
    """Write beside the place, and move there when whole."""
    with temporary_folder(f".{output.name}.", output.parent) as beside:
        made = beside / "merged"
        with disk_full_as_error(output):
            model.save_pretrained(str(made))
            tokenizer.save_pretrained(str(made))
        checkpoints.put_in_place(made, output)


def _ids(config: Any, context: int | None) -> list[int]:
    generator = _torch().Generator().manual_seed(0)
    size = (min(TOKENS, context or TOKENS),)
    ids: list[int] = _torch().randint(config.get_text_config().vocab_size, size, generator=generator).tolist()
    return ids


def _logprobs(model: Any, ids: list[int]) -> np.ndarray:
    from ballast.evaluation.scoring import ScoredSequence, sequence_statistics

    return sequence_statistics(model, [ScoredSequence(tuple(ids), 1)], ("logprob",))[0]["logprob"]


def _largest(left: np.ndarray, right: np.ndarray) -> float:
    return float(abs(left - right).max())


def _name(dtype: object) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _torch() -> Any:
    import torch

    return torch
