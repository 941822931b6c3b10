"""math-verify as a verifier; runs in a worker process.

math-verify guards itself with a signal alarm, which works in the main thread only and elsewhere turns every answer into
a silent 0; switched off, a power tower can run for ever. So its alarm is off and the worker's clock is on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import FiniteSet, Interval, Tuple

from ballast.verifiers.answers import final_formula, statement
from ballast.verifiers.notation import BASED, fraction, lone_number, reference, tidy
from ballast.verifiers.numeric import differ
from ballast.verifiers.units import units_differ
from ballast.verifiers.words import are_words, plain, same_words

SEARCHED = 10_000
"""Characters at the end of a text in which math-verify looks for an answer that is not marked as one."""
ANSWER = 2_000
"""Characters beyond which a text is no answer."""
GOES_ON = re.compile(r"\s*[-+*/^_]\s*(?:\\|[\d(]|[b-zB-HJ-Z](?![a-zA-Z]))")
"""What follows a number that is a part of a formula only."""
BEGUN = re.compile(r"(?:(?<![a-zA-Z])[a-zA-Z]|[)}\d])\s*[-+*/^]\s*$")


def judge(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 if the answer in `completion` equals the row's ``answer``, else 0.0.

    The answer is in the last box, else what the text states as its answer at its end, else what math-verify finds.

    Raises:
        ValueError: if the row's answer is blank.
    """
    answer = reference(row["answer"])
    if not answer:
        raise ValueError("the row's answer is blank: nothing to compare with")
    formula = final_formula(completion)
    if are_words(answer):
        return float(same_words(answer, statement(completion) if formula is None else formula.rpartition("=")[2]))
    if formula is None:
        return float(_equal(answer, _found_in(completion)))
    return float(_same(answer, tidy(formula)))


def read(completion: str, row: Mapping[str, Any]) -> str | None:
    """Return the answer in `completion`, numbers written in one way; None where there is none.

    Where the row's ``answer`` is words, so are those that are read.
    """
    formula = final_formula(completion)
    if are_words(reference(row["answer"])):
        return plain(statement(completion) if formula is None else formula.rpartition("=")[2]).casefold() or None
    if formula is None:
        found = _found_in(completion)
        return str(found[0]) if found else None
    text = tidy(formula)
    value = fraction(text)
    return str(value) if value is not None else "".join(text.split()) or None


def _same(answer: str, given: str) -> bool:
    if "".join(answer.split()) == "".join(given.split()):
        return True
    if not given or len(given) > ANSWER + len(answer) or units_differ(answer, given):
        return False
    if BASED.fullmatch(answer) and BASED.fullmatch(given):
        return answer.replace("{", "").replace("}", "") == given.replace("{", "").replace("}", "")
    wanted, found = fraction(answer), fraction(given)
    if wanted is not None and found is not None and (wanted == found or "." not in answer + given):
        return wanted == found
    return _equal(answer, _read(given))


def _read(text: str) -> list[Any]:
    """Return the value of all of `text`, and the text that it was read from."""
    found = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)
    number = lone_number(text) if all(isinstance(one, str) for one in found) else None
    return found if number is None else parse(number, parsing_timeout=None)


def _found_in(completion: str) -> list[Any]:
    """Return what math-verify takes for the answer of a text, unless it is but a part of a formula."""
    text = completion[-SEARCHED:].replace("−", "-")
    found = parse(re.sub(r"\\\$(?=\d)", "$", text), parsing_timeout=None)
    if not found or not re.fullmatch(r"[\d.]+", str(found[-1])):
        return found
    place = text.rfind(str(found[-1]))
    part = GOES_ON.match(text, place + len(str(found[-1]))) or BEGUN.search(text[max(0, place - 20) : place])
    return [] if part and place >= 0 else found


def _equal(answer: str, given: list[Any]) -> bool:
    wanted = _read(answer)
    if not verify(wanted, given, timeout_seconds=None, raise_on_error=True):
        return False
    if len(wanted) < 2 or len(given) < 2:  # only their texts were compared
        return True
    if _is_point_against_set(wanted, given) or _is_point_against_set(given, wanted):
        return False
    try:
        return not differ(wanted[0], given[0])
    except Exception:  # sympy has no value for them: math-verify's word stands
        return True


def _is_point_against_set(point: list[Any], members: list[Any]) -> bool:
    """Whether one is a point or an interval and the other a set in braces."""
    is_set = isinstance(members[0], FiniteSet) and str(members[-1]).lstrip().startswith(r"\{")
    return is_set and isinstance(point[0], (Tuple, Interval))
