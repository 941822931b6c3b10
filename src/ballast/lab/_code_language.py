"""The small language that answers of the code tasks are written in, read from Python's syntax tree.

Nothing is executed. An answer is parsed, refused if it holds anything but the listed kinds of nodes, functions and
methods, and turned into functions of a frame that compute with Python's own operators on numbers, texts and flat lists.
What passes here passes in the interpreter; what the interpreter passes and this refuses is outside the language.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ballast.lab._code_values import (
    BINARY,
    COMPARE,
    FUNCTIONS,
    KEYWORDS,
    METHOD_NAMES,
    UNARY,
    Meter,
    Refused,
    bounded,
    element,
    iterate,
    method,
    scalar,
    size,
)

SOURCE = 400
"""Characters of an answer."""
CONSTANTS = 12
"""Constants of an answer: a table of eight inputs and outputs needs more."""
TOUCHING = re.compile(r"\d[a-zA-Z_]")
"""A number that touches a word, as in 1for, of which Python warns."""
CONSTANT = 20
"""Characters of a text that an answer spells out."""

Frame = list[Any]
"""The answer's meter, then a place for each variable."""
Node = Callable[[Frame], Any]

FAILURES = (
    Refused,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""How an answer may fail, in the interpreter too."""


class Program:
    """An answer that is within the language: ``f`` of one argument.

    Args:
        source: the whole answer, one definition of ``f(x)``.

    Raises:
        Refused: it is not Python, or not within the language.
    """

    def __init__(self, source: str) -> None:
        self._run, self._places = _compile(source)

    def __call__(self, value: Any, meter: Meter) -> Any:
        """Return ``f(value)``.

        Raises:
            Refused: it asks for more than its bounds allow.
            Exception: one of `FAILURES`, as the interpreter would.
        """
        frame = [meter, value, *self._places]
        return self._run(frame)


def parse(source: str) -> ast.FunctionDef:
    """Return the one definition that an answer is.

    Raises:
        Refused: it is too long, is no Python, or is not one plain ``def f(x):``.
    """
    if len(source) > SOURCE or "\\" in source:
        raise Refused(f"more than {SOURCE} characters, or a backslash")
    try:
        body = _body(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Refused("no Python") from error
    definition = body[0] if len(body) == 1 else None
    if not isinstance(definition, ast.FunctionDef) or definition.name != "f" or parameter(definition.args) != "x":
        raise Refused("not one definition of f(x)")
    if definition.decorator_list or definition.returns or getattr(definition, "type_params", None):
        raise Refused("not one plain definition of f(x)")
    return definition


def _body(source: str) -> list[ast.stmt]:
    if not TOUCHING.search(source):
        return ast.parse(source).body
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source).body


def parameter(arguments: ast.arguments) -> str | None:
    """Return the name of the one plain parameter, or None where there is another number or kind of them."""
    others = (arguments.posonlyargs, arguments.vararg, arguments.kwonlyargs, arguments.kwarg, arguments.defaults)
    if any(others) or len(arguments.args) != 1 or arguments.args[0].annotation:
        return None
    return arguments.args[0].arg


def _compile(source: str) -> tuple[Node, list[Any]]:
    compiler = _Compiler()
    statements = [compiler.statement(one) for one in parse(source).body]

    def run(frame: Frame) -> Any:
        for returns, statement in statements:
            value = statement(frame)
            if returns:
                return value
        return None

    return run, [None] * compiler.places


class _Compiler:
    """Turns nodes into functions of a frame. Names are resolved here: one that is used before it is bound is refused"""

    def __init__(self) -> None:
        self.scopes: list[dict[str, int]] = [{"x": 1}]
        self.places = 0
        self.constants = 0

    def statement(self, node: ast.stmt) -> tuple[bool, Node]:
        """Return whether a statement ends the function, and its function."""
        if isinstance(node, ast.Return) and node.value is not None:
            return True, self.node(node.value)
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            value = self.node(node.value)
            return False, self.storing(self.target(node.targets[0]), value)
        raise Refused(f"{type(node).__name__} is no statement of the language")

    @staticmethod
    def storing(target: Callable[[Frame, Any], None], value: Node) -> Node:
        return lambda frame: target(frame, value(frame))

    def node(self, node: ast.AST) -> Node:
        """Return the function of an expression."""
        compiled = NODES.get(type(node))
        if compiled is None:
            raise Refused(f"{type(node).__name__} is not in the language")
        return compiled(self, node)

    def bind(self, name: str) -> int:
        """Return the place of a variable in the innermost scope."""
        if name in FUNCTIONS or name == "f":
            raise Refused(f"{name} is a function's name")
        scope = self.scopes[-1]
        if name not in scope:
            self.places += 1
            scope[name] = 1 + self.places
        return scope[name]

    def target(self, node: ast.expr) -> Callable[[Frame, Any], None]:
        """Return what stores a value under a name, or under several."""
        if isinstance(node, ast.Name):
            place = self.bind(node.id)
            return lambda frame, value: frame.__setitem__(place, value)
        if isinstance(node, ast.Tuple) and all(isinstance(one, ast.Name) for one in node.elts):
            places = [self.bind(one.id) for one in node.elts if isinstance(one, ast.Name)]

            def store(frame: Frame, value: Any) -> None:
                frame[0].pay(size(value))
                for place, one in zip(places, list(iterate(value)), strict=True):
                    frame[place] = one

            return store
        raise Refused("a value is stored under names only")

    def constant(self, node: ast.Constant) -> Node:
        value = node.value
        self.constants += 1
        if self.constants > CONSTANTS:
            raise Refused(f"more than {CONSTANTS} constants")
        if type(value) not in (int, str, bool, type(None)) or (type(value) is str and len(value) > CONSTANT):
            raise Refused("a constant that is no number, short text or None")
        bounded(value)
        return lambda frame: value

    def name(self, node: ast.Name) -> Node:
        for scope in reversed(self.scopes):
            if node.id in scope:
                place = scope[node.id]
                return lambda frame: frame[place]
        raise Refused(f"{node.id} has no value")

    def binary(self, node: ast.BinOp) -> Node:
        operation = BINARY.get(type(node.op))
        if operation is None:
            raise Refused(f"{type(node.op).__name__} is not in the language")
        return _paid(operation, [self.node(node.left), self.node(node.right)])

    def unary(self, node: ast.UnaryOp) -> Node:
        operation = UNARY.get(type(node.op))
        if operation is None:
            raise Refused(f"{type(node.op).__name__} is not in the language")
        return _paid(operation, [self.node(node.operand)])

    def compare(self, node: ast.Compare) -> Node:
        if any(type(one) not in COMPARE for one in node.ops):
            raise Refused("a comparison that is not in the language")
        operations = [COMPARE[type(one)] for one in node.ops]
        first, others = self.node(node.left), [self.node(one) for one in node.comparators]
        pairs = list(zip(operations, others, strict=True))

        def run(frame: Frame) -> Any:
            left, result = first(frame), True
            for operation, other in pairs:
                right = other(frame)
                frame[0].pay(size(left) + size(right))
                result = operation(left, right)
                if not result:
                    return result
                left = right
            return result

        return run

    def boolean(self, node: ast.BoolOp) -> Node:
        parts, stops = [self.node(one) for one in node.values], isinstance(node.op, ast.Or)

        def run(frame: Frame) -> Any:
            for part in parts:
                value = part(frame)
                if bool(value) == stops:
                    return value
            return value

        return run

    def choice(self, node: ast.IfExp) -> Node:
        test, then, other = self.node(node.test), self.node(node.body), self.node(node.orelse)
        return lambda frame: then(frame) if test(frame) else other(frame)

    def listed(self, node: ast.List) -> Node:
        parts = [self.node(one) for one in node.elts]
        return _paid(lambda *values: [element(one) for one in values], parts)

    def tupled(self, node: ast.Tuple) -> Node:
        parts = [self.node(one) for one in node.elts]
        return _paid(lambda *values: tuple(scalar(one) for one in values), parts)

    def subscript(self, node: ast.Subscript) -> Node:
        return _paid(operator.getitem, [self.node(node.value), self.node(node.slice)])

    def slice(self, node: ast.Slice) -> Node:
        parts = [self.node(one) if one else (lambda frame: None) for one in (node.lower, node.upper, node.step)]
        return lambda frame: slice(*(part(frame) for part in parts))

    def comprehension(self, node: ast.ListComp) -> Node:
        """Return the list of a comprehension; a generator's list is made at once."""
        outer = self.node(node.generators[0].iter)
        with self.scope():
            targets, sources, tests = [], [outer], []
            for place, part in enumerate(node.generators):
                if part.is_async:
                    raise Refused("async is not in the language")
                if place:
                    sources.append(self.node(part.iter))
                targets.append(self.target(part.target))
                tests.append([self.node(one) for one in part.ifs])
            emit = _emitting(self.node(node.elt))
        for source, target, conditions in list(zip(sources, targets, tests, strict=True))[::-1]:
            emit = _looping(source, target, conditions, emit)

        def run(frame: Frame) -> list[Any]:
            found: list[Any] = []
            emit(frame, found)
            return bounded(found)

        return run

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Names bound inside are unknown outside."""
        self.scopes.append({})
        yield
        self.scopes.pop()

    def call(self, node: ast.Call) -> Node:
        """Return a call of a listed function, or of a listed method of a value."""
        arguments = [self.argument(one) for one in node.args]
        if isinstance(node.func, ast.Attribute):
            if node.func.attr not in METHOD_NAMES or node.keywords:
                raise Refused(f"{node.func.attr} is no method of the language")
            name, owner = node.func.attr, self.node(node.func.value)
            return _paid(lambda value, *given: method(value, name)(value, *given), [owner, *arguments])
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            raise Refused("a call of what is no function of the language")
        function, allowed = FUNCTIONS[node.func.id], KEYWORDS.get(node.func.id, ())
        named = [one.arg or "" for one in node.keywords]
        if len(set(named)) < len(named) or not set(named) <= set(allowed):
            raise Refused(f"{node.func.id} takes no such keyword")
        values = [self.key(one.value) if one.arg == "key" else self.node(one.value) for one in node.keywords]
        if not named:
            return _paid(function, arguments)
        count = len(arguments)
        return _paid(
            lambda *given: function(*given[:count], **dict(zip(named, given[count:], strict=True))),
            [*arguments, *values],
        )

    def argument(self, node: ast.expr) -> Node:
        if not isinstance(node, ast.GeneratorExp):
            return self.node(node)
        values = self.comprehension(node)  # type: ignore[arg-type]  # of the same fields
        return lambda frame: iter(values(frame))

    def key(self, node: ast.expr) -> Node:
        """Return what makes the key of an order: a lambda of one name, or a listed function."""
        if isinstance(node, ast.Name) and node.id in FUNCTIONS:
            function = _paid(FUNCTIONS[node.id], [lambda frame: frame[-1]])
            return lambda frame: lambda value: element(function([frame[0], value]))
        name = parameter(node.args) if isinstance(node, ast.Lambda) else None
        if not isinstance(node, ast.Lambda) or name is None:
            raise Refused("a key is a function of the language, or a lambda of one name")
        with self.scope():
            place = self.bind(name)
            body = self.node(node.body)

        def made(frame: Frame) -> Callable[[Any], Any]:
            def key(value: Any) -> Any:
                frame[0].pay(1)
                frame[place] = value
                return element(body(frame))

            return key

        return made


NODES: dict[type[ast.AST], Callable[[_Compiler, Any], Node]] = {
    ast.BinOp: _Compiler.binary,
    ast.BoolOp: _Compiler.boolean,
    ast.Call: _Compiler.call,
    ast.Compare: _Compiler.compare,
    ast.Constant: _Compiler.constant,
    ast.IfExp: _Compiler.choice,
    ast.List: _Compiler.listed,
    ast.ListComp: _Compiler.comprehension,
    ast.Name: _Compiler.name,
    ast.Slice: _Compiler.slice,
    ast.Subscript: _Compiler.subscript,
    ast.Tuple: _Compiler.tupled,
    ast.UnaryOp: _Compiler.unary,
}


def _paid(operation: Callable[..., Any], parts: Sequence[Node]) -> Node:
    """Return an operation that pays for its operands before it begins, and whose result is within its bounds."""

    def run(frame: Frame) -> Any:
        values = [part(frame) for part in parts]
        cost = 1
        for value in values:
            cost += 1 if type(value) is int else size(value)
        frame[0].pay(cost)
        return bounded(operation(*values))

    return run


Emit = Callable[[Frame, list[Any]], None]


def _emitting(value: Node) -> Emit:
    return lambda frame, found: found.append(element(value(frame)))


def _looping(source: Node, target: Callable[[Frame, Any], None], tests: Sequence[Node], emit: Emit) -> Emit:
    def run(frame: Frame, found: list[Any]) -> None:
        meter = frame[0]
        for one in iterate(source(frame)):
            meter.pay(1)
            target(frame, one)
            if all(test(frame) for test in tests):
                emit(frame, found)

    return run
