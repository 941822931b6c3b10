"""The values of the lab's small language, and every operation on them, each with a bound on its work.

A value is a number, a text, None, a flat list, set or tuple of these, a range, or an iterator over a list. Nothing
nests deeper than a tuple in a list, so the size of a value says what an operation on it costs, and each operation pays
for it before it begins.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from operator import length_hint
from typing import Any

STEPS = 100_000
"""Work of one answer over all of its tests: a step for each operation and for each element that it touches."""
ELEMENTS = 10_000
CHARACTERS = 2_000
BITS = 512
HASHED = 2**60
"""Larger whole numbers in a set are refused: multiples of 2**61 - 1 share their hash, and a set of them is slow."""

NUMBERS = (int, bool, float)
SCALARS = (*NUMBERS, str, type(None))
ITERATOR: type = type(iter([]))
ITERABLES = (str, list, tuple, set, range, ITERATOR)
Values = Any
Function = Callable[..., Any]


class Refused(Exception):
    """An answer is outside the language, or asks for more than its bounds allow."""


class Meter:
    """What is left of an answer's work."""

    __slots__ = ("left",)

    def __init__(self, steps: int = STEPS) -> None:
        self.left = steps

    def pay(self, steps: int) -> None:
        """Take `steps` from what is left.

        Raises:
            Refused: there is no more.
        """
        self.left -= steps
        if self.left < 0:
            raise Refused(f"more than {STEPS:,} steps")


def size(value: Values) -> int:
    """Return what touching all of a value costs, in steps."""
    return 1 + length_hint(value, 0) if isinstance(value, ITERABLES) else 1


def bounded(value: Values) -> Values:
    """Return a value that is within its bounds.

    Raises:
        Refused: it is too large.
    """
    kind = type(value)
    if kind is int:
        if value.bit_length() > BITS:
            raise Refused(f"a number of more than {BITS} bits")
    elif kind is str:
        if len(value) > CHARACTERS:
            raise Refused(f"a text of more than {CHARACTERS:,} characters")
    elif isinstance(value, ITERABLES) and length_hint(value, 0) > ELEMENTS:
        raise Refused(f"more than {ELEMENTS:,} elements")
    return value


def scalar(value: Values) -> Values:
    """Return a value that may stand in a tuple.

    Raises:
        Refused: it is no number, text or None.
    """
    if type(value) not in SCALARS:
        raise Refused(f"a {type(value).__name__} inside another value")
    return value


def element(value: Values) -> Values:
    """Return a value that may stand in a list: a scalar, or a tuple of them.

    Raises:
        Refused: it is something else.
    """
    return value if type(value) is tuple else scalar(value)


def iterate(value: Values) -> Iterator[Values]:
    """Return an iterator over a value.

    Raises:
        TypeError: it has no elements.
    """
    if not isinstance(value, ITERABLES):
        raise TypeError(f"a {type(value).__name__} has no elements")
    return iter(value)  # type: ignore[call-overload]  # one of ITERABLES


def _numbers(*values: Values) -> None:
    if not all(type(value) in NUMBERS for value in values):
        raise Refused("arithmetic on what is no number")


def _add(left: Values, right: Values) -> Values:
    if type(left) is type(right) and type(left) in (str, list):
        if len(left) + len(right) > (CHARACTERS if type(left) is str else ELEMENTS):
            raise Refused("a sum that is too long")
        return left + right
    _numbers(left, right)
    return left + right


def _multiply(left: Values, right: Values) -> Values:
    if type(left) in (str, list) or type(right) in (str, list):
        repeated, times = (left, right) if type(left) in (str, list) else (right, left)
        if type(times) not in (int, bool):
            raise TypeError("a text or list is repeated a whole number of times")
        if len(repeated) * times > (CHARACTERS if type(repeated) is str else ELEMENTS):
            raise Refused("a repetition that is too long")
        return repeated * times
    _numbers(left, right)
    return left * right


