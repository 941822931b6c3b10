"""Plain supervised fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

from ballast.objectives.base import Objective


@dataclass(frozen=True)
class SFT(Objective):
    """Imitate every demonstration token with the same force.

    ``w_t = 1``: the mean negative log-likelihood over all trained tokens of the optimiser step, which is what
    TRL's ``loss_type="nll"`` computes.

    Relations: every other objective here reduces to this one at some setting of its options.
    """

    name: ClassVar[str] = "sft"
    source: ClassVar[str] = "maximum likelihood"
