"""Other people's columns made ours: Alpaca and ShareGPT rows, and renames."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from string import Formatter
from typing import TYPE_CHECKING, Any

from ballast.data.formats import formats
from ballast.data.readers import Loaded, from_rows
from ballast.errors import BallastError, suggest

if TYPE_CHECKING:
    from datasets import Dataset

Columns = str | Mapping[str, str] | None
Row = Mapping[str, Any]

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}


def map_columns(loaded: Loaded, columns: Columns) -> Dataset:
    """Return the rows with our columns.

    "alpaca": ``instruction`` [+ ``input``] and ``output`` become ``prompt`` (parts set off by an empty line) and
    ``completion``. "sharegpt": ``conversations`` of from/value become ``messages`` of role/content. A mapping
    ``{our column: their column}`` renames; theirs may be a path (``reward.truth.answer``) or a template of columns
    (``"{Body} {Question}\\n"``). Columns that are not mapped stay, but for those of another training format.

    Raises BallastError naming the missing column, or the row with the unknown role.
    """
    if columns is None:
        return loaded.dataset
    if isinstance(columns, Mapping):
        return _rename(loaded, columns)
    if columns not in CONVERSIONS:
        raise BallastError(f"columns={columns!r} is unknown{suggest(str(columns), list(CONVERSIONS))}")
    return CONVERSIONS[columns](loaded)


def _require(loaded: Loaded, column: str) -> None:
    names = loaded.dataset.column_names
    if column not in names:
        raise BallastError(f"{loaded.name}: no column {column!r}{suggest(column, names)}")


def _convert(
    loaded: Loaded, convert: Callable[[Row], dict[str, Any]], reads: Collection[str], drops: Collection[str]
) -> Dataset:
    """Add the columns that ``convert`` makes of the columns in ``reads``, naming the row it fails on."""
    from datasets import concatenate_datasets

    from ballast.data.exact import as_stored

    new = []
    for index, row in enumerate(loaded.dataset.select_columns(list(reads))):
        try:
            new.append(convert(row))
        except BallastError as error:
            raise BallastError(f"{loaded.place(index)}: {error}") from None
    made = from_rows(new, loaded.name, loaded.lines).dataset
    goes = {*drops, *made.column_names, *_other_formats(made.column_names)}
    kept = [name for name in loaded.dataset.column_names if name not in goes]
    # Joined side by side, columns forget how their JSON is read.
    return as_stored(concatenate_datasets([made, loaded.dataset.select_columns(kept)], axis=1)) if kept else made


def _other_formats(made: Collection[str]) -> set[str]:
    """Training columns of the formats that the mapping did not choose."""
    chosen = [layout for layout in formats() if set(layout.required) & set(made)]
    wanted = {column for layout in chosen for column in layout.required}
    others = {column for layout in formats() for column in layout.required} | {"labels"}
    return others - wanted if chosen else set()


def _rename(loaded: Loaded, columns: Mapping[str, str]) -> Dataset:
    sources = {}
    for ours, theirs in columns.items():
        if not isinstance(theirs, str):
            raise BallastError(f"columns: {ours!r} must name a column, not {theirs!r}")
        sources[ours] = _placeholders(ours, theirs)
    used: dict[str, None] = {}
    for paths in sources.values():
        for path in paths or ():
            head = path if path in loaded.dataset.column_names else path.split(".")[0]
            _require(loaded, head)
            used[head] = None
    makers = {ours: _maker(theirs, sources[ours], loaded.dataset.column_names) for ours, theirs in columns.items()}
    # Columns that only feed a path or a template stay: a verifier may read them.
    renamed = [theirs for theirs in columns.values() if theirs in loaded.dataset.column_names]
    return _convert(loaded, lambda row: {ours: make(row) for ours, make in makers.items()}, list(used), renamed)


def _placeholders(ours: str, theirs: str) -> list[str]:
    if "{" not in theirs and "}" not in theirs:
        return [theirs]
    try:
        names = [name for _, name, _, _ in Formatter().parse(theirs) if name is not None]
    except ValueError as error:
        raise BallastError(f"columns: {ours!r} is no valid template: {error}; write a brace as {{{{ or }}}}") from None
    if not names or "" in names:
        raise BallastError(f"columns: the template of {ours!r} names no column; write {{column}}")
    return names


def _maker(theirs: str, paths: list[str], names: list[str]) -> Callable[[Row], Any]:
    if "{" not in theirs:
        return partial(_at, path=paths[0], names=names)

    def fill(row: Row) -> str:
        out = []
        for literal, path, _, _ in Formatter().parse(theirs):
            out.append(literal)
            if path is not None:
                value = _at(row, path=path, names=names)
                if isinstance(value, bool) or not isinstance(value, str | int | float):
                    raise BallastError(f"{path!r} is {type(value).__name__}, which a template cannot hold")
                out.append(str(value))
        return "".join(out)

    return fill


def _at(row: Row, *, path: str, names: list[str]) -> Any:
    if path in names:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            known = suggest(key, list(value)) if isinstance(value, Mapping) else ""
            raise BallastError(f"no {key!r} in {path!r}{known}")
        value = value[key]
    return value


def _alpaca(loaded: Loaded) -> Dataset:
    for column in ("instruction", "output"):
        _require(loaded, column)
    used = [
        name for name in ("instruction", "input", "output", "system", "history") if name in loaded.dataset.column_names
    ]

    def convert(row: Row) -> dict[str, Any]:
        for column in ("system", "history"):
            if row.get(column):
                raise BallastError(f"{column!r} has no place in a plain prompt and would be lost; give 'messages'")
        for column in ("instruction", "output"):
            if not isinstance(row[column], str):
                raise BallastError(f"{column!r} is {type(row[column]).__name__}, not text")
        parts = [row["instruction"], *([row["input"]] if row.get("input") else [])]
        return {"prompt": "\n\n".join(parts) + "\n\n", "completion": row["output"]}

    return _convert(loaded, convert, used, used)


def _sharegpt(loaded: Loaded) -> Dataset:
    _require(loaded, "conversations")
    used = [name for name in ("conversations", "system") if name in loaded.dataset.column_names]

    def convert(row: Row) -> dict[str, Any]:
        turns = row["conversations"]
        if not isinstance(turns, list) or not turns:
            raise BallastError("'conversations' is no list of turns, or an empty one")
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        return {"messages": system + [_message(turn) for turn in turns]}

    return _convert(loaded, convert, used, used)


def _message(turn: Any) -> dict[str, str]:
    if not isinstance(turn, Mapping) or turn.get("from") is None or not isinstance(turn.get("value"), str):
        raise BallastError("a turn of 'conversations' has no 'from' and text 'value'")
    role = _ROLES.get(turn["from"])
    if role is None:
        raise BallastError(f"unknown role {turn['from']!r}{suggest(str(turn['from']), list(_ROLES))}")
    return {"role": role, "content": turn["value"]}


CONVERSIONS: dict[str, Callable[[Loaded], Dataset]] = {"alpaca": _alpaca, "sharegpt": _sharegpt}
