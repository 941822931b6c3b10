"""Loss and gradient in one pass: the gradient of a tile of logits is formed while the tile is in hand.

Per tile one projection and two products of its gradient, nothing is computed twice. What makes it possible is that a
loss of scope ``token`` is known as soon as a token's own statistics are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch

from ballast.errors import BallastError
from ballast.head.attached import Formed, attach, checked_denominator, joined, per_token_slopes
from ballast.head.inputs import as_head, check, checked_columns, frozen, vocabulary_asked
from ballast.head.projection import autocast_dtype
from ballast.head.tiles import Gradients, Needed, Tiles, checked_rows, parts
from ballast.statistics import is_differentiable, is_of_models, is_pair
from ballast.stats import REFERENCE_FIELDS, TokenStats

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.head.lm_head import LMHead
    from ballast.head.tiles import Part


class TokenObjective(Protocol):
    """What is asked of an objective here; `ballast.Objective` has it."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> tuple[str, ...]: ...

    @property
    def scope(self) -> str: ...

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None: ...

    def per_token_loss(self, stats: TokenStats) -> Tensor: ...


def fused_loss(
    hidden: Tensor,
    weight: Tensor | LMHead,
    targets: Tensor,
    objective: TokenObjective,
    *,
    bias: Tensor | None = None,
    columns: Mapping[str, Tensor] | None = None,
    reference: tuple[Tensor, Tensor | LMHead] | None = None,
    denominator: float | Tensor | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    vocab_size: int | None = None,
) -> Tensor:
    """Return the sum of the objective's per-token losses over the denominator, with its gradient.

    Equal to ``objective.per_token_loss(token_stats(...)).sum() / denominator`` up to rounding, faster and in less
    memory: the gradients are there when the loss is, and ``backward`` hands them on (once; not differentiable twice).
    Tokens that the objective knows to be without loss from `columns` alone are not projected.

    Args:
        hidden: last hidden states at the positions that predict the targets, ``[N, H]``.
        weight: the LM head's weight ``[V, H]``, or an `LMHead`, which brings bias, cap and scale along.
        targets: token ids, ``[N]``.
        objective: an objective of scope ``token``, built by `ballast.objective`.
        bias: the LM head's bias ``[V]``.
        columns: what the objective needs and does not follow from the logits here, ``{field: [N]}`` in the order of
            the targets, without gradient: the reference's statistics from a cache, a group's advantage.
        reference: hidden states ``[N, Hr]`` and LM head ``[Vr, Hr]`` of a live reference, for ``kl``, ``kl_forward``
            and the ``ref_`` fields that `columns` does not have; never differentiated.
        denominator: what the sum is divided by; None takes N.
        chunk: rows of logits held at a time; None takes tiles of two fifths of the head's size (on an accelerator
            half), but 32 MiB or more, and up to 256 MiB (1 GiB) in float32, both models' together.
        softcap, scale, vocab_size: as in `token_stats`.

    Returns:
        A scalar in float32 (float64 for a float64 head).

    Raises:
        ValueError: for an objective of another scope, a need that neither columns nor reference give, columns that
            do not fit, and whatever `token_stats` refuses.

    >>> from ballast import objective
    >>> hidden, weight = torch.eye(2), torch.zeros(4, 2)
    >>> fused_loss(hidden, weight, torch.tensor([0, 3]), objective("sft")).exp()
    tensor(4.0000)
    """
    return fused_pass(
        hidden,
        as_head(weight, bias, softcap, scale),
        targets,
        objective,
        columns=columns,
        reference=reference,
        denominator=denominator,
        chunk=chunk,
        vocab_size=vocab_size,
    ).loss


