"""Dynamic fine-tuning: the live model's own probability as the weight."""

from dataclasses import dataclass
from typing import ClassVar

from ballast.objectives._named import NamedReweight
from ballast.objectives.reweight import Reweight


@dataclass(frozen=True)
class DFT(NamedReweight):
    """Weigh each token by the probability that the model in training gives it.

    ``w_t = sg(p_t)``, which cancels the 1/p in the gradient of the likelihood. The weights move with the model.

    Relations: `reweight` with rule probability and signal live; TRL's ``loss_type="dft"``. `prift-prob` is the
    same rule on the frozen reference.
    """

    name: ClassVar[str] = "dft"
    source: ClassVar[str] = "DFT, arXiv:2508.05629"

    def general(self) -> Reweight:
        return Reweight(rule="probability", signal="live")