def _on_numbers(function: Function) -> Function:
    def run(left: Values, right: Values) -> Values:
        _numbers(left, right)
        return function(left, right)

    return run


_subtract = _on_numbers(operator.sub)
_divide = _on_numbers(operator.truediv)
_floor_divide = _on_numbers(operator.floordiv)
_remainder = _on_numbers(operator.mod)


def _negate(value: Values) -> Values:
    _numbers(value)
    return -value


def _keep(value: Values) -> Values:
    _numbers(value)
    return +value


BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: _add,
    ast.Sub: _subtract,
    ast.Mult: _multiply,
    ast.Div: _divide,
    ast.FloorDiv: _floor_divide,
    ast.Mod: _remainder,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: _negate, ast.UAdd: _keep, ast.Not: operator.not_}
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: operator.contains(right, left),
    ast.NotIn: lambda left, right: not operator.contains(right, left),
}


def _text(value: Values = "") -> str:
    return str(scalar(value))


def _whole(value: Values = 0) -> int:
    return int(scalar(value))


def _list(value: Values = ()) -> list[Values]:
    return [element(one) for one in iterate(value)]


def _set(value: Values = ()) -> set[Values]:
    members = [scalar(one) for one in iterate(value)]
    if any(type(one) is not str and (type(one) is not int or abs(one) >= HASHED) for one in members):
        raise Refused("a set of what is neither text nor a whole number of ordinary size")
    return set(members)


def _sum(values: Values, start: Values = 0) -> Values:
    terms = list(iterate(values))
    _numbers(start, *terms)
    return sum(terms, start)


def _range(*ends: Values) -> range:
    found = range(*ends)
    if len(found) > ELEMENTS:
        raise Refused(f"a range of more than {ELEMENTS:,} elements")
    return found


def _enumerate(values: Values, start: Values = 0) -> Iterator[Values]:
    return iter(list(enumerate(map(scalar, iterate(values)), start)))


def _zip(*values: Values) -> Iterator[Values]:
    return iter(list(zip(*(map(scalar, iterate(one)) for one in values))))  # noqa: B905  # as in the language


FUNCTIONS: dict[str, Function] = {
    "abs": abs,
    "bin": bin,
    "chr": chr,
    "enumerate": _enumerate,
    "int": _whole,
    "len": len,
    "list": _list,
    "max": max,
    "min": min,
    "ord": ord,
    "range": _range,
    "set": _set,
    "sorted": sorted,
    "str": _text,
    "sum": _sum,
    "zip": _zip,
}
KEYWORDS: dict[str, tuple[str, ...]] = {
    "max": ("default", "key"),
    "min": ("default", "key"),
    "sorted": ("key", "reverse"),
}


def _join(text: str, values: Values) -> str:
    parts = list(iterate(values))
    if sum(len(part) + len(text) for part in parts if type(part) is str) > CHARACTERS + len(text):
        raise Refused("a text that is too long")
    return text.join(parts)


def _replace(text: str, old: Values, new: Values) -> str:
    if type(old) is str and type(new) is str and len(text) + text.count(old) * len(new) > CHARACTERS:
        raise Refused("a text that is too long")
    return text.replace(old, new)


METHODS: dict[type, dict[str, Function]] = {
    str: {
        "count": str.count,
        "find": str.find,
        "isdigit": str.isdigit,
        "isupper": str.isupper,
        "join": _join,
        "lower": str.lower,
        "replace": _replace,
        "split": str.split,
        "upper": str.upper,
    },
    list: {"count": list.count},
}
METHOD_NAMES = {name for methods in METHODS.values() for name in methods}


def method(value: Values, name: str) -> Function:
    """Return a method of a value.

    Raises:
        AttributeError: it has none of that name.
    """
    found = METHODS.get(type(value), {}).get(name)
    if found is None:
        raise AttributeError(f"a {type(value).__name__} has no {name}")
    return found
