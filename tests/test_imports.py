"""The rules of the house that can be read off the source: layers, lazy imports, file lengths."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ballast"
FILES = sorted(SOURCE.rglob("*.py"))

# From the ground up: a module may import from its own layer and from those before it.
LAYERS = (
    ("errors", "files", "stats", "protocols"),
    ("objectives", "head"),
    ("verifiers",),
    ("data",),
    ("reference", "advise"),
    ("evaluation",),
    ("groups",),
    ("rl",),
    ("records",),
    ("training",),
    ("config",),
    ("lab",),
    ("models",),
    ("pipeline",),
    ("compare",),
    ("report",),
    ("quickstart",),
    ("cli",),
)
# Beyond the order: what these may import at all.
ONLY: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "protocols": set(),
    "stats": {"errors"},
    "objectives": {"errors", "stats"},
    "head": {"errors", "stats"},
    "verifiers": {"errors", "files", "protocols"},
    "advise": {"errors", "stats", "objectives"},
    "evaluation": {"errors", "files", "stats", "protocols", "head", "verifiers", "data"},
    "groups": {"errors", "files", "protocols", "verifiers", "data", "reference", "evaluation"},
    "rl": {"errors", "protocols", "verifiers", "data", "evaluation"},
    "records": {"errors", "files", "protocols", "evaluation", "rl"},
}
FREE = {"cli", "__init__"}
MAX_LINES, MAX_OBJECTIVE_LINES = 400, 70
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
        if target == own or target in ("__init__", "__version__"):
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


@pytest.mark.parametrize("module", TORCH_FREE)
def test_torch_is_not_loaded_by(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'trl', 'datasets'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("module", "layer"), [("ballast.lab.arithmetic", "lab"), ("ballast.report.charts.svg", "report")]
)
def test_a_module_belongs_to_its_most_specific_layer(module, layer):
    assert layer_of(module) == layer
