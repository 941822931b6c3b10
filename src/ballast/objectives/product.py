"""Objectives combined: the product of their weights, the sum of their further terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, get_args

from ballast.objectives._factors import active_in_all, factor_problems, united
from ballast.objectives.base import Objective, OptionError, Reduction, Scope, option
from ballast.objectives.dft import DFT
from ballast.objectives.prift_mass import PriftMass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class Product(Objective):
    """Weigh each token by the product of several objectives' weights.

    ``w_t = Π_i w_t,i`` and ``extra_t = Σ_i extra_t,i``: a gate times a weight, or these with the KL penalty of a third.
    Each factor is a name, or a mapping with its options; the scope is the widest of theirs.

    Relations: `sft` is the factor that changes nothing; the order of factors does not matter. Objectives whose loss is
    more than a weight and a further term (`ift`, `irft`) are refused.
    """

    name: ClassVar[str] = "product"
    source: ClassVar[str] = "a combination of what it names"

    of: tuple[Objective, ...] = option((DFT(), PriftMass()), "the objectives multiplied")

    def __post_init__(self) -> None:
        super().__post_init__()
        for problem in factor_problems(self.of):
            raise OptionError(self.name, "of", problem)

    @property
    def needs(self) -> tuple[str, ...]:
        return united(self.of, "needs")

    @property
    def origins(self) -> tuple[str, ...]:  # type: ignore[override]
        return united(self.of, "origins")

    @property
    def columns(self) -> Mapping[str, str]:
        return {name: column for one in self.of for name, column in one.columns.items()}

    @property
    def scope(self) -> Scope:
        return max((one.scope for one in self.of), key=get_args(Scope).index)

    @property
    def reduction(self) -> Reduction:
        return next((one.reduction for one in self.of if one.reduction != "tokens"), "tokens")

    def weight(self, stats: TokenStats) -> Tensor:
        return math.prod((one.weight(stats) for one in self.of), start=super().weight(stats))

    def extra(self, stats: TokenStats) -> Tensor:
        return sum((one.extra(stats) for one in self.of), start=super().extra(stats))

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        return active_in_all(self.of, columns)
