"""The frozen reference: live in memory, or scored once into a cache on disk."""

from ballast.reference.adapters import starts_at_base
from ballast.reference.cache import ReferenceCache
from ballast.reference.fingerprint import model_fingerprint, tokenizer_fingerprint
from ballast.reference.key import CacheKey
from ballast.reference.providers import (
    AdapterOffReference,
    LiveReference,
    ModelReference,
    check_vocabulary,
    frozen_copy,
)
from ballast.reference.resolve import resolve_reference
from ballast.reference.score import score_rows

__all__ = [
    "AdapterOffReference",
    "CacheKey",
    "LiveReference",
    "ModelReference",
    "ReferenceCache",
    "check_vocabulary",
    "frozen_copy",
    "model_fingerprint",
    "resolve_reference",
    "score_rows",
    "starts_at_base",
    "tokenizer_fingerprint",
]
