"""What a GGUF file holds, by its header: whether that is a whole language model that transformers can read."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from ballast.errors import BallastError

MAGIC = b"GGUF"
SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
LONG_ROPE = ("rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that stretch positions; transformers passes over them."""


def check_file(path: str, file: Path) -> None:
    """Refuse a file that is no GGUF, or by its name a part of one.

    Raises:
        BallastError: naming `path`.
    """
    with file.open("rb") as content:
        if content.read(len(MAGIC)) != MAGIC:
            raise BallastError(f"{path}: is not a GGUF file: it does not begin with GGUF; name another, or a folder")
    parts = SPLIT.search(path)
    if parts is not None and int(parts[1]) > 1:
        _refuse_split(path, int(parts[1]))


def _refuse_split(path: str, parts: int) -> None:
    raise BallastError(
        f"{path}: is one of {parts} parts, and the rest of the weights would be missing; join them first: "
        "llama-gguf-split --merge FIRST-PART WHOLE.gguf"
    )


def check_header(path: str, file: Path) -> int:
    """Refuse a file without a whole language model and a tokenizer; return the bytes of its weights in float32.

    Raises:
        BallastError: saying what it is.
    """
    reader = opened(path, file)
    kind, architecture = value(reader, "general.type"), value(reader, "general.architecture")
    if kind == "adapter" or "adapter.type" in reader.fields:
        raise BallastError(
            f"{path}: holds an adapter, no model; convert the adapter to PEFT's format and set model.adapter to it"
        )
    if (parts := value(reader, "split.count") or 1) > 1:
        _refuse_split(path, int(parts))
    if not reader.tensors:
        raise BallastError(f"{path}: holds no weights, a vocabulary alone; name the file of the model")
    _check_architecture(path, file, str(architecture))
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise BallastError(
            f"{path}: has no tokenizer in it, so no text could become tokens; take a file that has, or the model's "
            "folder in transformers format"
        )
    for name in LONG_ROPE:
        if any(tensor.name == name for tensor in reader.tensors):
            raise BallastError(
                f"{path}: stretches its positions by {name}, which transformers does not read: texts would get other "
                "positions than the model was trained on; take the model's folder in transformers format"
            )
    return 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)


def _check_architecture(path: str, file: Path, architecture: str) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    remedy = "take the model's folder in transformers format"
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # of whatever the parts of a file are made into
        reason = first_line(error)
        raise BallastError(
            f"{path}: transformers cannot read a GGUF of the architecture {architecture!r} ({reason}); {remedy}"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BallastError(f"{path}: a {architecture} model is no causal language model")


def opened(path: str, file: Path) -> Any:
    """Return a `gguf.GGUFReader`, which maps the file.

    Raises:
        BallastError: it is cut short or damaged.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except Exception as error:  # numpy's and struct's, of lengths that do not fit
        raise BallastError(
            f"{path}: is cut short or damaged ({first_line(error)}); download it again and compare its digest"
        ) from error


def value(reader: Any, key: str) -> Any:
    """Return what a header has under a key, None where it has none."""
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def first_line(error: Exception) -> str:
    """Return what an error says first."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
