"""Evaluate an arithmetic expression written by a model, exactly and without `eval`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

MAX_CHARACTERS = 500
MAX_DEPTH = 60
MAX_MAGNITUDE = 10**15

_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def evaluate_expression(text: str) -> Fraction | None:
    """Return the exact value of an expression of numbers, ``+ - * /`` and parentheses, or None for anything else.

    Names, calls, powers, comparisons, numbers beyond 1e15, division by zero, texts over 500 characters and nesting
    over 60 levels all give None.

    >>> evaluate_expression("( 76.0 - 25.0 ) / 2")
    Fraction(51, 2)
    >>> evaluate_expression("9 ** 9") is None
    True
    """
    text = text.strip()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    try:
        return _value(ast.parse(text, mode="eval").body, MAX_DEPTH)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, depth: int) -> Fraction:
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, depth - 1), _value(node.right, depth - 1))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand, depth - 1))
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_MAGNITUDE:
        return Fraction(value if value % 1 == 0 else repr(value))  # as written: 0.1 is a tenth
    raise ValueError("not arithmetic")
