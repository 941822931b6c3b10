"""IRFT and SPIN: prefer demonstrations over the model's own answers, by a reward that is the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ballast.objectives._pairs import Pairs, pairs
from ballast.objectives.base import Objective, Reduction, Scope, option

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ballast.stats import TokenStats

LINKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sigmoid": (lambda m: (-m).logaddexp(m * 0), lambda m: (-m).sigmoid()),
    "hinge": (lambda m: (1 - m).relu(), lambda m: (m < 1).to(m.dtype)),
    "none": (lambda m: -m, lambda m: m * 0 + 1),
}
"""By name the loss of a margin, and how fast it falls."""


@dataclass(frozen=True)
class IRFT(Objective):
    """Prefer the given answer of each prompt over the model's own, by their log-ratios to the reference.

    ``m = beta·(Δ(given) − Δ(own))`` with ``Δ(y) = Σ_t (log p − log q)``; the loss of a pair is ``−log σ(m)``,
    ``max(0, 1 − m)`` or ``−m``, averaged over the pairs of a group.

    Requirements: groups with expert and own answers, judged or not. Relations: SPIN is the sigmoid link on answers
    sampled once for all the data; at a round's first step the expected gradient is that of summed `sft`, scaled.
    """

    name: ClassVar[str] = "irft"
    source: ClassVar[str] = "IRFT, arXiv:2405.17888, Algorithm 2; SPIN, arXiv:2401.01335"
    origins: ClassVar[tuple[str, ...]] = ("expert", "own")

    beta: float = option(0.1, "how much of a log-ratio counts, above 0", minimum=1e-6)
    link: str = option("sigmoid", "what becomes of a pair's margin", choices=tuple(LINKS))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprob", "ref_logprob", "origin", "group")

    @property
    def scope(self) -> Scope:
        return "group"

    @property
    def reduction(self) -> Reduction:
        return "groups"

    def _margins(self, stats: TokenStats) -> tuple[Pairs, Tensor]:
        found = pairs(stats)
        return found, self.beta * found.differences(stats.require("logprob") - stats.require("ref_logprob"))

    def per_token_loss(self, stats: TokenStats) -> Tensor:
        found, margins = self._margins(stats)
        return found.spread(LINKS[self.link][0](margins))

    def weight(self, stats: TokenStats) -> Tensor:
        found, margins = self._margins(stats)
        return found.signed(self.beta * LINKS[self.link][1](margins))

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        found, margins = self._margins(stats)
        return {"margin": found.means(margins), "preferred": found.means((margins > 0).to(margins.dtype))}
