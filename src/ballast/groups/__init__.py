"""Groups of answers to one prompt: an expert's, a teacher's, the model's own; verified, with advantages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ballast.lazy import on_use

if TYPE_CHECKING:
    from ballast.groups.advantage import advantages
    from ballast.groups.members import Group, GroupRows, Member
    from ballast.groups.options import GroupOptions
    from ballast.groups.sampler import SampledGroups, sample_groups
    from ballast.stats import ORIGINS

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

_HOMES = {
    "ORIGINS": "ballast.stats",
    "Group": "ballast.groups.members",
    "GroupOptions": "ballast.groups.options",
    "GroupRows": "ballast.groups.members",
    "Member": "ballast.groups.members",
    "SampledGroups": "ballast.groups.sampler",
    "advantages": "ballast.groups.advantage",
    "sample_groups": "ballast.groups.sampler",
}


def __getattr__(name: str) -> Any:
    # The recipe reads the options without loading torch.
    return on_use(__name__, _HOMES, name)
