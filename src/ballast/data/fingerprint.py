"""Content hashes of plain values, and of a tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ballast.protocols import Tokenizer

DIGEST_BYTES = 16


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Return the content hash of a tokenizer, as hex: vocabulary, merges, normalisation, special tokens, chat template.

    The padding token, the side of padding and the longest length are left out: trainers set them, and neither token
    ids nor labels depend on them.
    """
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    parts: dict[str, Any] = {"special": special, "template": getattr(tokenizer, "chat_template", None)}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts["backend"] = json.loads(backend.to_str())
        for name in ("truncation", "padding"):
            parts["backend"].pop(name, None)
    else:
        parts["vocabulary"] = tokenizer.get_vocab()
        parts["settings"] = {name: getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")}
    return content_hash(parts)


def content_hash(parts: Any) -> str:
    """Return the hash of a JSON value as hex, whatever the order of its keys; sets are sorted."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=_plain)
    # A vocabulary may hold lone surrogates, which strict UTF-8 refuses.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return str(value)
