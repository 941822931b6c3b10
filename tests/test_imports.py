"""The rules of the house that can be read off the source: layers, lazy imports, file lengths."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ballast"
FILES = sorted(SOURCE.rglob("*.py"))
DESIGN = SOURCE.parent.parent / "docs" / "design.md"

# From the ground up: a module may import from its own layer and from those before it.
LAYERS = (
    (
        "errors",
        "lazy",
        "files",
        "ranks",
        "parts",
        "checkpoints",
        "text",
        "terminal",
        "progress",
        "stats",
        "statistics",
        "protocols",
        "limits",
        "batching",
        "packages",
        "quantised",
        "options",
        "sharding",
    ),
    ("objectives", "head"),
    ("verifiers",),
    ("data",),
    ("revise",),
    ("reference", "advise"),
    ("evaluation",),
    ("engines",),
    ("groups",),
    ("half",),
    ("loop",),
    ("reward", "rl"),
    ("records",),
    ("training",),
    ("config",),
    ("lab",),
    ("gguf",),
    ("models",),
    ("pipeline",),
    ("compare",),
    ("report",),
    ("start",),
    ("quickstart",),
    ("cli",),
)
# Beyond the order: what these may import at all.
ONLY: dict[str, set[str]] = {
    "errors": set(),
    "lazy": set(),
    "files": {"errors"},
    "ranks": {"errors"},
    "parts": {"errors", "files", "ranks"},
    "revise": {"errors", "options", "parts", "verifiers", "data"},
    "checkpoints": set(),
    "protocols": set(),
    "text": set(),
    "terminal": {"text", "ranks"},
    "progress": {"ranks"},
    "stats": {"errors"},
    "limits": {"errors", "protocols"},
    "batching": set(),
    "packages": {"errors"},
    "quantised": {"errors", "protocols"},
    "options": {"errors", "files"},
    "sharding": set(),
    "statistics": {"errors", "stats"},
    "objectives": {"errors", "stats", "statistics"},
    "head": {"errors", "stats", "statistics", "protocols"},
    "verifiers": {"errors", "files", "ranks", "protocols", "options"},
    "advise": {"errors", "stats", "objectives"},
    "evaluation": {
        *(
            "errors",
            "options",
            "files",
            "ranks",
            "stats",
            "protocols",
            "limits",
            "batching",
            "head",
            "verifiers",
            "data",
        ),
        "revise",
    },
    "engines": {"errors", "options", "packages", "ranks", "protocols", "limits", "data", "evaluation"},
    "groups": {
        *("errors", "options", "files", "parts", "protocols", "limits", "stats", "verifiers", "data", "revise"),
        *("reference", "evaluation"),
    },
    "half": {"errors", "options", "protocols"},
    "loop": {"errors", "files", "checkpoints", "sharding", "reference", "half"},
    "rl": {"quantised", "errors", "options", "protocols", "limits", "verifiers", "data", "evaluation", "half", "loop"},
    "reward": {"errors", "options", "protocols", "batching", "evaluation", "groups", "loop"},
    "records": {"errors", "text", "files", "protocols", "evaluation", "engines", "rl"},
}
FREE = {"cli", "__init__"}
EVERYWHERE = {"__init__", "__version__", "lazy"}
MAX_LINES, MAX_OBJECTIVE_LINES, MEDIAN_LINES = 400, 70, 130
TORCH_FREE = (
    "ballast",
    "ballast.cli",
    "ballast.objectives",
    "ballast.config.recipe",
    "ballast.records.write",
    "ballast.pipeline",
)


def layer_of(module: str) -> str:
    """``ballast.data.pack`` → ``data``; the longest name in LAYERS that fits."""
    rest = module.removeprefix("ballast").lstrip(".") or "__init__"
    known = [name for layer in LAYERS for name in layer if rest == name or rest.startswith(f"{name}.")]
    return max(known, key=len, default=rest.split(".")[0])


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``, which never run."""
    yield node
    typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in node.orelse if typing_only else ast.iter_child_nodes(node):
        yield from running(child)


def imports(path: Path) -> list[str]:
    """Every module that a file imports when it runs, inside functions too."""
    found = []
    for node in running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_import_from_their_layer_or_below(path):
    own = layer_of(module_name(path))
    if own in FREE:
        return
    order = {name: height for height, layer in enumerate(LAYERS) for name in layer}
    assert own in order, f"{own} has no layer yet: add it to LAYERS"
    for imported in imports(path):
        if imported.split(".")[0] != "ballast":
            continue
        target = layer_of(imported)
        if target == own or target in EVERYWHERE:
            continue
        assert order[target] <= order[own], f"{path}: {own} may not import {imported}"
        assert target in ONLY.get(own, {target}), f"{path}: {own} may not import {imported}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_trl_is_imported_in_files_called_trl_alone(path):
    if path.name != "trl.py":
        assert not [name for name in imports(path) if name.split(".")[0] == "trl"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_stay_small(path):
    lines = len(path.read_text().splitlines())
    objective = path.parent.name == "objectives" and path.name not in ("__init__.py", "base.py")
    assert lines <= (MAX_OBJECTIVE_LINES if objective else MAX_LINES)


def test_the_median_file_is_short():
    assert statistics.median(len(path.read_text().splitlines()) for path in FILES) < MEDIAN_LINES


def test_no_modules_import_each_other():
    # What a package's lazy __init__ names are strings, looked up when a name is used: it imports nothing.
    modules = {module_name(path): path for path in FILES}
    graph = {name: {known(one, modules) for one in imports(path)} - {None} for name, path in modules.items()}
    reached = {name: reachable(name, graph) for name in graph}
    circles = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph}
    assert sorted(circles - {()}) == []


def known(imported: str, modules: dict[str, Path]) -> str | None:
    """``ballast.data.load.load_rows`` → ``ballast.data.load``; None for what is not ours."""
    while imported and imported not in modules:
        imported = imported.rpartition(".")[0]
    return imported or None


def reachable(name: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [*graph[name]]
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead += graph[one]
    return found


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=module_name)
def test_every_public_name_can_be_imported(path):
    package = import_module(module_name(path))
    for name in getattr(package, "__all__", ()):
        getattr(package, name)
        if (path.parent / f"{name}.py").exists():
            # A module of that name takes the name's place when it is imported, unless it was imported before.
            import_module(f"{package.__name__}.{name}")
        assert not isinstance(getattr(package, name), ModuleType), f"{package.__name__}.{name} is a module"


def test_the_design_lists_the_rooms_in_their_order():
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    table = re.findall(r"^\| `(\w+)/?` \|", DESIGN.read_text(), re.MULTILINE)
    assert table == [name for layer in LAYERS for name in layer]
    assert set(table) == rooms - {"__init__"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_torch_is_not_loaded_by(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'trl', 'datasets'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("module", "layer"), [("ballast.lab.arithmetic", "lab"), ("ballast.report.charts.svg", "report")]
)
def test_a_module_belongs_to_its_most_specific_layer(module, layer):
    assert layer_of(module) == layer
