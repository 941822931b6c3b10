"""What every way through the head refuses before it computes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.errors import BallastError, suggest
from ballast.head.lm_head import LMHead
from ballast.statistics import check_statistics, find, is_live, is_of_models, is_pair
from ballast.stats import FIELDS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor


def as_head(weight: Tensor | LMHead, bias: Tensor | None, softcap: float | None, scale: float) -> LMHead:
    """Return the head that the arguments describe.

    Raises:
        ValueError: if an `LMHead` comes with a bias, a cap or a scale beside it.
    """
    if not isinstance(weight, LMHead):
        return LMHead(weight, bias, softcap, scale)
    if bias is not None or softcap is not None or scale != 1.0:
        raise ValueError("an LMHead brings its own bias, softcap and scale: give them there, not beside it")
    return weight


def frozen(hidden: Tensor, weight: Tensor | LMHead) -> tuple[Tensor, LMHead]:
    """Return a reference's hidden states and head without gradient."""
    head = weight if isinstance(weight, LMHead) else LMHead(weight)
    bias = None if head.bias is None else head.bias.detach()
    return hidden.detach(), LMHead(head.weight.detach(), bias, head.softcap, head.scale)


def vocabulary_asked(head: LMHead, fields: tuple[str, ...]) -> tuple[int | None, tuple[str, ...]]:
    """Return the size of the vocabulary where it is among the fields, and the other fields, each once."""
    size = len(head.weight) if "vocabulary" in fields else None
    return size, tuple(name for name in dict.fromkeys(fields) if name != "vocabulary")


def check(
    hidden: Tensor,
    head: LMHead,
    targets: Tensor,
    fields: tuple[str, ...],
    reference: tuple[Tensor, LMHead] | None,
    vocab_size: int | None,
) -> None:
    """Refuse fields that cannot be computed from these inputs, shapes that do not fit and targets that are no tokens.

    Raises:
        ValueError: for any of them.
    """
    for name in fields:
        if name not in FIELDS and find(name) is None:
            raise ValueError(f"unknown field {name!r}; known: {', '.join(FIELDS)}")
        if not is_of_models(name):
            raise ValueError(f"the field {name!r} comes from the rows, not from the logits")
        if reference is None and not is_live(name):
            raise ValueError(f"the field {name!r} needs `reference`")
    check_statistics(fields, len(head.weight) if vocab_size is None else vocab_size)
    pairs = [(hidden, head)] if reference is None else [(hidden, head), reference]
    for states, projection in pairs:
        if states.dim() != 2 or targets.dim() != 1 or len(states) != len(targets):
            raise ValueError(f"expected hidden [N, H] and targets [N], got {[*states.shape]} and {[*targets.shape]}")
        if states.shape[1] != projection.weight.shape[1]:
            raise ValueError(f"hidden size {states.shape[1]} does not fit an LM head of {[*projection.weight.shape]}")
    sizes = [len(projection.weight) for _, projection in pairs]
    if len({*sizes}) > 1 and vocab_size is None:
        raise ValueError(
            f"the vocabularies differ ({sizes[0]} and {sizes[1]} rows): give `vocab_size`, the number of tokens that "
            "both have, or logits of different tokens would be compared"
        )
    if vocab_size is not None and not 0 < vocab_size <= min(sizes):
        raise ValueError(f"vocab_size {vocab_size} exceeds a vocabulary of {min(sizes)} rows")
    # On an accelerator the look would wait for the device; there the gather itself fails.
    if targets.device.type == "cpu" and len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < min(sizes):
        raise ValueError(f"targets must lie in [0, {min(sizes)}): ignored positions are to be left out beforehand")


def checked_columns(
    columns: Mapping[str, Tensor] | None, targets: Tensor, declared: Collection[str] = ()
) -> Mapping[str, Tensor]:
    """Return the columns, none for None; `declared` are names that are no field of `TokenStats`.

    Raises:
        BallastError: for an unknown name, a statistic of the live model, another length than the targets', another
            device, or a gradient.
    """
    for name, column in (columns or {}).items():
        if name == "vocabulary" or is_live(name) or is_pair(name):
            raise BallastError(
                f"columns: {name!r} follows from the live model, a column of it would be trained on as a constant; "
                "leave it out, it is computed here"
            )
        if name not in (*FIELDS, *declared):
            raise BallastError(f"columns: unknown field {name!r}{suggest(name, FIELDS)}")
        if column.shape != targets.shape or column.device != targets.device:
            raise BallastError(
                f"columns: {name!r} is {[*column.shape]} on {column.device}, the targets {[*targets.shape]} on "
                f"{targets.device}: values would meet other tokens; give one per target, in their order"
            )
        if column.requires_grad:
            raise BallastError(f"columns: {name!r} carries a gradient, which would be lost; detach it")
    return columns or {}
