"""The general form of PriFT's claim: a re-weighting rule, and the model that its signal is taken from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ballast.objectives._rules import RULES
from ballast.objectives.base import Objective, OptionError, option

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
    ties: str | None = option(
        None, "whether tokens exactly as likely count, rule mass", choices=("strict", "inclusive"), optional=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        has = RULES[self.rule].options
        for key in ("alpha", "threshold", "max_entropy", "ties"):
            if getattr(self, key) is not None and key not in has:
                raise OptionError(self.name, key, f"rule {self.rule!r} has no {key!r}, it would be ignored")
            if getattr(self, key) is None and key in has and has[key] is None:
                raise OptionError(self.name, "rule", f"rule {self.rule!r} needs the option {key!r}")

    def _options(self) -> dict[str, Any]:
        given = {key: getattr(self, key) for key in RULES[self.rule].options}
        return {key: RULES[self.rule].options[key] if value is None else value for key, value in given.items()}

    def _field(self, field: str) -> str:
        return field if self.signal == "live" else f"ref_{field}"

    @property
    def needs(self) -> tuple[str, ...]:
        fields = (self._field(field) for field in RULES[self.rule].fields(self._options()))
        return tuple(dict.fromkeys(("logprob", *fields)))

    def weight(self, stats: TokenStats) -> Tensor:
        return RULES[self.rule].weight(lambda field: stats.require(self._field(field)), self._options())

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        rule, options = RULES[self.rule], self._options()
        known = {self._field(field) for field in rule.fields(options)} <= columns.keys()
        return rule.weight(lambda field: columns[self._field(field)], options) != 0 if known and rule.gate else None
