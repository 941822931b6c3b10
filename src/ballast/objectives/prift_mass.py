"""PriFT with a gate on the pretrained model's probability mass."""

from dataclasses import dataclass
from typing import ClassVar

from ballast.objectives._named import NamedReweight
from ballast.objectives._turns import KEEP_END
from ballast.objectives.base import option
from ballast.objectives.reweight import Reweight


@dataclass(frozen=True)
class PriftMass(NamedReweight):
    """Keep the tokens that stand high enough in the frozen reference's ranking, drop the others.

    ``w_t = 1[u_t ≥ threshold]``, u_t being the reference's probability of all tokens less likely than the target,
    plus the target's own. With ``ties="strict"`` (the released code, and the published numbers) tokens exactly as
    likely as the target do not count, with ``"inclusive"`` (the authors' README) they do: for q = [.3, .3, .3, .1]
    the first token has u = .4 or 1. The sum is divided by all trained tokens, not by the kept ones.

    Requirements: a reference, live or cached. Relations: threshold 0 is `sft`; `reweight` with rule mass and
    signal reference.
    """

    name: ClassVar[str] = "prift-mass"
    source: ClassVar[str] = "PriFT, arXiv:2606.09396"

    threshold: float = option(0.5, "smallest mass kept", minimum=0, maximum=1)
    ties: str = option("strict", "whether tokens exactly as likely count", choices=("strict", "inclusive"))
    keep_end: bool = option(False, KEEP_END)

    def general(self) -> Reweight:
        return Reweight("mass", "reference", threshold=self.threshold, ties=self.ties, keep_end=self.keep_end)
