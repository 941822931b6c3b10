"""Groups of answers to one prompt: an expert's, a teacher's, the model's own; verified, with advantages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ballast.groups.advantage import advantages
    from ballast.groups.members import ORIGINS, Group, GroupRows, Member
    from ballast.groups.options import GroupOptions
    from ballast.groups.sampler import SampledGroups, sample_groups

__all__ = [
    "ORIGINS",
    "Group",
    "GroupOptions",
    "GroupRows",
    "Member",
    "SampledGroups",
    "advantages",
    "sample_groups",
]

_HOME = {
    "ORIGINS": "members",
    "Group": "members",
    "GroupOptions": "options",
    "GroupRows": "members",
    "Member": "members",
    "SampledGroups": "sampler",
    "advantages": "advantage",
    "sample_groups": "sampler",
}


def __getattr__(name: str) -> Any:
    # The recipe reads the options without loading torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
