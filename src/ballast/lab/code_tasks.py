"""Small programs composed of the steps of `code_atoms`, with tests and splits that are disjoint by behaviour.

A prompt is a comment, ``# sort it, then add all``; a completion defines ``f`` with one assignment for each step:

    def f(x):
        a=sorted(x)
        return sum(a)

Half of the steps are A, half B, alike in topics and types. A chain of steps counts if it runs on every input, gives at
least three different outputs, and does what no single step and no other chain does; no two are written alike. The
source is the test bed of arXiv:2406.10305, rebuilt: its own functions and data are not public. Imports neither torch
nor transformers.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from random import Random
from typing import Any

from ballast.errors import BallastError, suggest
from ballast.lab._code_judge import Tests, read_tests, runs, verdicts
from ballast.lab._code_language import FAILURES
from ballast.lab.code_atoms import DIFFERENT, HIDDEN, INPUTS, SHOWN, TYPES, Atom, Outputs, atoms, varied

Row = dict[str, Any]
Chain = tuple[Atom, ...]
Inputs = Mapping[str, Sequence[Any]]

SEED = 11
TEST_SIZE, VALIDATION_SIZE, DEEP_SIZE = 160, 60, 200
FEW = (8, 32, 128)
WORDINGS = ("# {}\n", "# {}, please\n", "# x: {}\n", "# now {}\n")
"""Ways to ask for a single step; the first is that of chains."""
VARIABLES = "abcde"
CHECK = """TESTS = {tests}

def check(candidate):
    for given, wanted in TESTS:
        found = candidate(given)
        assert type(found) is type(wanted) and found == wanted, given
"""
"""Tests in the form of HumanEval, for the kind of task `code`."""


def prompt(chain: Chain, wording: str = WORDINGS[0]) -> str:
    """Return the request for a chain, e.g. ``# sort it, then add all`` and a line break."""
    return wording.format(", then ".join(atom.phrase for atom in chain))


def program(chain: Chain) -> str:
    """Return the completion of a chain: one assignment for each step but the last, which is returned."""
    lines, name = ["def f(x):"], "x"
    for atom, following in zip(chain[:-1], VARIABLES, strict=False):
        lines.append(f"    {following}={_of(atom, name)}")
        name = following
    return "\n".join([*lines, f"    return {_of(chain[-1], name)}"])


def _of(atom: Atom, name: str) -> str:
    # Words are replaced, not letters: max(x) holds an x.
    return re.sub(r"\bx\b", name, atom.expression)


def outputs(chain: Chain, inputs: Inputs = INPUTS) -> Outputs:
    """Return what a chain makes of the inputs of its type.

    Raises:
        Exception: one of `FAILURES`, where a step does not run on them.
    """
    values: Outputs = tuple(inputs[chain[0].takes])
    for atom in chain:
        values = atom.apply(values)
    return values


def tests_of(chain: Chain, inputs: Inputs) -> str:
    """Return inputs and outputs of a chain as JSON: ``[[input, output], ...]``."""
    return json.dumps(list(zip(inputs[chain[0].takes], outputs(chain, inputs), strict=True)))


def row(chain: Chain, inputs: Inputs = SHOWN, wording: str = WORDINGS[0]) -> Row:
    """Return a chain as a row.

    Its columns are ``prompt`` and ``completion``, ``tests`` for `verify`, ``test`` and ``entry_point`` for tasks of
    kind ``code``, ``atoms`` (names), ``depth``, and ``source``: ``A``, ``B`` or ``AB``, the halves of its steps.
    """
    tests = tests_of(chain, inputs)
    return {
        "prompt": prompt(chain, wording),
        "completion": program(chain),
        "entry_point": "f",
        "tests": tests,
        "test": CHECK.format(tests=tests),
        "atoms": [atom.name for atom in chain],
        "depth": len(chain),
        "source": half_of(chain),
    }


