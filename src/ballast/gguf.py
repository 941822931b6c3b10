"""GGUF files as models: each is unpacked once, to a folder in transformers' format that is named by its content.

Below the cache (`ballast.data.cache`) lies ``gguf/SHA256`` for each file: float32 weights as safetensors,
tokenizer with chat template, generation configuration with all end tokens, a card with the licence. A folder is there
in full or not at all; all of them may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ballast.errors import BallastError
from ballast.files import place_problem, write_atomically
from ballast.packages import refuse_without
from ballast.records.write import disk_full_as_error
from ballast.terminal import print_error
from ballast.text import inert

MAGIC = b"GGUF"
SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
CARD = "README.md"
END_TOKENS = ("eos", "eot", "eom")
"""What ends a text, a turn, and a message that asks for a tool, as ``tokenizer.ggml.*_token_id`` names them."""
ROPE, LONG_ROPE = "rope_freqs.weight", ("rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that stretch positions; transformers passes over both."""
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_CONTEXT = 8192
"""Positions that Llama 3 was trained on before its context was stretched; llama.cpp's default where a file has none."""


def is_gguf(path: str) -> bool:
    """Return whether a model's path is a GGUF file by name or content."""
    if path.lower().endswith(".gguf"):
        return not Path(path).expanduser().is_dir()
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def unpacked(path: str) -> Path:
    """Return the folder of a GGUF file, unpacked unless it was before; one process at a time unpacks.

    Raises:
        BallastError: it cannot be used as a model, or there is no place for it.
    """
    found = _looked_at(path)
    if isinstance(found, str):
        raise BallastError(found)
    return found


def problem(path: str) -> str | None:
    """Return what makes a GGUF file unusable as a model, None where it is unpacked."""
    found = _looked_at(path)
    return found if isinstance(found, str) else None


def folder_problem(folder: Path) -> str | None:
    """Return what to say of a folder without a configuration that holds GGUF files; None where it holds none."""
    found = sorted(file.name for file in folder.glob("*.gguf"))
    if not found:
        return None
    others = f" and {len(found) - 1} more, each a model of its own" if len(found) > 1 else ""
    return f"{folder}: holds the GGUF {found[0]}{others}; name the file: {folder / found[0]}"


def digest(path: str) -> str | None:
    """Return the SHA-256 of a GGUF file, None where the path is none or there is none."""
    file = Path(path).expanduser()
    if not is_gguf(path) or not file.is_file():
        return None
    found = file.stat()
    return _digest(file.resolve(), _root(), found.st_size, found.st_mtime_ns)


def _looked_at(path: str) -> Path | str:
    """Return the folder of a GGUF file, or what is wrong with it."""
    file = Path(path).expanduser()
    if not file.is_file():
        return f"{path}: no such file; a GGUF is read from this disk alone, so download it first and name the file"
    found = file.stat()
    return _made(path, file.resolve(), _root(), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _made(path: str, file: Path, root: Path | None, size: int, changed: int) -> Path | str:
    """The same, once in a process as long as the file stays as it is."""
    try:
        _check_file(path, file)
        return _unpack(path, file, root, _digest(file, root, size, changed))
    except BallastError as error:
        return str(error)


def _unpack(path: str, file: Path, root: Path | None, sha256: str) -> Path:
    from filelock import FileLock

    if root is None:
        raise BallastError(f"{path}: a GGUF is unpacked into the cache, which BALLAST_CACHE switches off; set it")
    entry = root / sha256
    if (entry / "config.json").is_file():
        return entry
    refuse_without("gguf", "gguf", path, "a folder in transformers format")
    needed = _check_header(path, file)
    if full := place_problem(root, needed):
        raise BallastError(f"{path}: cannot be unpacked: {full} (BALLAST_CACHE)")
    with disk_full_as_error(root):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            # Another process may have made it meanwhile.
            if not (entry / "config.json").is_file():
                print_error(f"{path}: is unpacked once, to {entry} ({needed / 1e6:,.0f} MB)")
                _fill(path, file, entry)
    return entry


def _fill(path: str, file: Path, entry: Path) -> None:
    part = entry.with_name(f"{entry.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(entry, ignore_errors=True)
    try:
        convert(file, part, name=path)
        part.rename(entry)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _root() -> Path | None:
    from ballast.data import cache

    root = cache.folder()
    return None if root is None else root / "gguf"


def _check_file(path: str, file: Path) -> None:
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


def _check_header(path: str, file: Path) -> int:
    """Refuse a file without a whole language model and a tokenizer; return the bytes of its weights in float32.

    Raises:
        BallastError: saying what it is.
    """
    reader = _reader(path, file)
    kind, architecture = _value(reader, "general.type"), _value(reader, "general.architecture")
    if kind == "adapter" or "adapter.type" in reader.fields:
        raise BallastError(
            f"{path}: holds an adapter, no model; convert the adapter to PEFT's format and set model.adapter to it"
        )
    if (parts := _value(reader, "split.count") or 1) > 1:
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
        reason = _first_line(error)
        raise BallastError(
            f"{path}: transformers cannot read a GGUF of the architecture {architecture!r} ({reason}); {remedy}"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BallastError(f"{path}: a {architecture} model is no causal language model")


def _reader(path: str, file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except Exception as error:  # numpy's and struct's, of lengths that do not fit
        raise BallastError(
            f"{path}: is cut short or damaged ({_first_line(error)}); download it again and compare its digest"
        ) from error


def _value(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


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

    path, reader = name or str(file), _reader(name or str(file), file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that mapped memory is read only
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            found: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=getattr(torch, dtype), output_loading_info=True
            )
    except Exception as error:  # torch, tokenizers and transformers each raise their own
        raise BallastError(f"{path}: cannot be unpacked: {_first_line(error)}") from error
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
    write_atomically(folder / CARD, _card(path, _digest_of(file), _value(reader, "general.license")))


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
    named = [_value(reader, f"tokenizer.ggml.{name}_token_id") for name in END_TOKENS]
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


@lru_cache(maxsize=64)
def _digest(file: Path, root: Path | None, size: int, changed: int) -> str:
    """Return the digest of a file, which is kept beside the folders: a large file takes as long as its disk."""
    if root is None:
        return _digest_of(file)
    kept = root / f"{hashlib.blake2b(str(file).encode(), digest_size=16).hexdigest()}.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["size"] == size and known["changed"] == changed and re.fullmatch("[0-9a-f]{64}", known["sha256"]):
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = {"file": str(file), "size": size, "changed": changed, "sha256": _digest_of(file)}
    with suppress(OSError):  # it is made again then
        write_atomically(kept, json.dumps(found) + "\n")
    return str(found["sha256"])


def _digest_of(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _first_line(error: Exception) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
