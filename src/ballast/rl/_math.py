"""Whether math-verify can read an answer off a text; runs in a worker process, as its verdicts do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from math_verify import parse


def answered(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 if math-verify finds an answer in `completion`, right or wrong, else 0.0."""
    return float(bool(parse(completion, parsing_timeout=None)))
