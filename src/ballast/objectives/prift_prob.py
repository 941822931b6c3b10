"""PriFT with the pretrained model's probability as the weight."""

from dataclasses import dataclass
from typing import ClassVar

from ballast.objectives._named import NamedReweight
from ballast.objectives.reweight import Reweight


@dataclass(frozen=True)
class PriftProb(NamedReweight):
    """Weigh each token by the probability that the frozen reference gives it.

    ``w_t = q_t(y_t)``. The run cannot feed back on its own weights.

    Requirements: a reference, live or cached. Relations: `reweight` with rule probability and signal reference;
    `dft` is the same rule on the live model.
    """

    name: ClassVar[str] = "prift-prob"
    source: ClassVar[str] = "PriFT, arXiv:2606.09396"

    def general(self) -> Reweight:
        return Reweight(rule="probability", signal="reference")
