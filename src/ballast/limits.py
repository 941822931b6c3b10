"""What a model has room for, as its configuration says: positions of a sequence, and token ids.

One rule for learned positions, which end there, and for rotary ones, which go on untrained: no sequence is longer than
the context. Demonstrations are cut to it, as `max_length` cuts them; what is judged or measured is refused.
"""

from __future__ import annotations

from typing import Any

from ballast.errors import BallastError
from ballast.protocols import Model, Tokenizer


def context_length(model: Model) -> int | None:
    """Return the number of positions the model was built for, or None when its configuration names none."""
    return positions(model.config)


def positions(config: Any) -> int | None:
    """Return the number of positions that a transformers configuration names, or None (ALiBi, recurrent models)."""
    text = config.get_text_config()
    named = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 0
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "yarn":
        # A stretched model keeps the length that it was trained at first; some configurations name that one alone.
        original = rope.get("original_max_position_embeddings") or named
        named = max(named, int(original * rope.get("factor", 1)))
    return named if named > 0 else None


def check_length(what: str, tokens: int, context: int | None) -> None:
    """Refuse a sequence that is longer than the model's context, None being without bound.

    Raises:
        BallastError: naming `what` is too long.
    """
    if context is not None and tokens > context:
        raise BallastError(
            f"{what}: {tokens} tokens exceed the model's context of {context}: positions beyond it are untrained and "
            "would score as noise; shorten it or leave it out"
        )


def check_tokenizer(name: str, config: Any, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer with ids that the model has no row for.

    Raises:
        BallastError: naming the largest id and the model's size.
    """
    size = getattr(config.get_text_config(), "vocab_size", None)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if size is not None and largest >= size:
        raise BallastError(
            f"{name}: the tokenizer has ids up to {largest}, the model only {size} rows: it belongs to another model, "
            "and ids beyond would fail in the middle of a run; put the model's own tokenizer into the folder"
        )
