"""Where a recipe's values come from: a YAML file, then ``key=value`` overrides; every value keeps its place."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ballast.errors import BallastError
from ballast.options import Where, dotted

# A scalar in these places is short for a mapping with that one key, so `model=lab model.dtype=bfloat16` composes.
SHORTHANDS: dict[str, str] = {
    "model": "path",
    "objective": "name",
    "reference": "use",
    "rows": "file",
    "engine": "kind",
}

COMMAND_LINE = "command line"
MAX_DEPTH = 40


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe: the path of keys to it, a message, and the place where that path does not tell."""

    where: Where
    message: str
    place: str | None = None


@dataclass(frozen=True)
class Source:
    """A recipe's plain values and, for each path of keys, the place that it was written in."""

    tree: dict[str, Any]
    name: str
    lines: Mapping[Where, int] = field(default_factory=dict)
    overridden: Mapping[Where, str] = field(default_factory=dict)

    def place(self, where: Where) -> str:
        """Return the nearest place that ``where`` was written in: ``recipe.yaml:7`` or ``command line``."""
        for length in range(len(where), 0, -1):
            prefix = where[:length]
            if prefix in self.overridden:
                return COMMAND_LINE
            if prefix in self.lines:
                return f"{self.name}:{self.lines[prefix]}"
        return self.name

    def describe(self, problem: Problem) -> str:
        """Return the one line that the user sees."""
        parts = [problem.place or self.place(problem.where), dotted(problem.where), problem.message]
        return ": ".join(part for part in parts if part)


class RecipeError(BallastError):
    """Everything that is wrong with a recipe: ``problems`` holds one line each, the message all of them."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


def load_source(path: str | Path | None, overrides: Sequence[str] = ()) -> tuple[Source, list[Problem]]:
    """Read the recipe file, if one is named, and lay the overrides over it.

    Returns:
        The source and the problems of the overrides (an override that cannot be placed is left out of the tree).

    Raises:
        RecipeError: the file is missing, is not YAML, repeats a key, or does not hold a mapping at its top.
    """
    tree, lines = ({}, {}) if path is None else read_yaml(Path(path))
    name = COMMAND_LINE if path is None else str(path)
    problems: list[Problem] = []
    overridden: dict[Where, str] = {}
    for text in overrides:
        try:
            where, value = parse_override(text)
            tree = replaced(tree, where, value)
        except BallastError as error:
            problems.append(Problem((), f"{text!r}: {error}", place=COMMAND_LINE))
            continue
        lines = {known: line for known, line in lines.items() if known[: len(where)] != where}
        overridden[where] = text
    return Source(tree=_text_keys(tree), name=name, lines=lines, overridden=overridden), problems


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Where, int]]:
    """Read one YAML 1.2 mapping (``1e-5`` is a number, ``no`` a string) with the line of every key.

    Raises:
        RecipeError: every repeated key, or the first syntax error, with ``file:line``.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RecipeError([f"{path}: cannot read the recipe: {reason}"]) from error
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        lines, repeated = _walk(node)
        if repeated:
            message = "key given twice; the first value would be lost without a word; keep one"
            raise RecipeError([f"{path}:{line}: {dotted(where)}: {message}" for where, line in repeated])
        tree = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError([f"{place}: not valid YAML: {_one_line(error.problem or error.context or '')}"]) from error
    except YAMLError as error:
        raise RecipeError([f"{path}: not valid YAML: {_one_line(str(error))}"]) from error
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else type(tree).__name__
        raise RecipeError([f"{path}: a recipe is a mapping of keys such as model, data and objective; found {found}"])
    return tree, lines


def parse_override(text: str) -> tuple[Where, Any]:
    """Split ``a.b.0=value`` into its path and its value, read as YAML.

    Raises:
        BallastError: no ``=``, an empty path, or a value that is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise BallastError("an override is key=value, such as training.learning_rate=1e-5")
    try:
        parsed = YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise BallastError("its value is not valid YAML; quote it as key='\"value\"'") from error
    return tuple(int(part) if part.isdecimal() else part for part in parts), parsed


def replaced(tree: Any, where: Where, value: Any) -> Any:
    """Return a copy of ``tree`` with ``value`` at ``where``; mappings on the way are made where they are missing.

    Raises:
        BallastError: the path runs through a value that is no mapping, or past the end of a list.
    """
    result = {"": copy.deepcopy(tree)}
    node: Any = result
    steps: list[str | int] = ["", *where]
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(node, list):
            if not isinstance(step, int) or step >= len(node):
                raise BallastError(f"{dotted(where[: depth - 1])} is a list of {len(node)}; use an index below that")
        elif isinstance(node, dict):
            step = step if step in node or not isinstance(step, int) else str(step)
        else:
            raise BallastError(f"{dotted(where[: depth - 1])} is {node!r}, which has no keys; give the whole mapping")
        if last:
            node[step] = value
        else:
            node[step] = _opened(node.get(step) if isinstance(node, dict) else node[step], steps[1 : depth + 1])
            node = node[step]
    return result[""]


def _opened(node: Any, where: Sequence[str | int]) -> Any:
    if node is None:
        return {}
    if len(where) == 1 and where[0] in SHORTHANDS and isinstance(node, str):
        return {SHORTHANDS[str(where[0])]: node}
    return node


def _text_keys(node: Any) -> Any:
    """Return a tree with text for every key: options have names, and ``1: x`` would otherwise be none.

    What JSON escapes as two halves of a character, which YAML leaves apart, is one here.

    Raises:
        RecipeError: for half a character.
    """
    if isinstance(node, dict):
        return {_whole(str(key)): _text_keys(value) for key, value in node.items()}
    return [_text_keys(value) for value in node] if isinstance(node, list) else _whole(node)


def _whole(value: Any) -> Any:
    try:
        return value.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(value, str) else value
    except UnicodeDecodeError:
        message = "holds half a surrogate pair, which no file can hold; write the character out"
        raise RecipeError([f"{value!r:.80}: {message}"]) from None


def _walk(root: Any) -> tuple[dict[Where, int], list[tuple[Where, int]]]:
    lines: dict[Where, int] = {}
    repeated: list[tuple[Where, int]] = []
    pending: list[tuple[Where, Any]] = [((), root)] if root is not None else []
    while pending:
        where, node = pending.pop()
        if len(where) > MAX_DEPTH:
            raise RecipeError(
                [f"{dotted(where[:3])}…: nested deeper than {MAX_DEPTH} levels; does an alias hold itself?"]
            )
        for key, child, line in _children(node):
            path = (*where, key)
            if path in lines and key != "<<":
                repeated.append((path, line))
                continue
            lines[path] = line
            pending.append((path, child))
    return lines, sorted(repeated, key=lambda item: item[1])


def _children(node: Any) -> Iterable[tuple[str | int, Any, int]]:
    if node.id == "mapping":
        for key, child in node.value:
            yield str(key.value), child, key.start_mark.line + 1
    elif node.id == "sequence":
        for index, child in enumerate(node.value):
            yield index, child, child.start_mark.line + 1


def _one_line(text: str) -> str:
    return " ".join(text.split())
