"""All that is advised on scored demonstrations, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ballast.advise.kept import Kept, kept
from ballast.advise.regime import RULE, STRONG, TESTED, Regime, regime
from ballast.advise.support import THRESHOLD, Support, support
from ballast.advise.suspects import SuspectRow, SuspectToken, contradicted, outliers, suspects
from ballast.advise.tokens import ScoredTokens
from ballast.objectives import Objective


@dataclass(frozen=True)
class Advice:
    """What the scores say.

    Attributes:
        outliers: rows far below the median row.
        suspects: of each row with contradicted tokens the first, the most surprising first.
        suspect_rows: share of rows with contradicted tokens.
        separable: whether suspects differ from what is new to the base model: flaws in some rows stand out only where
            the base model supports the typical one.
        kept: what each objective keeps.
        not_known: what the scores do not tell, in sentences.
    """

    support: Support
    regime: Regime
    outliers: tuple[SuspectRow, ...]
    suspects: tuple[SuspectToken, ...]
    suspect_rows: float
    separable: bool
    kept: tuple[Kept, ...]
    not_known: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as plain values, rows and tokens by number alone."""
        return {**asdict(self), "rule": {"text": str(RULE), **asdict(RULE), "tested": asdict(TESTED)}}


def advise(
    tokens: ScoredTokens, objectives: Sequence[Objective], *, threshold: float = THRESHOLD, ties: str = "strict"
) -> Advice:
    """Return what the base model's statistics on the demonstrations say before any training.

    Args:
        objectives: those to weigh the tokens with.
        threshold, ties: the gate of `prift-mass`.
    """
    found = support(tokens, threshold=threshold, ties=ties)
    verdict = regime(found)
    separable = verdict.name == STRONG
    weighed = tuple(kept(tokens, objectives))
    return Advice(
        support=found,
        regime=verdict,
        outliers=tuple(outliers(tokens)),
        suspects=tuple(suspects(tokens)),
        suspect_rows=len(np.unique(tokens.row[contradicted(tokens)])) / tokens.rows,
        separable=separable,
        kept=weighed,
        not_known=_not_known(found, separable, weighed),
    )


def _not_known(found: Support, separable: bool, weighed: Sequence[Kept]) -> tuple[str, ...]:
    unknown = [f"{one.name}: {one.note}" for one in weighed if one.note]
    if not separable:
        unknown.append(
            "label noise: where the base model does not support the typical row, a wrong token and a new one look alike"
        )
    unknown.append(
        "who is wrong where the base model contradicts the data, the data or the model; `ballast evaluate --readiness` "
        "says how often the model is right"
    )
    unknown.append("whether answers are right that the base model finds likely")
    unknown.append("how much of the gain is left after RL, and what another learning rate would change")
    return tuple(unknown)
