"""Which token ends an answer, where the tokenizer does not say."""

from __future__ import annotations

from typing import Any

from ballast import models
from ballast.config.recipe import ModelSection
from ballast.errors import BallastError
from ballast.protocols import Say


def end_token(section: ModelSection, tokenizer: Any, asked: str | None, say: Say) -> dict[str, str]:
    """Return the training setting that names an end token, empty where the tokenizer does itself.

    Args:
        asked: the token that the user names; None looks into the model's configurations.

    Raises:
        BallastError: it is not in the vocabulary, or there is none, so that no answer would ever end.
    """
    if asked is not None:
        if asked not in tokenizer.get_vocab():
            raise BallastError(f"--eos-token: {asked!r} is not in the tokenizer's vocabulary; name one of its tokens")
        return {"eos_token": asked}
    if tokenizer.eos_token is not None:
        return {}
    if (found := _configured(section, tokenizer)) is None:
        raise BallastError(
            f"{section.path}: neither the tokenizer nor the model names an end token, so no answer would be taught to "
            "end; name one of the vocabulary: --eos-token TOKEN"
        )
    say(f"end token: {found}, by the model's configuration; the tokenizer names none")
    return {"eos_token": found}


def _configured(section: ModelSection, tokenizer: Any) -> str | None:
    """Return the first end token of the model's configuration of generation, else of its own."""
    from transformers import GenerationConfig

    try:
        generation: Any = GenerationConfig.from_pretrained(section.path).eos_token_id
    except (OSError, ValueError):
        generation = None
    own = getattr(models.load_config(section).get_text_config(), "eos_token_id", None)
    ids = generation if generation is not None else own
    first = ids[0] if isinstance(ids, list) else ids
    token = None if first is None else tokenizer.convert_ids_to_tokens(first)
    return token if token in tokenizer.get_vocab() else None
