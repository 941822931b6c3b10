"""The general form of PriFT's claim: a re-weighting rule, and the model that its signal is taken from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ballast.objectives._rules import RULES
from ballast.objectives._turns import KEEP_END, with_ends
from ballast.objectives.base import Objective, Scope, option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class Reweight(Objective):
    """Weigh tokens by a rule of your choice, on the live model or on the frozen reference.

    With p the chosen model's probability of the target, H its entropy and u its mass of tokens no more likely than
    the target: ``probability`` w = p, ``power`` w = p^alpha, ``threshold`` w = 1[p ≥ threshold], ``mass``
    w = 1[u ≥ threshold], ``entropy`` w = 1[H ≤ max_entropy].

    Relations: `dft` is probability/live, `prift-prob` probability/reference, `prift-mass` mass/reference.
    """

    name: ClassVar[str] = "reweight"
    source: ClassVar[str] = "PriFT, arXiv:2606.09396 (any rule improves with a reference signal)"

    rule: str = option("probability", "how the weight follows from the signal", choices=tuple(RULES))
    signal: str = option("reference", "whose statistics the rule reads", choices=("live", "reference"))
    alpha: float | None = option(None, "exponent of the rule power", minimum=0, optional=True)
    threshold: float | None = option(None, "cut of the rules threshold and mass", minimum=0, maximum=1, optional=True)
    max_entropy: float | None = option(None, "largest entropy kept, in nats, rule entropy", minimum=0, optional=True)
    ties: str | None = option(None, "whether ties count, rule mass", choices=("strict", "inclusive"), optional=True)
    keep_end: bool = option(False, f"{KEEP_END}; for gates")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._options()

    def _options(self) -> dict[str, Any]:
        given = {key: getattr(self, key) for key in ("alpha", "threshold", "max_entropy", "ties")}
        return RULES[self.rule].settled(self.rule, {**given, "keep_end": self.keep_end or None})

    def _field(self, field: str) -> str:
        return field if self.signal == "live" else f"ref_{field}"

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("logprob", *map(self._field, RULES[self.rule].fields(self._options())))))

    @property
    def scope(self) -> Scope:
        return "sequence" if self.keep_end else "token"

    def weight(self, stats: TokenStats) -> Tensor:
        weight = RULES[self.rule].weight(lambda field: stats.require(self._field(field)), self._options())
        return with_ends(weight, stats) if self.keep_end else weight

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        rule, options = RULES[self.rule], self._options()
        if self.keep_end or not rule.gate or not {*map(self._field, rule.fields(options))} <= columns.keys():
            return None
        return rule.weight(lambda field: columns[self._field(field)], options) != 0
