"""A GGUF file as a folder in transformers' format."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from ballast.errors import BallastError
from ballast.files import write_atomically
from ballast.gguf.header import digest_of, first_line, opened, value
from ballast.text import inert

CARD = "README.md"
END_TOKENS = ("eos", "eot", "eom")
"""What ends a text, a turn, and a message that asks for a tool, as ``tokenizer.ggml.*_token_id`` names them."""
ROPE = "rope_freqs.weight"
"""Tensor with a divisor for each frequency of the positions; transformers passes over it."""
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_CONTEXT = 8192
"""Positions that Llama 3 was trained on before its context was stretched; llama.cpp's default where a file has none."""


def convert(file: Path, folder: Path, *, dtype: str = "float32", name: str | None = None) -> None:
    """Write a GGUF file as a folder in transformers' format: safetensors, tokenizer, chat template, end tokens, card.

    Args:
        folder: a new one.
        dtype: of the weights, such as ``float32``.
        name: what the file is called in errors and on the card.

    Raises:
        BallastError: it cannot be read, or weights are missing in it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, reader = name or str(file), opened(name or str(file), file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that mapped memory is read only
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            found: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=getattr(torch, dtype), output_loading_info=True
            )
    except Exception as error:  # torch, tokenizers and transformers each raise their own
        raise BallastError(f"{path}: cannot be unpacked: {first_line(error)}") from error
    model, loaded = found
    if missing := sorted(loaded["missing_keys"]):
        raise BallastError(f"{path}: lacks the weights {missing[0]!r}, which would be random; take another file")
    # The weights are full numbers now; transformers would refuse to save what it takes for a quantised model.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""
    _stretch_positions(path, model, reader)
    _set_end(model, tokenizer, reader)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _drop_foreign_tokens(folder / "tokenizer.json", len(reader.fields["tokenizer.ggml.tokens"].data))
    write_atomically(folder / CARD, _card(path, digest_of(file), value(reader, "general.license")))


def _stretch_positions(path: str, model: Any, reader: Any) -> None:
    """Set the stretched positions of Llama 3.1, which a file holds as a divisor for each frequency.

    Raises:
        BallastError: they are others than a configuration can say.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found = next((tensor for tensor in reader.tensors if tensor.name == ROPE), None)
    if found is None:
        return
    divisors, config = torch.tensor(found.data).float().flatten(), model.config
    plain = dict(config.rope_parameters)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = 1 / plain["rope_theta"] ** (torch.arange(0, head, 2).float() / head)
    config.rope_parameters = {
        **plain,
        **LLAMA3,
        "factor": float(divisors.max()),
        "original_max_position_embeddings": LLAMA3_CONTEXT,
    }
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if divisors.shape != stretched.shape or not torch.allclose(frequencies / divisors, stretched, rtol=1e-4):
        raise BallastError(
            f"{path}: stretches its positions by {ROPE} in another way than Llama 3.1, which a configuration cannot "
            "say; take the model's folder in transformers format"
        )


def _set_end(model: Any, tokenizer: Any, reader: Any) -> None:
    """Let generation end with every end token that the file names, and texts with the first of them."""
    named = [value(reader, f"tokenizer.ggml.{name}_token_id") for name in END_TOKENS]
    ends = list(dict.fromkeys(int(token) for token in named if token is not None))
    if tokenizer.eos_token_id is None and ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
        config.eos_token_id = ends[0] if len(ends) == 1 else ends or None


def _drop_foreign_tokens(path: Path, size: int) -> None:
    """Take out tokens that the file does not have: transformers adds GPT-2's end of text to byte-level vocabularies."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < size]
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False))


def _card(path: str, sha256: str, licence: Any) -> str:
    named = isinstance(licence, str) and re.fullmatch(r"[\w.+-]+", licence, re.ASCII)
    front = f"---\nlicense: {licence}\n---\n\n" if named else ""
    shown = inert(Path(path).name).replace("`", "'")
    return f"{front}Unpacked by ballast from the GGUF file `{shown}`, SHA-256 `{sha256}`.\n"
