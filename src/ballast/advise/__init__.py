"""What demonstrations scored under the frozen base model say before any training."""

from ballast.advise.advice import Advice, advise
from ballast.advise.ends import end_warning, end_weight
from ballast.advise.kept import Kept, kept
from ballast.advise.regime import RULE, TESTED, Regime, regime
from ballast.advise.support import Support, support
from ballast.advise.suspects import SuspectRow, SuspectToken, contradicted, outliers, suspects
from ballast.advise.tokens import ScoredTokens, gather

__all__ = [
    "RULE",
    "TESTED",
    "Advice",
    "Kept",
    "Regime",
    "ScoredTokens",
    "Support",
    "SuspectRow",
    "SuspectToken",
    "advise",
    "contradicted",
    "end_warning",
    "end_weight",
    "gather",
    "kept",
    "outliers",
    "regime",
    "support",
    "suspects",
]
