"""Whether an objective teaches a model to stop: the weight of the tokens that end a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.objectives import Objective, turn_ends

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats

HARDLY = 0.1
"""Share of an objective's mean weight below which the end of a turn counts as hardly taught."""


def end_weight(weight: Tensor, stats: TokenStats) -> float | None:
    """Return the mean of an objective's weights ``[N]`` over the tokens that end a turn; None where there is none."""
    ends = weight[turn_ends(stats)]
    return float(ends.double().mean()) if len(ends) else None


def weights_tell(objective: Objective) -> bool:
    """Return whether weights say by themselves how hard a token is pulled: not where they carry gradient."""
    return type(objective).per_token_loss is Objective.per_token_loss


def end_warning(objective: Objective, end: float | None, mean: float | None) -> str:
    """Return what to say of an objective whose weights have these means, at ends of turns and everywhere; else ""."""
    if not weights_tell(objective) or end is None or not mean or end >= HARDLY * mean:
        return ""
    remedy = "set its option keep_end to true" if hasattr(objective, "keep_end") else "begin with sft, or mix it in"
    return (
        f"{objective.name}: the tokens that end a turn have a mean weight of {end:.2g}, all tokens of {mean:.2g}: the "
        f"model would hardly learn to stop; {remedy}"
    )
