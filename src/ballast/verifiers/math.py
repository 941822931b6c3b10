"""math-verify as a verifier; runs in a worker process.

math-verify guards itself with a signal alarm, which works in the main thread only and elsewhere turns every answer into
a silent 0; switched off, a power tower can run for ever. So its alarm is off and the worker's clock is on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from math_verify import parse, verify


def last_answer_form(answer: str) -> str:
    """Return the reference answer as math-verify reads it: the part after ``####``, LaTeX between dollar signs."""
    answer = answer.rsplit("####", 1)[-1].strip()
    return answer if "$" in answer or "\\boxed" in answer else f"${answer}$"


def judge(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 if the last answer in `completion` equals the row's ``answer``, else 0.0.

    Raises:
        ValueError: if the row's answer holds nothing to compare with.
    """
    gold = parse(last_answer_form(row["answer"]), parsing_timeout=None, raise_on_error=True)
    if not gold:
        raise ValueError(f"no mathematical answer found in the row's answer {row['answer'][:80]!r}")
    given = parse(completion, parsing_timeout=None)
    return float(verify(gold, given, timeout_seconds=None, raise_on_error=True))


def answered(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 if math-verify finds an answer in `completion`, right or wrong, else 0.0."""
    return float(bool(parse(completion, parsing_timeout=None)))