def fused_pass(
    hidden: Tensor,
    head: LMHead,
    targets: Tensor,
    objective: TokenObjective,
    *,
    columns: Mapping[str, Tensor] | None = None,
    reference: tuple[Tensor, Tensor | LMHead] | None = None,
    denominator: float | Tensor | None = None,
    chunk: int | None = None,
    vocab_size: int | None = None,
    fields: tuple[str, ...] = (),
    whole: bool = False,
) -> Formed:
    """Return `fused_loss` with the statistics that it was computed from and further ``fields``, for logs.

    With ``whole`` tokens that have no loss go through the head all the same, so that the statistics are of every token.
    """
    _check_objective(objective)
    fixed = None if reference is None else frozen(*reference)
    columns = checked_columns(columns, targets, objective.needs)
    needs = _needs(objective, columns, fixed is not None)
    size, asked = vocabulary_asked(head, (*objective.needs, *fields))
    wanted = tuple(name for name in asked if name not in columns)
    check(hidden, head, targets, wanted, fixed, vocab_size)
    total = checked_denominator(denominator, len(targets))
    needed, autocast = Needed.by(hidden, head), autocast_dtype(hidden.device.type)
    slopes = tuple(filter(is_differentiable, needs)) if needed else ()
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        computed = None if whole else _active(objective, columns, targets)
        order = None if computed is None else computed.nonzero().squeeze(1)
        count = len(targets) if order is None else len(order)
        rows = checked_rows(chunk, count, head, fixed, wanted)
        tiles = Tiles(hidden, head, targets, fixed, vocab_size, fields=wanted, slopes=slopes, rows=rows, low=autocast)
        gradients = Gradients(hidden, head, needed) if needed else None
        loss, found = tiles.zero(), []
        for part in parts(count, rows, order):
            values = tiles.fold(part)
            own = {name: values[name] for name in needs}
            stats_C = TokenStats.of({**own, **_take(columns, part)}, vocabulary=size)
            losses_C, slopes_C = per_token_slopes(objective.per_token_loss, stats_C, len(values["top"]), bool(needed))
            loss += losses_C.sum()
            if gradients is not None:
                tiles.form({name: slope / total for name, slope in slopes_C.items()}, gradients, part)
            found.append(values)
        left = columns if order is None else _take(columns, order)
        stats = TokenStats.of({**joined(found, wanted, loss), **left}, vocabulary=size)
    return Formed(attach(loss / total, hidden, head, gradients), stats, computed)


def _take(columns: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    return {name: column[part] for name, column in columns.items()}


def _check_objective(objective: TokenObjective) -> None:
    if not hasattr(objective, "per_token_loss"):
        raise BallastError(f"objective: expected a built objective, got {objective!r}; build it by ballast.objective")
    if objective.scope != "token":
        raise BallastError(
            f"objective {objective.name}: a loss of scope {objective.scope!r} looks beyond the tile in hand, its "
            "gradient would be another one; use token_stats, or ballast.head.two_phase"
        )
    if hasattr(objective, "prepare_inputs"):
        raise BallastError(
            f"objective {objective.name} changes what the model reads, which has happened by now and would be left "
            "out; use ballast.Trainer"
        )


def _needs(objective: TokenObjective, columns: Mapping[str, Tensor], has_reference: bool) -> tuple[str, ...]:
    """Return the statistics of the logits that are computed here, the other needs being in the columns."""
    computed = tuple(name for name in objective.needs if name not in (*columns, "vocabulary"))
    for name in computed:
        if is_pair(name) and not has_reference:
            raise BallastError(
                f"objective {objective.name} needs {name!r}: give `reference`, a KL over the vocabulary cannot come "
                "from a column"
            )
        if name in REFERENCE_FIELDS and not has_reference:
            raise BallastError(f"objective {objective.name} needs {name!r}: give it in `columns`, or give `reference`")
        if not is_of_models(name):
            raise BallastError(f"objective {objective.name} needs {name!r}: give it in `columns`, it is of the rows")
    return computed


def _active(objective: TokenObjective, columns: Mapping[str, Tensor], targets: Tensor) -> Tensor | None:
    mask = objective.active(columns)
    if mask is not None and (mask.shape != targets.shape or mask.dtype != torch.bool):
        raise BallastError(
            f"objective {objective.name}: active() gave {mask.dtype} {[*mask.shape]} for {len(targets)} tokens, other "
            "tokens would be left out; return one bool per token, or None"
        )
    return mask
