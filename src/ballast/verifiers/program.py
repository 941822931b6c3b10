"""Answers that are programs: run the answer's ``solution()`` in a limited process and take the number it returns.

The limits and what they do not stop are those of `ballast.verifiers.code`. Source: ReFT, arXiv:2401.08967, P-CoT.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from ballast.errors import BallastError
from ballast.verifiers.code import FENCE, CodeLimits, run_program
from ballast.verifiers.worker import VerifierUnavailable

TOLERANCE = 0.01
"""Difference up to which a returned number is the answer."""
DEFINITION = re.compile(r"^def solution\(", re.MULTILINE)
FUNCTION = re.compile(r"^def \w+\(", re.MULTILINE)
IMPORT = re.compile(r"^(?:import [\w., ]+|from [\w.]+ import [\w., *]+)$", re.MULTILINE)
KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef)
CHARACTERS = 20_000
"""Length of what can be a program; a longer text is no answer."""
RETURNED = """

__value__ = solution()
if isinstance(__value__, (bool, str, bytes)):
    raise TypeError("solution() returned no number")
__result__ = repr(float(__value__)).encode()
"""


def assemble(row: Mapping[str, Any], completion: str) -> str | None:
    """Return the program that an answer is, with the call of ``solution()``; None where there is no such function.

    A fenced block in the answer is taken for the code. Code without the definition continues the one that the row's
    ``prompt`` ends with. Imports and functions are kept, up to the first line behind them that is no Python; ``math``
    is imported, and ``sympy`` where it is named.
    """
    fenced = FENCE.search(completion)
    code = fenced.group(1) if fenced else completion
    first, prompt = FUNCTION.search(code), row.get("prompt")
    if first is not None and DEFINITION.search(code):
        imports, functions = IMPORT.findall(code[: first.start()]), code[first.start() :]
    elif isinstance(prompt, str) and (opened := list(DEFINITION.finditer(prompt))):
        imports, functions = [], prompt[opened[-1].start() :] + code
    else:
        return None
    kept = _functions(functions[:CHARACTERS])
    known = ["import math", *(["import sympy"] if "sympy" in code else [])]
    return None if kept is None else "\n".join([*known, *imports, kept]) + RETURNED


def _functions(text: str) -> str | None:
    """Return imports and functions of the longest beginning of `text`, in whole lines, that is Python."""
    lines = text.splitlines()
    for size in range(len(lines), 0, -1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what the model writes, such as unknown escapes
                body = ast.parse("\n".join(lines[:size])).body
            return "\n".join(ast.unparse(node) for node in body if isinstance(node, KEPT))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


def value(completion: str, row: Mapping[str, Any], limits: CodeLimits) -> float | None:
    """Return the finite number that the program in `completion` returns.

    None where there is no program, it raises, overruns its limits, or returns anything else: then nothing was answered.

    Raises:
        VerifierUnavailable: if programs cannot be run here at all.
    """
    program = assemble(row, completion)
    if program is None:
        return None
    try:
        result = run_program(program, limits, allow_code_execution=True)
    except BallastError as error:
        raise VerifierUnavailable(str(error)) from error
    number = float(result.detail) if result.passed and result.detail else math.nan
    return number if math.isfinite(number) else None
