"""A named setting of the general re-weighting objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.objectives.base import Objective, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ballast.objectives.reweight import Reweight
    from ballast.stats import TokenStats


class NamedReweight(Objective):
    """An objective whose mathematics is that of `general()`."""

    def general(self) -> Reweight:
        """Return the setting of `reweight` that this name stands for."""
        raise NotImplementedError

    @property
    def scope(self) -> Scope:
        return self.general().scope

    @property
    def needs(self) -> tuple[str, ...]:
        return self.general().needs

    def weight(self, stats: TokenStats) -> Tensor:
        return self.general().weight(stats)

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        return self.general().active(columns)
