"""Names of a package that load their module on first use, so that importing the package loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def on_use(package: str, homes: Mapping[str, str], name: str) -> Any:
    """Return what a package has under a name, for its ``__getattr__``.

    Args:
        package: its ``__name__``.
        homes: the module that each of its names comes from.
        name: what was asked for.

    Raises:
        AttributeError: it is none of the names.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(homes[name]), name)
