"""Write the tables of options in the documents, from the schema of the recipe.

    python scripts/recipe_page.py            write the tables
    python scripts/recipe_page.py --check    exit 1 where a table differs from what would be written

A table stands between the lines ``<!-- options: NAME -->`` and ``<!-- end of options -->``, where NAME is a section of
the recipe or ``tasks``. Everything else on a page is written by hand, and kept.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from ballast.config.recipe import DataSection, EvaluationSection, ModelSection, ReferenceSection
from ballast.config.sections import CompareSection, RoundsSection
from ballast.engines.options import OpenAIEngine, VllmEngine
from ballast.evaluation.tasks import CLASSES, Task
from ballast.groups.options import GroupOptions, RowsOptions
from ballast.half import HalfOptions
from ballast.options import Options
from ballast.revise.options import ReviseOptions
from ballast.reward.options import RewardOptions
from ballast.rl.options import RLOptions

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end of options -->)", re.DOTALL)
SECTIONS: dict[str, type[Options]] = {
    "model": ModelSection,
    "data": DataSection,
    "reference": ReferenceSection,
    "groups": GroupOptions,
    "rows": RowsOptions,
    "revise": ReviseOptions,
    "vllm": VllmEngine,
    "openai": OpenAIEngine,
    "reward": RewardOptions,
    "rl": RLOptions,
    "half": HalfOptions,
    "evaluation": EvaluationSection,
    "compare": CompareSection,
    "rounds": RoundsSection,
}
NUMBERS = {"integer": "whole number", "number": "number"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page(text: str) -> str:
    """Return a page with its tables written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{tables(match[2])}\n\n{match[3]}", text)


def tables(name: str) -> str:
    """Return the table of a section; for ``tasks`` one for each class of options, with the kinds that have them."""
    if name != "tasks":
        return table(SECTIONS[name], SECTIONS[name].model_fields)
    return "\n\n".join(f"{_kinds(cls)}\n\n{table(cls, _declared(cls))}" for cls in _classes() if _declared(cls))


def table(cls: type[Options], names: Mapping[str, Any] | list[str]) -> str:
    """Return the table of some options of a class, those of sections within them beneath theirs."""
    rows = [row for name in names for row in _rows(cls, name, "")]
    lines = [("key", "default", "allowed", "meaning"), ("---",) * 4, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _rows(cls: type[Options], name: str, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    field = cls.model_fields[name]
    schema = cls.model_json_schema()["properties"][name]
    meaning = " ".join((field.description or "").split())
    yield f"`{prefix}{name}`", _default(field), _allowed(schema), meaning
    for inner, many in _sections(field.annotation):
        for key in inner.model_fields:
            yield from _rows(inner, key, f"{prefix}{name}.{'N.' if many else ''}")


def _sections(annotation: Any, many: bool = False) -> Iterator[tuple[type[Options], bool]]:
    """Yield the sections in an annotation, and whether there is a list of them; tasks have tables of their own."""
    if inspect.isclass(annotation) and issubclass(annotation, Options):
        if not issubclass(annotation, Task):
            yield annotation, many
        return
    for part in get_args(annotation):
        yield from _sections(part, many or getattr(annotation, "__origin__", None) is tuple)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, ""):
        return "none"
    shown = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{shown}`"


def _allowed(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_allowed(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind in NUMBERS:
        bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema]
        return f"{NUMBERS[kind]} {', '.join(bounds)}".strip()
    return {"boolean": "`true`, `false`", "string": "text", "array": "list"}.get(str(kind), "mapping")


def _classes() -> list[type[Task]]:
    """Return the classes of tasks, those that others are made from first."""
    found = [cls for kind in CLASSES.values() for cls in reversed(kind.__mro__) if issubclass(cls, Task)]
    return sorted(dict.fromkeys(found), key=lambda cls: (cls in CLASSES.values(), found.index(cls)))


def _declared(cls: type[Task]) -> list[str]:
    return [name for name in cls.__annotations__ if name in cls.model_fields and (cls is Task or name != "kind")]


def _kinds(cls: type[Task]) -> str:
    kinds = [f"`{kind}`" for kind, other in CLASSES.items() if issubclass(other, cls)]
    return "Every kind:" if cls is Task else f"{', '.join(kinds)}:"


def problems(folder: Path) -> list[str]:
    """Return one line for each page whose tables are stale."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
    return [f"{name}: stale" for name, text in pages.items() if page(text) != text]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check the tables of options in docs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table would change")
    parser.add_argument("--folder", type=Path, default=DOCS, help="folder of the pages")
    arguments = parser.parse_args()
    if not arguments.check:
        for path in arguments.folder.glob("*.md"):
            path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    found = problems(arguments.folder)
    for line in found:
        print(f"docs/{line}; write the tables with: python scripts/recipe_page.py", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
