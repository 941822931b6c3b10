"""Which objectives can be multiplied, and what their product takes from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ballast.objectives.base import Objective

if TYPE_CHECKING:
    from collections.abc import Sequence


def factors_problem(of: Sequence[Objective]) -> str | None:
    """Return why these objectives have no product; None where they have one."""
    for one in of:
        if type(one).per_token_loss is not Objective.per_token_loss or hasattr(one, "prepare_inputs"):
            return f"{one.name} is no factor: its loss is more than a weight and a further term"
    counts = {one.reduction for one in of} - {"tokens"}
    if len(counts) > 1:
        return f"the factors divide by {' and by '.join(sorted(counts))}, and a loss has one divisor"
    return None


def united(of: Sequence[Objective], what: str) -> tuple[str, ...]:
    """Return the names that the objectives list under an attribute, each once, in the order of the factors."""
    return tuple(dict.fromkeys(name for one in of for name in getattr(one, what)))
