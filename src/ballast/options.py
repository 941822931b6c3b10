"""What every set of options is: a frozen, strict schema, each of whose errors is one line with its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from ballast.errors import BallastError, suggest
from ballast.files import expanded

Where = tuple["str | int", ...]
"""The keys and list places that lead to a value."""

T = TypeVar("T", bound="Options")

COLUMN_STYLES = ("alpaca", "sharegpt")
RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
"""Pydantic's names of values that are out of range."""


def shown(value: object) -> str:
    """Return a value as an error tells it, on one line and cut where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def dotted(where: Where) -> str:
    """Return ``a.b.0.c`` for ``("a", "b", 0, "c")``."""
    return ".".join(str(part) for part in where)


class OptionsError(BallastError):
    """Options that cannot be used; as text the first of its problems.

    Attributes:
        problems: pairs of where, seen from the options, and what is wrong there.
        owner: what stands before the place in the text, such as ``rl.``.
    """

    def __init__(self, problems: Sequence[tuple[Where, str]], owner: str = "") -> None:
        super().__init__(problems, owner)
        self.problems, self.owner = tuple(problems), owner

    def __str__(self) -> str:
        where, message = self.problems[0]
        place = (self.owner + dotted(where)).rstrip(".: ")
        return f"{place}: {message}" if place else message


class Options(BaseModel):
    """Options under their names: no unknown ones, no silent conversion of types, no infinite numbers.

    Raises:
        OptionsError: for an unknown name, a value that is not allowed, or values that do not go together.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    owner: ClassVar[str] = ""
    """What stands before an option's name in an error of these options by themselves."""

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            # In the order that the options were given in; what is missing or wrong with all of them comes last.
            places = {name: place for place, name in enumerate(values)}
            problems = sorted(_problems(type(self), error), key=lambda one: places.get(dotted(one[0][:1]), len(places)))
            raise OptionsError(problems, self.owner_of(values)) from None

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """Return the options that a mapping names."""
        return cls(**{str(key): value for key, value in values.items()})

    def changed(self: T, changes: Mapping[str, Any]) -> T:
        """Return these options with `changes` laid over those that were given."""
        given = {name: value for name, value in self if name in self.model_fields_set}
        return type(self).from_dict({**given, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain values."""
        return self.model_dump(mode="json")

    @classmethod
    def owner_of(cls, values: Mapping[str, Any]) -> str:
        """Return what stands before an option's name in an error, for options with these values."""
        return cls.owner

    @classmethod
    def unknown(cls, key: str) -> str:
        """Return what to say of an option that there is not."""
        return f"unknown key{suggest(key, tuple(cls.model_fields))}"


def _problems(cls: type[Options], error: ValidationError) -> Iterator[tuple[Where, str]]:
    for details in error.errors(include_url=False):
        where: Where = tuple(details["loc"])
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, OptionsError):
            # Between a field and options in it are list places, and of a union the kind, which is no key.
            above = (*where[:1], *(part for part in where[1:] if isinstance(part, int)))
            yield from (((*above, *inner), message) for inner, message in cause.problems)
        elif details["type"] == "extra_forbidden":
            yield where, cls.unknown(str(where[-1]))
        elif details["type"] == "union_tag_not_found":
            yield (*where, details["ctx"]["discriminator"].strip("'")), "is required and missing"
        elif details["type"] == "union_tag_invalid":
            context = details["ctx"]
            yield (*where, context["discriminator"].strip("'")), _not_one_of(context["tag"], context["expected_tags"])
        else:
            yield where, _message(cls, details)


def _message(cls: type[Options], details: Mapping[str, Any]) -> str:
    kind, value = details["type"], details["input"]
    if kind == "missing":
        return "is required and missing"
    if kind == "literal_error":
        return _not_one_of(value, details["ctx"]["expected"])
    if kind == "string_too_short":
        return "is empty; give a value or leave the key out"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a mapping of keys; got {shown(value)}"
    if kind == "value_error":
        return str(details["ctx"]["error"])
    message = details["msg"].removeprefix("Input ").replace("a valid tuple", "a list")
    return f"{message}{_reason(cls, details) if kind in RANGES else ''}; got {shown(value)}"


def _reason(cls: type[Options], details: Mapping[str, Any]) -> str:
    """Return why a value must lie where it must, as an option's ``json_schema_extra`` has it under ``reason``."""
    extra = cls.model_fields[details["loc"][0]].json_schema_extra
    return f": {extra['reason']}" if isinstance(extra, dict) and "reason" in extra else ""


def _not_one_of(value: Any, expected: str) -> str:
    """Say that a value is none of those in pydantic's list, such as ``'a', 'b' or 'c'``."""
    known = tuple(part.strip("'") for part in expected.replace(" or ", ", ").split(", "))
    return f"{shown(value)} is not allowed{suggest(str(value), known)}"


def _listed(value: Any) -> Any:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)):
        raise ValueError(f"must be text or a list of them; got {shown(value)}")
    return listed


def _columns(value: Any) -> Any:
    named = isinstance(value, str) and value in COLUMN_STYLES
    mapped = isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair)
    if value is not None and not named and not mapped:
        raise ValueError(f"must be {' or '.join(COLUMN_STYLES)}, or map our column names to yours; got {shown(value)}")
    return value


Text = Annotated[str, Field(min_length=1)]
Path = Annotated[Text, AfterValidator(expanded)]
"""A file, a folder, or what else stands for one; ``~`` is the home folder."""
TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(strict=False), WithJsonSchema(TEXTS)]
"""A text, or a list of them."""
Sources = Annotated[tuple[Path, ...], BeforeValidator(_listed), Field(strict=False), WithJsonSchema(TEXTS)]
"""A source of rows, or a list of them."""
Columns = Annotated[str | dict[str, str] | None, BeforeValidator(_columns)]
"""How the columns of rows are called: a known style, or a mapping from our names to theirs."""
