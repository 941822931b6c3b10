"""Loss and gradient where the loss of a token depends on other tokens: statistics first, then their gradient.

The statistics are computed without gradient, the loss is differentiated by them, and the tokens that carry gradient are
projected once more to form it. Where all tokens fit into one tile nothing is projected twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from ballast.head.attached import Formed, attach, checked_denominator, joined, per_token_slopes
from ballast.head.inputs import check, checked_columns, frozen, vocabulary_asked
from ballast.head.projection import autocast_dtype
from ballast.head.tiles import Gradients, Needed, Tiles, checked_rows, parts
from ballast.statistics import is_differentiable, is_pair
from ballast.stats import TokenStats

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch import Tensor

    from ballast.head.attached import PerTokenLoss
    from ballast.head.lm_head import LMHead


def two_phase(
    hidden: Tensor,
    head: LMHead,
    targets: Tensor,
    per_token_loss: PerTokenLoss,
    *,
    fields: tuple[str, ...] = ("logprob",),
    columns: Mapping[str, Tensor] | None = None,
    reference: tuple[Tensor, Tensor | LMHead] | None = None,
    denominator: float | Tensor | None = None,
    chunk: int | None = None,
    vocab_size: int | None = None,
    declared: Collection[str] = (),
) -> Formed:
    """Return the sum of per-token losses over the denominator, with its gradient, for a loss of any scope.

    Args:
        per_token_loss: a function of the statistics of all tokens, ``fields`` and ``columns``, to ``[N]`` losses; its
            gradient by those that are differentiable is taken.
        fields: the statistics that are computed here.
        columns: further ones, without gradient, among them ``sequence`` and ``position``.
        declared: names of columns that are no field of `TokenStats`.
        hidden, head, targets, reference, denominator, chunk, vocab_size: as for `fused_loss`.

    Raises:
        ValueError: for whatever `token_stats` refuses, or columns that do not fit.
    """
    fixed = None if reference is None else frozen(*reference)
    columns = checked_columns(columns, targets, declared)
    size, fields = vocabulary_asked(head, fields)
    fields = tuple(name for name in fields if name not in columns)
    check(hidden, head, targets, fields, fixed, vocab_size)
    total = checked_denominator(denominator, len(targets))
    needed, autocast = Needed.by(hidden, head), autocast_dtype(hidden.device.type)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        rows = checked_rows(chunk, len(targets), head, fixed, fields)
        make = partial(Tiles, hidden, head, targets, fixed, vocab_size, rows=rows, low=autocast)
        in_one = needed and len(targets) <= rows
        tiles = make(fields=fields, slopes=_with_slope(fields) if in_one else ())
        found = [tiles.fold(part) for part in parts(len(targets), rows, None)]
        stats = TokenStats.of({**joined(found, fields, tiles.zero()), **columns}, vocabulary=size)
        losses_N, slopes = per_token_slopes(per_token_loss, stats, len(targets), bool(needed))
        slopes = {name: slope / total for name, slope in slopes.items()}
        gradients = Gradients(hidden, head, needed) if needed else None
        if gradients is not None and in_one:
            for part in parts(len(targets), rows, None):
                tiles.form(slopes, gradients, part)
        elif gradients is not None:
            # Tiles are given back before others are made.
            del tiles
            for names, order in _carriers(slopes):
                _form_again(
                    make(fields=names, slopes=names), {name: slopes[name] for name in names}, gradients, order, rows
                )
    return Formed(attach(losses_N.sum() / total, hidden, head, gradients), stats, None)


def _form_again(tiles: Tiles, slopes: dict[str, Tensor], gradients: Gradients, order: Tensor, rows: int) -> None:
    for part in parts(len(order), rows, order):
        tiles.fold(part)
        tiles.form({name: slope[part] for name, slope in slopes.items()}, gradients, part)


def _with_slope(fields: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(is_differentiable, fields))


def _carriers(slopes: dict[str, Tensor]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield the statistics with a gradient other than 0 and the tokens where they have one.

    Tokens without gradient through a KL come apart, as the reference is not projected for them.
    """
    pair = [name for name in slopes if is_pair(name)]
    own = [name for name in slopes if not is_pair(name)]
    none = next((slope.new_zeros(len(slope), dtype=torch.bool) for slope in slopes.values()), None)
    if none is None:
        return
    in_pair, in_own = (sum((slopes[name] != 0 for name in names), none) for names in (pair, own))
    for names, mask in (((*own, *pair), in_pair), (tuple(own), in_own & ~in_pair)):
        order = mask.nonzero().squeeze(1)
        if len(order):
            yield names, order
