"""Tiles of rows of logits in memory that is used again, and the products that their gradients go into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ballast.head.chunked import add_product, chunks
from ballast.head.folds import (
    Scratch,
    divergences,
    gradient_of_exponentials,
    gradient_of_logprobs,
    marginal,
    packed,
    value_of,
)
from ballast.head.projection import Projection
from ballast.statistics import find, is_pair, reads_reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ballast.head.folds import Leave
    from ballast.head.lm_head import LMHead

    Part = slice | Tensor
    """Which rows: some in a row, or their indices."""

TILE_LIMIT = 2**28
"""Logits of all tiles alive (1 GiB in float32), unless the caller says how many rows."""

CPU_TILE_LIMIT = 2**26
"""The same on a CPU (256 MiB)."""

SMALL_TILE = 2**23
"""Logits (32 MiB) below which a tile is not cut for being large beside the head's weight."""

LEAST_SPARED = 1 / 8
"""Share of a tile's rows without gradient from which on the others are moved together, which copies them."""


def tile_rows(rows: int, head: LMHead, ref_head: LMHead | None = None) -> int:
    """Return how many rows of logits to hold at a time.

    The head and its gradient are read again for every tile, so a tile is to be at least half as large as they are (on a
    CPU two fifths: more was not faster); the limits bound it. Tiles are made equally high.
    """
    vocab, hidden = head.weight.shape
    on_cpu = head.weight.device.type == "cpu"
    limit, share = (CPU_TILE_LIMIT, 2.5) if on_cpu else (TILE_LIMIT, 2)
    wide = vocab + (0 if ref_head is None else len(ref_head.weight))
    most = max(1, min(max(math.ceil(hidden / share), SMALL_TILE // vocab), limit // wide))
    return max(1, -(-rows // max(1, -(-rows // most))))


def checked_rows(
    chunk: int | None, rows: int, head: LMHead, reference: tuple[Tensor, LMHead] | None, fields: tuple[str, ...]
) -> int:
    """Return how many rows a tile has: `chunk`, or what `tile_rows` says of this many rows in all.

    Raises:
        ValueError: if `chunk` is less than 1.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, got {chunk}")
    in_use = reference is not None and any(map(reads_reference, fields))
    return min(chunk, max(rows, 1)) if chunk else tile_rows(rows, head, reference[1] if in_use and reference else None)


def parts(count: int, rows: int, order: Tensor | None) -> Iterator[Part]:
    """Yield what makes up all tokens, or those in `order`, `rows` at a time."""
    for part in chunks(count, rows):
        yield part if order is None else order[part]


@dataclass(frozen=True)
class Needed:
    """Which gradients are asked for."""

    hidden: bool
    weight: bool
    bias: bool

    @classmethod
    def by(cls, hidden: Tensor, head: LMHead) -> Needed:
        """Return what autograd would ask for now."""
        enabled = torch.is_grad_enabled()
        leaves = (hidden, head.weight, head.bias)
        return cls(*(enabled and leaf is not None and leaf.requires_grad for leaf in leaves))

    def __bool__(self) -> bool:
        return self.hidden or self.weight or self.bias


class Gradients:
    """The gradients of hidden states and head, summed over tiles in float32 or better.

    Of float16 they stay in float32 until they are multiplied by what comes from above (`attach`), which may be a scale
    that keeps them from becoming 0.
    """

    def __init__(self, hidden: Tensor, head: LMHead, needed: Needed) -> None:
        self._head, self.needed = head, needed
        # Zeros: a token may be left out, or its tile have no gradient.
        self.hidden = torch.zeros_like(hidden.detach(), dtype=_kept(hidden.dtype)) if needed.hidden else None
        self._sums = torch.promote_types(head.weight.dtype, torch.float32)
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def add(self, grad_CV: Tensor, projection: Projection, hidden_CH: Tensor, part: Part) -> None:
        """Add the products of a tile's gradient ``[C, V]``."""
        if self.needed.bias:
            total_V = grad_CV.sum(0)
            self._bias = total_V if self._bias is None else self._bias.add_(total_V)
        operand_CV = projection.operand(grad_CV)
        if self.hidden is not None:
            weight = projection.weight.to(operand_CV.dtype)
            if self.hidden.dtype == operand_CV.dtype and isinstance(part, slice):
                torch.mm(operand_CV, weight, out=self.hidden[part])
            else:
                self.hidden[part] = (operand_CV @ weight).to(self.hidden.dtype)
        if self.needed.weight:
            self._add_weight(operand_CV.T, hidden_CH.to(operand_CV.dtype))

    def _add_weight(self, grad_VC: Tensor, hidden_CH: Tensor) -> None:
        if self._weight is not None:
            add_product(self._weight, grad_VC, hidden_CH)
        else:
            # The first product is the sum so far: nothing is filled with zeros beforehand.
            self._weight = torch.mm(grad_VC, hidden_CH).to(self._sums)

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of hidden states, weight and bias, None where not asked for."""
        return (
            self.hidden,
            self._total(self._weight, self._head.weight, self.needed.weight),
            self._total(self._bias, self._head.bias, self.needed.bias),
        )

    def _total(self, total: Tensor | None, like: Tensor | None, needed: bool) -> Tensor | None:
        if not needed or like is None:
            return None
        return torch.zeros_like(like, dtype=_kept(like.dtype)) if total is None else total.to(_kept(like.dtype))


def _kept(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float16 else dtype


class Tiles:
    """One micro-batch's way through the head, a tile at a time: `fold` it, then `form` its gradient while it is there.

    Args:
        hidden, head, targets, reference, vocab_size: as for `token_stats`; never differentiated here.
        fields: the statistics that `fold` returns.
        slopes: those among them that `form` may be given a gradient of.
        rows: how many rows a tile has at most.
        low: the dtype that autocast projects in, None where it is off.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: LMHead,
        targets: Tensor,
        reference: tuple[Tensor, LMHead] | None,
        vocab_size: int | None,
        *,
        fields: tuple[str, ...],
        slopes: tuple[str, ...],
        rows: int,
        low: torch.dtype | None,
    ) -> None:
        self._hidden, self._targets, self._vocab_size, self._fields = hidden.detach(), targets, vocab_size, fields
        self._projection = Projection(head, rows, low)
        pair = any(map(is_pair, fields))
        self._reference: tuple[Tensor, Projection] | None = None
        if reference is not None and (pair or any(name.startswith("ref_") for name in fields)):
            self._reference = reference[0], Projection(reference[1], rows, low)
        self._pair, self._scratch = pair, Scratch()
        # Log-probabilities cost the gradient a second exponential; the log-prob's own gradient does without.
        by_logprobs = pair or head.softcap is not None or any(name != "logprob" for name in slopes)
        self._leave: Leave = "logprobs" if by_logprobs else "exponentials"

    def zero(self) -> Tensor:
        """Return a sum of no losses yet."""
        return self._projection.weight.new_zeros((), dtype=self._projection.wide)

    def fold(self, part: Part) -> dict[str, Tensor]:
        """Project these rows and return their statistics and what `form` needs to know of them, ``[C]`` each."""
        targets_C = self._targets[part]
        self._hidden_CH = self._hidden[part]
        self._tile_CV = self._projection.logits(self._hidden_CH)
        self._targets_C, self._ref_CV = targets_C, None
        values = marginal(self._tile_CV, targets_C, self._fields, "", self._leave, self._scratch)
        rest_C = values.pop("rest")
        if self._reference is not None:
            ref_hidden, projection = self._reference
            ref_CV = projection.logits(ref_hidden[part])
            leave: Leave = "logprobs" if self._pair else "anything"
            values |= marginal(ref_CV, targets_C, self._fields, "ref_", leave, self._scratch)
            rest_C = values.pop("ref_rest") - rest_C
            if self._pair:
                self._ref_CV = ref_CV
                how = self._vocab_size, self._scratch, rest_C, targets_C
                values |= divergences(self._tile_CV, ref_CV, self._fields, *how)
        self._known = {"top": values["top"], "normaliser": values["normaliser"]}
        short = {"H": "entropy", "S": "collision", "KL": "kl"}
        self._known |= {letter: values[name] for letter, name in short.items() if name in values}
        self._known |= {value_of(name): values[name] for name in self._fields if find(name) is not None}
        return values

    def form(self, slopes: dict[str, Tensor], gradients: Gradients, part: Part) -> None:
        """Add to the gradients those of the tile last folded, given the gradient of each of its statistics, ``[C]``.

        Overwrites the tile. Rows without any gradient are left out of the products where that spares something.
        """
        order = _carriers(slopes)
        if order is not None:
            slopes, part = {name: slope[order] for name, slope in slopes.items()}, _rows_of(part, order)
            self._keep(order)
        if not slopes or not len(self._tile_CV):
            return
        incoming = {name: slope * self._projection.scale for name, slope in slopes.items()}
        known = self._known | incoming
        if self._leave == "exponentials":
            gradient_of_exponentials(self._tile_CV, self._targets_C, known)
        else:
            gradient_of_logprobs(
                self._tile_CV,
                self._ref_CV,
                self._targets_C,
                known,
                self._vocab_size,
                self._projection.softcap,
                self._scratch,
            )
        gradients.add(self._tile_CV, self._projection, self._hidden_CH, part)

    def _keep(self, order: Tensor) -> None:
        """Leave these rows alone in the tile."""
        self._tile_CV = packed(self._tile_CV, order, self._scratch)
        self._ref_CV = None if self._ref_CV is None else packed(self._ref_CV, order, self._scratch)
        self._hidden_CH, self._targets_C = self._hidden_CH[order], self._targets_C[order]
        self._known = {name: value[order] for name, value in self._known.items()}


def _carriers(slopes: dict[str, Tensor]) -> Tensor | None:
    """Return the rows that have a gradient, None for all of them or where leaving out the others is not worth it."""
    masks = [slope != 0 for slope in slopes.values()]
    # On an accelerator the look would wait for the device.
    if not masks or masks[0].device.type != "cpu":
        return None
    order = torch.stack(masks).any(0).nonzero().squeeze(1)
    return order if len(masks[0]) - len(order) >= LEAST_SPARED * len(masks[0]) else None


def _rows_of(part: Part, order: Tensor) -> Tensor:
    return order + part.start if isinstance(part, slice) else part[order]