def _tests(given: Mapping[str, Any]) -> Tests:
    try:
        return read_tests(given["tests"])
    except (KeyError, TypeError, ValueError) as error:
        raise BallastError(
            f"'tests' is missing or is no JSON of [input, output] pairs ({type(error).__name__}: {error}), so every "
            "answer would score 0; take rows of lab:code-… or of `ballast.lab.code_tasks.row`"
        ) from error


def verify(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 when the answer passes all of the row's ``tests``, else 0.0.

    The answer is interpreted, not executed: see `ballast.lab._code_language` for what is refused.

    Raises:
        BallastError: the row has no tests.
    """
    return float(all(verdicts(completion, _tests(row))))


def share(completion: str, row: Mapping[str, Any]) -> float:
    """Return the share of the row's ``tests`` that the answer passes.

    Raises:
        BallastError: the row has no tests.
    """
    passed = verdicts(completion, _tests(row))
    return sum(passed) / len(passed)


def answered(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 when the answer is within the language and gives anything for the row's first input, else 0.0."""
    return float(runs(completion, _tests(row)[0][0]))


def _check(row: Mapping[str, Any]) -> None:
    _tests(row)


for _function in (verify, share):
    _function.answered, _function.check = answered, _check  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def halves() -> dict[str, str]:
    """Return the half, ``A`` or ``B``, of each step by name; each topic and type is divided as evenly as can be."""
    rng = Random(f"halves {SEED}")
    kinds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for atom in atoms():
        kinds[atom.topic][atom.takes + atom.gives].append(atom.name)
    found: dict[str, str] = {}
    for topic in kinds.values():
        names = [name for group in topic.values() for name in rng.sample(group, len(group))]
        found |= {name: "AB"[place % 2] for place, name in enumerate(names)}
    return found


def half_of(chain: Chain) -> str:
    """Return the half that all steps of a chain are from, or ``AB``."""
    return "".join(sorted({halves()[atom.name] for atom in chain}))


def behaviour(chain: Chain) -> str | None:
    """Return what a chain does on all inputs, shown and hidden, or None where it does not count as a task."""
    try:
        found = outputs(chain)
    except FAILURES:
        return None
    if {type(value) for value in found} != {TYPES[chain[-1].gives]} or varied(found) < DIFFERENT:
        return None
    return f"{chain[0].takes} {json.dumps(found)}"


def _different(chains: Iterable[Chain], seen: set[str]) -> Iterator[Chain]:
    """Yield the chains that count and do what none before them does; `seen` learns what they do."""
    for chain in chains:
        found = behaviour(chain)
        if found is not None and found not in seen:
            seen.add(found)
            yield chain


def _follow(chain: Chain) -> Iterator[Chain]:
    return ((*chain, atom) for atom in atoms() if atom.takes == chain[-1].gives and atom not in chain)


@lru_cache(maxsize=1)
def _composed() -> tuple[dict[str, list[Chain]], frozenset[str]]:
    """Return all chains of two steps by half, in a seeded order, and everything that one or two steps do."""
    seen: set[str] = set()
    singles = list(_different(((atom,) for atom in atoms()), seen))
    pairs = list(_different((pair for single in singles for pair in _follow(single)), seen))
    Random(f"chains {SEED}").shuffle(pairs)
    found: dict[str, list[Chain]] = defaultdict(list)
    for pair in pairs:
        found[half_of(pair)].append(pair)
    written = set(map(program, found["AB"]))
    return found | {half: list(_unwritten(found[half], written)) for half in "AB"}, frozenset(seen)


def _unwritten(chains: Iterable[Chain], written: set[str]) -> Iterator[Chain]:
    """Yield the chains whose programs nobody wrote before: lists and texts are turned round by the same words."""
    for chain in chains:
        if program(chain) not in written:
            written.add(program(chain))
            yield chain


def _part(half: str, start: int, end: int | None = None) -> list[Chain]:
    return _composed()[0][half][start:end]


HELD = TEST_SIZE + VALIDATION_SIZE


def _deep() -> list[Chain]:
    """Return chains of three A steps that do what no shorter chain does."""
    pairs, seen = _composed()
    rng = Random(f"deep {SEED}")
    triples = [triple for pair in pairs["A"] for triple in _follow(pair) if half_of(triple) == "A"]
    rng.shuffle(triples)
    return list(islice(_unwritten(_different(triples, set(seen)), set()), DEEP_SIZE))


def _singles() -> list[Row]:
    return [row((atom,), wording=wording) for atom in atoms() for wording in WORDINGS]


def _asked(half: str, start: int) -> list[Row]:
    return [{key: value for key, value in row(one).items() if key != "completion"} for one in _part(half, start)]


def _rows(half: str, start: int, end: int | None = None, inputs: Inputs = SHOWN) -> list[Row]:
    return [row(one, inputs) for one in _part(half, start, end)]


def named(atom: Atom) -> str:
    """Return the base's own way to ask for a step, by its name, and the answer."""
    return prompt((atom,)).replace(atom.phrase, atom.name) + program((atom,))


_SPLITS: dict[str, Callable[[], list[Row]]] = {
    "code-atoms": _singles,
    "code-a-train": partial(_rows, "A", HELD),
    **{f"code-few-{size}": partial(_rows, "A", HELD, HELD + size) for size in FEW},
    "code-b-rl": partial(_asked, "B", HELD),
    "code-a-test": partial(_rows, "A", 0, TEST_SIZE, HIDDEN),
    "code-a-validation": partial(_rows, "A", TEST_SIZE, HELD, HIDDEN),
    "code-b-test": partial(_rows, "B", 0, TEST_SIZE, HIDDEN),
    "code-b-validation": partial(_rows, "B", TEST_SIZE, HELD, HIDDEN),
    "code-deep-test": lambda: [row(one, HIDDEN) for one in _deep()],
    "code-forgetting": lambda: [{"text": named(atom)} for atom in atoms()],
}
SPLITS = tuple(_SPLITS)


def split(name: str) -> list[Row]:
    """Return one of the fixed splits, `SPLITS`; see docs/lab-code.md.

    Raises:
        BallastError: the name is unknown, or the table of steps is damaged.
    """
    if name not in _SPLITS:
        raise BallastError(f"lab split {name!r} is unknown{suggest(name, list(_SPLITS))}")
    return _SPLITS[name]()


@lru_cache(maxsize=4)
def kin(near: int) -> dict[str, tuple[Atom, ...]]:
    """Return by name `near` or more steps of the same topic and types: what the base takes a step's phrase for."""
    groups: dict[tuple[str, str], list[Atom]] = defaultdict(list)
    for atom in atoms():
        groups[atom.topic, atom.takes + atom.gives].append(atom)
    found: dict[str, tuple[Atom, ...]] = {}
    for group in groups.values():
        parts = max(1, len(group) // near)
        for part in range(parts):
            members = tuple(group[part::parts])
            found |= {atom.name: members for atom in members}
    return found


def draw_text(rng: Random, near: int = 2, swapped: float = 0.25) -> str:
    """Draw one row of the base's pretraining text: prompt and completion.

    A fifth asks for a step by its name. Else it is a step (three of eight) or a chain of one A and one B step, and each
    phrase is that of any of the step's `kin`.

    Args:
        near: steps that share their phrases, at least.
        swapped: share of the chains whose phrases come in the other order.
    """
    if rng.random() < 0.2:
        return named(rng.choice(atoms()))
    alone = rng.random() < 3 / 8
    chain: Chain = (rng.choice(atoms()),) if alone else rng.choice(_composed()[0]["AB"])
    asked = [rng.choice(kin(near)[atom.name]) for atom in chain]
    if not alone and rng.random() < swapped:
        asked.reverse()
    return prompt(tuple(asked), rng.choice(WORDINGS) if alone else WORDINGS[0]) + program(chain)
