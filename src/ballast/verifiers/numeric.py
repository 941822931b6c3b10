"""Tell apart what math-verify calls equal: it compares by absolute differences, so that all tiny numbers are one.

Values are compared at 60 digits and by their relative difference; formulas with symbols at three points.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from itertools import product
from typing import Any

from sympy import FiniteSet as Set
from sympy import Float, Interval, MatrixBase, N, Rational, Tuple, UnevaluatedExpr
from sympy.core.relational import Relational

DIGITS = 60
EXACT = Rational(1, 10**50)
DECIMALS = Rational(1, 10**5)
"""Relative difference up to which a decimal stands for another number; math-verify has looked at six places."""
ROUNDED_DIGITS = 4
"""Digits that a shorter decimal has to have to stand for a number that it is the rounding of."""
PERCENT = UnevaluatedExpr(Rational(1, 100))
POINTS = (Rational(3, 10), Rational(7, 5), Rational(23, 3))


def differ(answer: Any, given: Any) -> bool:
    """Whether two values of math-verify's are shown to be different; False where that cannot be said."""
    if isinstance(answer, Relational) and isinstance(given, Relational):
        return _relations_differ(answer, given)
    answer, given = (one.rhs if isinstance(one, Relational) else one for one in (answer, given))
    wanted, found = _parts(answer), _parts(given)
    if wanted is None and found is None:
        return _values_differ(answer, given)
    wanted, found = ([one] if parts is None else parts for one, parts in ((answer, wanted), (given, found)))
    if len(wanted) != len(found):
        return False
    if not any(map(differ, wanted, found)):
        return False
    if not (isinstance(answer, Set) or isinstance(given, Set)):
        return True
    # A set's members may stand in any order.
    return any(all(differ(one, other) for other in found) for one in wanted) or any(
        all(differ(one, other) for one in wanted) for other in found
    )


def _parts(value: Any) -> list[Any] | None:
    if isinstance(value, (Set, Tuple)):
        return list(value.args)
    if isinstance(value, Interval):
        return [value.start, value.end]
    return list(value.doit()) if isinstance(value, MatrixBase) else None


def _relations_differ(answer: Relational, given: Relational) -> bool:
    """Two relations with one side moved over differ if these sides differ, or sum up, to a number that is not 0."""
    wanted, found = (one.lhs - one.rhs for one in (answer, given))
    for difference in (wanted - found, wanted + found):
        values = _values(difference)
        scale = max((abs(value) for value in _values(found)), default=0)
        if values and all(_close(value, values[0], EXACT) for value in values):
            return bool(abs(values[0]) > EXACT * scale)
    return False


def _values_differ(answer: Any, given: Any) -> bool:
    if answer == given:
        return False
    pairs = list(product(_with_percent(answer), _with_percent(given)))
    return all(_numbers_differ(one, other) for one, other in pairs)


def _with_percent(value: Any) -> list[Any]:
    """Return a value, and a percentage as its number too: the question may ask for per cent."""
    is_percentage = len(getattr(value, "args", ())) == 2 and value.args[1] == PERCENT
    return [value, value.args[0]] if is_percentage else [value]


def _numbers_differ(answer: Any, given: Any) -> bool:
    wanted, found = _values(answer), _values(given)
    if not wanted or len(wanted) != len(found):
        return False
    decimal = any(one.has(Float) for one in (answer, given))
    unit = max(_rounding(answer), _rounding(given))
    return all(
        not _close(one, other, DECIMALS if decimal else EXACT) and abs(one - other) > unit
        for one, other in zip(wanted, found, strict=True)
    )


def _close(one: Any, other: Any, tolerance: Rational) -> bool:
    return bool(abs(one - other) <= tolerance * max(abs(one), abs(other)))


def _values(value: Any) -> list[Any]:
    """Return the values of a formula at every point, none where one is no finite number."""
    exact = value.replace(lambda part: isinstance(part, Float), lambda part: Rational(str(part)))
    symbols = sorted(exact.free_symbols, key=str)
    values = []
    for point in POINTS if symbols else POINTS[:1]:
        places = {symbol: point + Rational(place, 7) for place, symbol in enumerate(symbols)}
        found = N(exact.subs(places).doit(), DIGITS)
        if not (found.is_number and found.is_finite):
            return []
        values.append(found)
    return values


def _rounding(value: Any) -> Any:
    """Return one unit of the last place of a decimal fraction, 0 for what is none or has too few digits."""
    number = value.doit()
    if not isinstance(number, Float):
        return 0
    digits: Sequence[int]
    _, digits, exponent = Decimal(str(number)).normalize().as_tuple()
    return Rational(10) ** int(exponent) if len(digits) >= ROUNDED_DIGITS else 0
