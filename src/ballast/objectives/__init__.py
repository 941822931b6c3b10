"""Objectives, one module each, found by scanning this package; importing them imports no torch."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any

from ballast.errors import BallastError, suggest
from ballast.objectives._turns import turn_ends
from ballast.objectives.base import Objective, OptionError, option, plain
from ballast.statistics import find, is_live, is_pair
from ballast.stats import FIELDS, GROUP_FIELDS, OLD_FIELDS

__all__ = ["Objective", "ObjectiveInfo", "list_objectives", "objective", "option", "turn_ends"]


@dataclass(frozen=True)
class ObjectiveInfo:
    """What can be known of an objective without torch: default options decide `needs`, `scope` and `reduction`."""

    name: str
    description: str
    source: str
    needs: tuple[str, ...]
    scope: str
    reduction: str
    options: tuple[tuple[str, Any, str], ...]
    """(option, default, documentation) of each option."""


@cache
def _registry() -> dict[str, type[Objective]]:
    found: dict[str, type[Objective]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name == "base" or module_info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Objective) and member.__module__ == module.__name__ and "name" in vars(member):
                found[member.name] = member
    return dict(sorted(found.items()))


def objective(spec: str | Mapping[str, Any] | Objective, /, **options: Any) -> Objective:
    """Return the objective of that name with these options.

    Args:
        spec: a name from `list_objectives`, ``package.module:Class`` for an objective of your own, a mapping with
            ``name`` and options, or an objective, which is returned as it is.
        options: the objective's options.

    Raises:
        BallastError: if the name or an option is unknown (with the nearest right one) or a value is not allowed.

    >>> objective("prift-mass", threshold=0.5).needs
    ('logprob', 'ref_mass')
    """
    if isinstance(spec, Objective):
        if options:
            raise BallastError(f"objective {spec.name}: options {sorted(options)} cannot be added to a built objective")
        return spec
    if isinstance(spec, Mapping):
        mapping = {**spec, **options}
        if not isinstance(mapping.get("name"), str):
            raise BallastError("objective: a mapping must have the key 'name' with an objective's name")
        return objective(mapping.pop("name"), **mapping)
    if not isinstance(spec, str):
        raise BallastError(f"objective: expected a name or a mapping with 'name', got {type(spec).__name__}")
    cls = _class(spec)
    options = _with_objectives(cls, options)
    for key, message in cls.problems(options):
        raise OptionError(cls.name, key, message)
    return _built(cls, options)


def _with_objectives(cls: type[Objective], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the objectives that they name, built; raises OptionError where one cannot be."""
    nested = {item.name for item in fields(cls) if item.metadata.get("objectives")}
    built = dict(options)
    for key in nested & {key for key, value in options.items() if isinstance(value, (list, tuple))}:
        built[key] = tuple(_part(cls, key, place, one) for place, one in enumerate(options[key], 1))
    return built


def _part(cls: type[Objective], key: str, place: int, spec: Any) -> Objective:
    try:
        return objective(spec)
    except BallastError as error:
        message = getattr(error, "message", str(error).removeprefix("objective: "))
        raise OptionError(cls.name, key, f"entry {place}: {message}") from error


def problems(name: str, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return all that is wrong with an objective and its options: the option at fault, or ``name``, and why."""
    try:
        cls = _class(name)
        options = _with_objectives(cls, options)
        found = list(cls.problems(options))
        if not found:
            _built(cls, options)
    except OptionError as error:
        return [(error.option, error.message)]
    except BallastError as error:
        return [("name", str(error))]
    return found


def _class(name: str) -> type[Objective]:
    cls = _third_party(name) if ":" in name else _registry().get(name)
    if cls is None:
        raise OptionError("", "name", f"unknown name {name!r}{suggest(name, list(_registry()))}")
    for key in ("name", "source"):
        if not isinstance(getattr(cls, key, None), str):
            raise OptionError(cls.__qualname__, "name", f"the class has no {key!r}, a string is needed")
    return cls


def _built(cls: type[Objective], options: Mapping[str, Any]) -> Objective:
    """Make the objective and check what a class of someone else's may have got wrong."""
    try:
        made = cls(**options)
    except TypeError as error:
        message = f"{error}; give every option a default with `option(...)`"
        raise OptionError(cls.name, "name", message) from error
    for problem in _needs_problems(made):
        raise OptionError(cls.name, "name", problem)
    return made


def _needs_problems(made: Objective) -> Iterator[str]:
    for need in made.needs:
        try:
            known = need in FIELDS or need in made.columns or find(need) is not None
        except BallastError as error:
            yield f"needs {error}"
            continue
        if not known:
            yield f"needs {need!r}, which is no statistic{suggest(need, FIELDS)}"
    if len({*made.columns.values()}) < len(made.columns):
        yield f"takes two values from one column ({', '.join(made.columns.values())}); give each its own"
    if set(OLD_FIELDS) & set(made.needs) and set(GROUP_FIELDS) & set(made.needs):
        yield "needs 'old_logprob' of groups of answers, which are not scored ahead"
    if made.columns and set(GROUP_FIELDS) & set(made.needs):
        yield f"reads {next(iter(made.columns))!r} from a column of the data, which groups of answers do not bring"
    for name, column in made.columns.items():
        if name in FIELDS or is_live(name) or is_pair(name):
            yield f"takes {name!r} from the column {column!r}, but it is a statistic of its own; give it another name"
    if set(OLD_FIELDS) & set(made.needs) and not getattr(made, "refresh", None):
        yield (
            "needs 'old_logprob' and has no option 'refresh', so the old model would never be scored; say after how "
            "many optimiser steps it is scored anew"
        )
    if made.scope == "step" and type(made).per_token_loss is not Objective.per_token_loss:
        yield (
            "has the scope 'step' and a per_token_loss of its own, which would see single micro-batches; override "
            "weight and extra"
        )


def _third_party(spec: str) -> type[Objective]:
    module_name, _, class_name = spec.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError("", "name", f"cannot import {spec!r}: {error}") from error
    if not (inspect.isclass(cls) and issubclass(cls, Objective)):
        raise OptionError("", "name", f"{spec!r} is not a subclass of ballast.objectives.Objective")
    return cls


def list_objectives() -> list[ObjectiveInfo]:
    """Return what is known of every objective in the package, sorted by name."""
    return [describe(cls) for cls in _registry().values()]


def describe(cls: type[Objective]) -> ObjectiveInfo:
    """Return the facts of one objective class, read from its docstring and its declared options."""
    default = _built(cls, {})
    return ObjectiveInfo(
        name=cls.name,
        description=(inspect.getdoc(cls) or "").split("\n", 1)[0],
        source=cls.source,
        needs=default.needs,
        scope=default.scope,
        reduction=default.reduction,
        options=tuple(
            (item.name, None if item.default is MISSING else plain(item.default), item.metadata.get("doc", ""))
            for item in fields(cls)
        ),
    )
