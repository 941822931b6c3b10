"""DEFT: a power of the probability as the weight, its exponent from how concentrated the model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives.base import Objective, Scope, check_read, option

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats


@dataclass(frozen=True)
class DEFT(Objective):
    """Imitate everything where the model is uncertain, and only what it finds likely where it is sure.

    ``w_t = sg(p_t^a_t)``. With exponent ``renyi`` a is Σ p² over the vocabulary, exp of minus the Rényi entropy of
    order 2; with ``cayley`` it is ``m/2 + (1 − m/2)·p/(2 − p)``, m being the mean of p over the optimiser step; with
    ``fixed`` it is `alpha`.

    Relations: exponent 0 is `sft`, 1 is `dft`.
    """

    name: ClassVar[str] = "deft"
    source: ClassVar[str] = "DEFT, arXiv:2602.11424"

    exponent: str = option("renyi", "what the exponent follows from", choices=("renyi", "cayley", "fixed"))
    alpha: float | None = option(None, "the exponent, with `fixed` alone", minimum=0, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_read(self, "exponent", {"fixed": ("alpha",)})

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "collision") if self.exponent == "renyi" else ("logprob",)

    @property
    def scope(self) -> Scope:
        return "step" if self.exponent == "cayley" else "token"

    def weight(self, stats: TokenStats) -> Tensor:
        logprob = stats.require("logprob")
        return (self._exponents(stats) * logprob).exp()

    def _exponents(self, stats: TokenStats) -> Tensor:
        if self.exponent == "renyi":
            return stats.require("collision")
        p = stats.require("logprob").exp()
        if self.alpha is not None:
            return p.new_full(p.shape, self.alpha)
        half = p.sum() / max(len(p), 1) / 2
        return half + (1 - half) * p / (2 - p)
