"""Judge answers of the code tasks by their tests, in this process: a few thousand answers a second.

The other judge is the interpreter itself, in a limited process (tasks of kind ``code``).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from ballast.lab._code_language import FAILURES, Program
from ballast.lab._code_values import Meter

Tests = tuple[tuple[Any, Any], ...]
"""Inputs with their outputs."""


def verdicts(answer: str, tests: Tests) -> tuple[bool, ...]:
    """Return for each test whether the answer gives its output, of the same type, within the bounds of one answer."""
    try:
        program = Program(answer)
    except FAILURES:
        return (False,) * len(tests)
    meter = Meter()
    return tuple(_passes(program, meter, given, wanted) for given, wanted in tests)


def runs(answer: str, given: Any) -> bool:
    """Return whether an answer is within the language and gives anything for an input."""
    try:
        return Program(answer)(given, Meter()) is not None
    except FAILURES:
        return False


def _passes(program: Program, meter: Meter, given: Any, wanted: Any) -> bool:
    try:
        found = program(given, meter)
    except FAILURES:
        return False
    return type(found) is type(wanted) and bool(found == wanted)


@lru_cache(maxsize=4096)
def read_tests(tests: str) -> Tests:
    """Return the tests of a row, written as JSON: ``[[input, output], ...]``.

    Raises:
        ValueError: they are something else.
    """
    found = json.loads(tests)
    if not isinstance(found, list) or not found or any(not isinstance(one, list) or len(one) != 2 for one in found):
        raise ValueError("no list of [input, output]")
    return tuple((given, wanted) for given, wanted in found)
