"""Which objectives can be multiplied, and what their product takes from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ballast.objectives.base import Objective, has_extra

if TYPE_CHECKING:
    from torch import Tensor


def factor_problems(factors: Sequence[Objective]) -> Iterator[str]:
    """Yield why these objectives have no product."""
    for one in factors:
        if type(one).per_token_loss is not Objective.per_token_loss or hasattr(one, "prepare_inputs"):
            yield f"{one.name} is no factor: its loss is more than a weight and a further term"
    if len(counts := {one.reduction for one in factors} - {"tokens"}) > 1:
        yield f"the factors divide by {' and by '.join(sorted(counts))}, and a loss has one divisor"
    wide = next((one.name for one in factors if has_extra(one) and one.scope != "token"), None)
    if wide and any(one.scope == "step" for one in factors):
        yield f"{wide} has a further term that looks beyond a token, which none does beside a factor of scope 'step'"
    read = sorted({(name, column) for one in factors for name, column in one.columns.items()})
    if twice := [name for (name, _), (other, _) in pairwise(read) if name == other]:
        yield f"the factors read {twice[0]!r} from different columns of the data, and one would take the other's place"


def united(of: Sequence[Objective], what: str) -> tuple[str, ...]:
    """Return the names that the objectives list under an attribute, each once, in the order of the factors."""
    return tuple(dict.fromkeys(name for one in of for name in getattr(one, what)))


def active_in_all(of: Sequence[Objective], columns: Mapping[str, Tensor]) -> Tensor | None:
    """Return where no factor is known to weigh 0, from columns; None where any token may have a loss."""
    if any(has_extra(one) for one in of):
        return None
    known = [mask for one in of if (mask := one.active(columns)) is not None]
    return math.prod(known[1:], start=known[0]) if known else None
