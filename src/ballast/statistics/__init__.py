"""Statistics of a token's distribution beyond those with a field in `TokenStats`: one file each, found by scanning.

A name is that of the statistic, ``@`` and its parameter: ``top_entropy@20``. Importing them imports no torch. None of
them is in a reference cache, so a new one invalidates none.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from ballast.errors import BallastError, suggest
from ballast.statistics.base import Statistic
from ballast.stats import DIFFERENTIABLE_FIELDS, LIVE_FIELDS, PAIR_FIELDS, REFERENCE_FIELDS

__all__ = [
    "Statistic",
    "check_statistics",
    "find",
    "is_differentiable",
    "is_live",
    "is_of_models",
    "is_pair",
    "names",
    "reads_reference",
]


@cache
def _registry() -> dict[str, type[Statistic]]:
    found: dict[str, type[Statistic]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Statistic) and member.__module__ == module.__name__ and "name" in vars(member):
                found[member.name] = member
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """Return the names of all statistics, without parameters."""
    return tuple(_registry())


@cache
def find(field: str) -> Statistic | None:
    """Return the statistic that a field names, None for a field that is none of these.

    Raises:
        BallastError: if there is an ``@`` but no such statistic, or a parameter that is not allowed.
    """
    name, at, text = field.partition("@")
    if not at:
        return None
    cls = _registry().get(name)
    if cls is None:
        raise BallastError(f"{field!r} is no statistic{suggest(name, names())}")
    try:
        parameter = float(text)
    except ValueError:
        raise BallastError(f"{field!r}: {text!r} is no number; write {name}@NUMBER") from None
    if problem := cls.problem(parameter):
        raise BallastError(f"{field!r}: {name}'s number {problem}")
    return cls(parameter)


def check_statistics(fields: tuple[str, ...], vocabulary: int) -> None:
    """Refuse statistics that a vocabulary of this size cannot have.

    Raises:
        BallastError: naming the first one.
    """
    for field in fields:
        statistic = find(field)
        if statistic is not None and (problem := statistic.problem(statistic.parameter, vocabulary)):
            raise BallastError(f"{field!r}: {statistic.name}'s number {problem}, so there is no such statistic of it")


def is_live(field: str) -> bool:
    """Return whether a field is a statistic of the model in training alone."""
    return field in LIVE_FIELDS or ((statistic := find(field)) is not None and not statistic.pair)


def is_pair(field: str) -> bool:
    """Return whether a field needs the distributions of model and reference, so that no per-token cache can hold it."""
    return field in PAIR_FIELDS or ((statistic := find(field)) is not None and statistic.pair)


def reads_reference(field: str) -> bool:
    """Return whether a field says something of the reference."""
    return field in REFERENCE_FIELDS or is_pair(field)


def is_of_models(field: str) -> bool:
    """Return whether a field follows from the logits of model and reference, and not from the rows or the run."""
    return field == "vocabulary" or is_live(field) or reads_reference(field)


def is_differentiable(field: str) -> bool:
    """Return whether a field carries gradient."""
    return field in DIFFERENTIABLE_FIELDS or ((statistic := find(field)) is not None and statistic.differentiable)
