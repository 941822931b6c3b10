"""What EKSFT rewards and what it penalises, as its paper has them and as its released code computes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ballast.stats import TokenStats

    PerToken = Callable[[TokenStats], Tensor]


def _normalised(stats: TokenStats) -> Tensor:
    if stats.vocabulary is None:
        raise ValueError("the size of the vocabulary is not known: ask for 'vocabulary' in `fields`")
    return stats.require("entropy") / math.log(stats.vocabulary)


ENTROPY: dict[str, PerToken] = {
    "nats": lambda stats: stats.require("entropy"),
    "normalised": _normalised,
}
"""H, or its share of the largest there can be: ``stats -> [N]``."""

PENALTY: dict[str, PerToken] = {
    "kl": lambda stats: stats.require("kl"),
    # The cross-entropy −Σ p log q is H(p) + KL(p‖q).
    "released": lambda stats: stats.require("collision") + stats.require("entropy") + stats.require("kl"),
}
"""KL(p‖q), or Σ p·(p − log q): ``stats -> [N]``."""
