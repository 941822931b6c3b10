"""The hundred steps that the code tasks are composed of: one expression of ``x`` and one phrase each, in ten topics.

They stand in ``code_atoms.tsv`` and are checked when read. Values are whole numbers (I), flat lists of them (L) and
texts (S).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ballast.errors import BallastError
from ballast.lab._code_language import FAILURES, Program
from ballast.lab._code_values import Meter

TABLE = Path(__file__).with_name("code_atoms.tsv")
TOPICS, PER_TOPIC, DIFFERENT = 10, 10, 3
TYPES: dict[str, type] = {"I": int, "L": list, "S": str}
SHOWN: dict[str, list[Any]] = {
    "I": [0, 1, 7, 12, -5, 48, 103, -36, 91, -5210],
    "L": [[], [3], [1, 2, 3, 4], [5, -2, 5, 0], [9, 8, -7, 6, 2], [-1, -4, 10], [2, 2, 2], [0, 15, 3, -6, 4, 1]],
    "S": ["", "a", "Hello You", "b2 c3", "tree house", "QUIET", "x y z", "Abe 42 eats"],
}
"""Inputs whose outputs reward an answer."""
HIDDEN: dict[str, list[Any]] = {
    "I": [2, 9, -1, 30, -17, 64, 250, -408, 77, 3195],
    "L": [[7], [4, 4], [-3, 0, 8], [6, 1, 6, -9], [10, -5, 2, 7, 3], [12, 5, -8], [1, 3, 5, 7], [-2, 9, 0, 4, -2, 11]],
    "S": ["e", "Zoo", "one Two", "a1b22", "Lazy dog naps", "HI THERE", "q w", "Eve sees 90 bees"],
}
"""Inputs that no training sees and evaluation asks."""
INPUTS = {kind: [*SHOWN[kind], *HIDDEN[kind]] for kind in TYPES}

Outputs = tuple[Any, ...]


@dataclass(frozen=True)
class Atom:
    """One step: what it takes and gives (``I``, ``L`` or ``S``), its expression over ``x``, and its phrase."""

    topic: str
    name: str
    takes: str
    gives: str
    expression: str
    phrase: str

    @cached_property
    def program(self) -> Program:
        """The step by itself, as an answer.

        Raises:
            Refused: the expression is not within the language of the judge.
        """
        return Program(f"def f(x):\n    return {self.expression}")

    def apply(self, values: Sequence[Any]) -> Outputs:
        """Return what the step makes of values of its type.

        Raises:
            Exception: one of `FAILURES`.
        """
        return tuple(self.program(value, Meter()) for value in values)


COLUMNS = tuple(field.name for field in fields(Atom))


@lru_cache(maxsize=4)
def atoms(table: Path = TABLE) -> tuple[Atom, ...]:
    """Return the hundred steps in the order of their table.

    Raises:
        BallastError: the table is missing or damaged: one line with the file and its line.
    """
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(table, str(error)) from error
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        raise _damaged(table, f"line 1: the columns are not {', '.join(COLUMNS)}")
    found: list[Atom] = []
    behaviours: dict[tuple[str, str], str] = {}
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != len(COLUMNS) or not all(cells):
            raise _damaged(table, f"line {number}: {len(cells)} cells, or an empty one; a step has {len(COLUMNS)}")
        atom = Atom(*cells)
        for problem in _problems(atom, found, behaviours):
            raise _damaged(table, f"line {number}: {problem}")
        found.append(atom)
    topics = Counter(atom.topic for atom in found)
    if len(topics) != TOPICS or set(topics.values()) != {PER_TOPIC}:
        raise _damaged(table, f"{len(found)} steps in {len(topics)} topics; there are {PER_TOPIC} in each of {TOPICS}")
    return tuple(found)


def _problems(atom: Atom, others: Sequence[Atom], behaviours: dict[tuple[str, str], str]) -> Iterator[str]:
    """Yield what is wrong with a step; `behaviours` learns what it does."""
    if atom.takes not in TYPES or atom.gives not in TYPES:
        yield f"{atom.name} takes {atom.takes!r} and gives {atom.gives!r}; types are {', '.join(TYPES)}"
    for other in others:
        if atom.name == other.name or atom.phrase == other.phrase:
            yield f"{atom.name} has the name or the phrase of {other.name}"
    try:
        outputs = atom.apply(INPUTS[atom.takes])
    except FAILURES as error:
        yield f"{atom.name}: {atom.expression!r} cannot be computed ({type(error).__name__}: {error})"
    else:
        if {type(value) for value in outputs} != {TYPES[atom.gives]}:
            yield f"{atom.name}: {atom.expression!r} does not always give {atom.gives}"
        if varied(outputs) < DIFFERENT:
            yield f"{atom.name}: {atom.expression!r} gives fewer than {DIFFERENT} different outputs"
        same = behaviours.setdefault((atom.takes, json.dumps(outputs)), atom.name)
        if same != atom.name:
            yield f"{atom.name} does what {same} does"


def varied(outputs: Outputs) -> int:
    """Return how many of some outputs differ."""
    return len(set(map(json.dumps, outputs)))


def _damaged(table: Path, problem: str) -> BallastError:
    return BallastError(f"{table}: {problem}; no code task can be made of a damaged table: reinstall ballast-ft")
