"""Values as they stand in a row: plain Arrow columns where these give them back exactly, JSON text where they do not.

Arrow gives every object of a column the keys of all (a tool call with an ``hour`` puts ``"hour": null`` into those
without), turns whole numbers beside fractions into fractions, and refuses values of two types. This module imports
`datasets`, so others import it inside functions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Json, LargeList, List

from ballast.errors import BallastError

TEMPLATE_COLUMNS = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "teachers",
    "response",
    "tools",
    "chat_template_kwargs",
)
"""Columns whose objects a chat template may write out key by key."""


_MISFITS = (TypeError, ValueError, OverflowError, NotImplementedError)
"""What pyarrow raises on values that do not go together, or not into 64 bits."""


@dataclass
class JsonText(Json):  # type: ignore[misc]  # datasets comes without types
    """`datasets.Json` that gives back exactly what was written: that one rounds numbers and stops at 64 bits.

    Attributes:
        nulls_dropped: whether keys that were null are left out, because Arrow may have added them.
    """

    nulls_dropped: bool = False

    def encode_example(self, example_data: Any) -> str | None:
        return None if example_data is None else json.dumps(example_data)

    def decode_example(self, example_data: str | None, token_per_repo_id: Any = None) -> Any:
        return None if example_data is None else json.loads(example_data)


def from_columns(columns: Mapping[str, Sequence[Any]]) -> Dataset:
    """Return columns of Python values as a data set that gives back exactly these.

    Raises:
        BallastError: a column has values that neither Arrow nor JSON can hold.
    """
    arrays, features = {}, Features()
    for name, values in columns.items():
        try:
            arrays[name], features[name] = _column(values)
        except _MISFITS as error:
            raise BallastError(f"{name!r} has values that no column can hold: {' '.join(str(error).split())}") from None
    return Dataset(pa.table(arrays), info=DatasetInfo(features=features))


def _column(values: Sequence[Any]) -> tuple[pa.Array, Any]:
    if _alike(values):
        try:
            return _plain_column(values)
        except _MISFITS:
            pass  # a number of more than 64 bits, or text with half a surrogate pair
    try:
        return _json_array(values), JsonText()
    except (TypeError, RecursionError):  # dates, say
        return _plain_column(values)


def _plain_column(values: Sequence[Any]) -> tuple[pa.Array, Any]:
    array = pa.array(values)
    return array, Features.from_arrow_schema(pa.schema({"values": array.type}))["values"]


def _json_array(values: Sequence[Any], default: Any = None) -> pa.Array:
    def texts(ascii_only: bool) -> list[str | None]:
        encode = json.JSONEncoder(ensure_ascii=ascii_only, separators=(",", ":"), default=default).encode
        return [None if value is None else encode(value) for value in values]

    try:
        return pa.array(texts(ascii_only=False), pa.json_())
    except UnicodeEncodeError:
        return pa.array(texts(ascii_only=True), pa.json_())


def _alike(values: Sequence[Any]) -> bool:
    """Whether values have one type, and objects the same keys in the same order and none null, all the way down."""
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) != 1:
        return not kinds
    (kind,) = kinds
    there = [value for value in values if value is not None] if issubclass(kind, list | tuple | Mapping) else []
    if issubclass(kind, list | tuple):
        return _alike(list(chain.from_iterable(there)))
    if not issubclass(kind, Mapping):
        return True
    keys = tuple(there[0])
    # Arrow ends a name at a zero byte.
    if not keys or any(tuple(one) != keys for one in there) or any("\0" in str(key) for key in keys):
        return False
    parts = [[one[key] for one in there] for key in keys]
    return all(type(None) not in set(map(type, part)) and _alike(part) for part in parts)


def from_table(table: pa.Table) -> Dataset:
    """Return a table read from a file as a data set, whatever the types of its columns.

    What `datasets` has no type for becomes plain values: a map an object, a UUID its text.
    """
    for place, name in enumerate(table.column_names):
        try:
            Features.from_arrow_schema(pa.schema({name: table.schema.field(place).type}))
        except ValueError:
            values = [value.as_py(maps_as_pydicts="lossy") for value in table.column(place)]
            table = table.set_column(place, name, _json_array(values, default=str))
    try:
        return as_stored(Dataset(table))
    except (TypeError, ValueError):  # features in the file's metadata that this version of datasets does not know
        return as_stored(Dataset(table.replace_schema_metadata(None)))


def as_stored(dataset: Dataset) -> Dataset:
    """Return a data set that reads JSON exactly, leaves pictures and sounds undecoded, and adds no null to objects.

    Arrow cannot tell a key that is null from one that is not there, so both are left out of `TEMPLATE_COLUMNS`.
    """
    if dataset.format["type"] == "custom":  # a transform, which may make anything of the columns
        return dataset
    features = Features({name: _read_as_stored(feature) for name, feature in dataset.features.items()})
    if features != dataset.features:
        dataset = copy.deepcopy(dataset)
        dataset.info.features = features
    columns = [name for name in TEMPLATE_COLUMNS if name in dataset.column_names]
    holding = [name for name in columns if any(map(_has_null_key, dataset.data.column(name).chunks))]
    if not holding:
        return dataset
    return (
        dataset.with_format("arrow")
        .map(
            _drop_null_keys,
            batched=True,
            features=Features({**features, **{name: JsonText(nulls_dropped=True) for name in holding}}),
            fn_kwargs={"features": {name: features[name] for name in holding}},
            desc="Dropping keys without value",
        )
        .with_format(None)
    )


def _read_as_stored(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _read_as_stored(part) for name, part in feature.items()}
    if isinstance(feature, List):
        return List(_read_as_stored(feature.feature), length=feature.length)
    if isinstance(feature, LargeList):
        return LargeList(_read_as_stored(feature.feature))
    if isinstance(feature, Json):
        return feature if isinstance(feature, JsonText) else JsonText()
    if getattr(feature, "decode", False):
        feature = copy.copy(feature)
        feature.decode = False
    return feature


def _has_null_key(array: pa.Array) -> bool:
    if pa.types.is_struct(array.type):
        return any(part.null_count or _has_null_key(part) for part in array.drop_null().flatten())
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _has_null_key(array.flatten())
    return False


def _drop_null_keys(batch: pa.Table, features: Mapping[str, Any]) -> pa.Table:
    for name, feature in features.items():
        values = [_without_nulls(value, feature) for value in batch[name].to_pylist()]
        batch = batch.set_column(batch.column_names.index(name), name, _json_array(values, default=str))
    return batch


def _without_nulls(value: Any, feature: Any) -> Any:
    if value is None:
        return None
    if isinstance(feature, dict):
        return {key: _without_nulls(part, feature[key]) for key, part in value.items() if part is not None}
    if isinstance(feature, List | LargeList):
        return [_without_nulls(part, feature.feature) for part in value]
    return json.loads(value) if isinstance(feature, Json) else value
