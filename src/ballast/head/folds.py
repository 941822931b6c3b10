"""From rows of logits to statistics, and from gradients of the statistics to the gradient of the logits.

Within C rows: p = softmax(logits), H = −Σ p log p, S = Σ p², q the reference's distribution. With incoming gradients
a, b, e, c, d of log-prob, entropy, collision, KL(p‖q) and KL(q‖p), the gradient of the logits is

    a·(1[v = y] − p) − b·p·(log p + H) + 2e·p·(p − S) + c·p·(log p − log q − KL(p‖q)) + d·(p − q),

and what each of `ballast.statistics` adds by its own gradient.

Everything works in place on the rows that it is given, some rows at a time: see `row_blocks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from ballast.statistics import find

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    Leave = Literal["logprobs", "exponentials", "anything"]
    """What is left in place of the logits: log p, exp(logits − largest), or whatever comes cheapest."""

CPU_BLOCK_LOGITS = 2**19
"""Logits (2 MiB in float32) that passes go over together on a CPU."""

BLOCK_LOGITS = 2**25
"""The same elsewhere (128 MiB): the temporaries of a pass are of this size, not of the chunk's."""

SMALLEST_LOG = -1e30
"""Stands for log 0, so that 0·log 0 is 0 and not nan."""

SUMMED = 256
"""How many numbers of a row are summed in the row's own dtype."""

KL_FIELDS = ("kl", "kl_forward")


def value_of(name: str) -> str:
    """Return the name of a statistic's value, where the name itself stands for its incoming gradient."""
    return f"value of {name.replace('@', ' ')}"


class Scratch:
    """Memory for the temporaries of a pass, taken once: freed between small results it would come back in pieces."""

    def __init__(self) -> None:
        self._memory: dict[int, Tensor] = {}

    def like(self, rows_BV: Tensor, place: int) -> Tensor:
        """Return a tensor of this shape and dtype; one asked for at the same place before is overwritten with it."""
        held = self._memory.get(place)
        if held is None or held.numel() < rows_BV.numel():
            held = self._memory[place] = rows_BV.new_empty(rows_BV.numel())
        return held[: rows_BV.numel()].view(rows_BV.shape)


def widest(rows: Tensor) -> torch.dtype:
    """Return float64, or float32 on a device that has no other."""
    return torch.float32 if rows.device.type == "mps" else torch.float64


def row_sums(rows_BV: Tensor) -> Tensor:
    """Return the sum of each row in float64, of sums in the rows' own dtype over a few hundred numbers each.

    A sum over a whole vocabulary in float32 errs in the seventh digit, which shows where it is subtracted from another.
    """
    wide, whole = widest(rows_BV), rows_BV.shape[1] // SUMMED * SUMMED
    rest_B = rows_BV[:, whole:].sum(-1).to(wide)
    if not whole:
        return rest_B
    parts_BKS = rows_BV[:, :whole].view(len(rows_BV), -1, SUMMED)
    return parts_BKS.sum(-1).sum(-1, dtype=wide) + rest_B


def row_blocks(rows_CV: Tensor) -> Iterator[slice]:
    """Yield slices of a few rows each.

    A product wants many rows at once, to read the weight rarely; the passes over its result want few on a CPU, to
    stay in the cache.
    """
    on_cpu = rows_CV.device.type == "cpu"
    limit = CPU_BLOCK_LOGITS if on_cpu else BLOCK_LOGITS
    if on_cpu and rows_CV.numel() <= 2 * limit:
        # Temporaries as large as a small tile outgrow what the allocator keeps, and are paged in anew by every call.
        limit //= 2
    rows = max(1, limit // rows_CV.shape[1])
    for start in range(0, len(rows_CV), rows):
        yield slice(start, start + rows)


def packed(rows_CV: Tensor, order_K: Tensor, scratch: Scratch) -> Tensor:
    """Move these rows, whose indices ascend, to the front in place, and return them ``[K, V]``."""
    packed_KV = rows_CV[: len(order_K)]
    for rows in row_blocks(packed_KV):
        # No row is written over before it is read: each moves forwards, if at all.
        here_BV = packed_KV[rows]
        here_BV.copy_(torch.index_select(rows_CV, 0, order_K[rows], out=scratch.like(here_BV, 0)))
    return packed_KV


def marginal(
    logits_CV: Tensor, targets_C: Tensor, fields: tuple[str, ...], prefix: str, leave: Leave, scratch: Scratch
) -> dict[str, Tensor]:
    """Return the statistics of one distribution, its largest logit and its normaliser, ``[C]`` each.

    ``rest`` is what rounding took from the normaliser, in float64. `leave` says what the rows hold afterwards.
    """
    wants = {name.removeprefix(prefix) for name in fields if name.startswith(prefix)}
    parts = [_marginal(logits_CV[rows], targets_C[rows], wants, leave, scratch) for rows in row_blocks(logits_CV)]
    return {f"{prefix}{name}": torch.cat([part[name] for part in parts]) for name in parts[0]}


def _marginal(
    logits_BV: Tensor, targets_B: Tensor, wants: set[str], leave: Leave, scratch: Scratch
) -> dict[str, Tensor]:
    """Each line is a pass over the rows; a product with a mask of bool costs several of floats, so masks are floats."""
    at_target_B1 = logits_BV.gather(1, targets_B[:, None])
    top_B1 = logits_BV.amax(-1, keepdim=True)
    wants_mass = not wants.isdisjoint(("mass", "tied"))
    if wants_mass:
        # Ties are judged on the logits as computed: subtracting the maximum can make two of them equal.
        less_BV = torch.lt(logits_BV, at_target_B1, out=scratch.like(logits_BV, 0))
        ties_B = torch.eq(logits_BV, at_target_B1, out=scratch.like(logits_BV, 1)).sum(-1) - 1
    logits_BV.sub_(top_B1)
    further = {name: one for name in wants if (one := find(name)) is not None and not one.pair}
    keeps_logits = leave == "logprobs" or "entropy" in wants or bool(further)
    p_BV = torch.exp(logits_BV, out=scratch.like(logits_BV, 1) if keeps_logits else logits_BV)
    # Whatever there is one of for each row is exact to float64 until the end.
    total_B = row_sums(p_BV)
    exact_B = total_B.log()
    normaliser_B = exact_B.to(logits_BV.dtype)
    own_B = (at_target_B1.to(total_B.dtype) - top_B1.to(total_B.dtype)).squeeze(1) - exact_B
    values = {"logprob": own_B, "top": top_B1.squeeze(1), "normaliser": normaliser_B}
    if wants_mass:
        tied_B = ties_B * own_B.exp()
        less_B = row_sums(less_BV.mul_(p_BV)) / total_B
        values["tied"] = tied_B
        # Nothing is likelier than an arg-max, whose mass and ties are all there is, free of rounding.
        values["mass"] = torch.where((at_target_B1 >= top_B1).squeeze(1), 1 - tied_B, less_B + own_B.exp())
    if "collision" in wants:
        square_BV = torch.mul(p_BV, p_BV, out=scratch.like(logits_BV, 0))
        values["collision"] = row_sums(square_BV) / total_B.square()
    if keeps_logits:
        logits_BV.clamp_(min=SMALLEST_LOG)
    if further:
        logp_BV = torch.sub(logits_BV, normaliser_B[:, None], out=scratch.like(logits_BV, 2))
        values |= {name: one.fold(logp_BV, targets_B, None) for name, one in further.items()}
    if "entropy" in wants:
        product_BV = logits_BV.mul_(p_BV) if leave == "exponentials" else p_BV.mul_(logits_BV)
        values["entropy"] = exact_B - row_sums(product_BV) / total_B
    if keeps_logits and leave == "exponentials":
        logits_BV.copy_(p_BV)
    if leave == "logprobs":
        logits_BV.sub_(normaliser_B[:, None])
    rounded = {name: value.to(logits_BV.dtype) for name, value in values.items()}
    return {**rounded, "rest": exact_B - normaliser_B}


def divergences(
    logp_CV: Tensor,
    logq_CV: Tensor,
    fields: tuple[str, ...],
    vocab_size: int | None,
    scratch: Scratch,
    rest_C: Tensor,
    targets_C: Tensor,
) -> dict[str, Tensor]:
    """Return the fields asked for that need both, ``[C]`` each, from log-probabilities, which stay as they are.

    `rest_C` is what rounding took from the reference's normaliser, less what it took from the model's (see `marginal`):
    being the same for all tokens of a row, it would not average out.
    """
    if vocab_size is not None and not vocab_size == logp_CV.shape[1] == logq_CV.shape[1]:
        rest_C = torch.zeros_like(rest_C)
    further = {name: one for name in fields if (one := find(name)) is not None and one.pair}
    parts: dict[str, list[Tensor]] = {name: [] for name in (*KL_FIELDS, *further) if name in fields}
    for rows in row_blocks(logp_CV):
        logp_BV, logq_BV = _common(logp_CV[rows], vocab_size), _common(logq_CV[rows], vocab_size)
        difference_BV = torch.sub(logp_BV, logq_BV, out=scratch.like(logp_BV, 0))
        for name, sign, log_BV in (("kl", 1, logp_BV), ("kl_forward", -1, logq_BV)):
            if name in parts:
                weight_BV = torch.exp(log_BV, out=scratch.like(log_BV, 1))
                exact_B = sign * (row_sums(weight_BV.mul_(difference_BV)) + rest_C[rows])
                parts[name].append(exact_B.to(logp_BV.dtype))
        for name, one in further.items():
            parts[name].append(one.fold(logp_BV, targets_C[rows], logq_BV))
    return {name: torch.cat(values) for name, values in parts.items()}


def _common(logp_BV: Tensor, vocab_size: int | None) -> Tensor:
    """Return log-probabilities over the tokens that both vocabularies have, normalised anew if rows are left out."""
    if vocab_size is None or vocab_size == logp_BV.shape[1]:
        return logp_BV
    return logp_BV[:, :vocab_size].log_softmax(-1)


def gradient_of_exponentials(exponentials_CV: Tensor, targets_C: Tensor, known: dict[str, Tensor]) -> None:
    """Turn exp(logits − largest) into the gradient of the logits where only the log-prob has one.

    `known` has the gradient of ``logprob`` and the normaliser, ``[C]`` each.
    """
    factor_C1 = (-known["logprob"] * (-known["normaliser"]).exp())[:, None]
    for rows in row_blocks(exponentials_CV):
        exponentials_CV[rows].mul_(factor_C1[rows])
    exponentials_CV.scatter_add_(1, targets_C[:, None], known["logprob"][:, None])


def gradient_of_logprobs(
    logp_CV: Tensor,
    logq_CV: Tensor | None,
    targets_C: Tensor,
    known: dict[str, Tensor],
    vocab_size: int | None,
    softcap: float | None,
    scratch: Scratch,
) -> None:
    """Turn log-probabilities into the gradient of the logits before the cap; overwrites those of the reference too.

    `known` has the incoming gradients under the names of their fields, and H, S, KL, the largest logit and the
    normaliser as the forward found them, ``[C]`` each.
    """
    for rows in row_blocks(logp_CV):
        here = {name: value[rows] for name, value in known.items()}
        logp_BV, logq_BV = logp_CV[rows], None if logq_CV is None else logq_CV[rows]
        slope_BV = None if softcap is None else _slope(logp_BV, here, softcap, scratch)
        further_BV = _further_gradient(logp_BV, logq_BV, targets_C[rows], here, vocab_size)
        extra_BV = None if logq_BV is None else _kl_gradient(logp_BV, logq_BV, here, vocab_size, scratch)
        _marginal_gradient(logp_BV, here, scratch)
        if "logprob" in here:
            logp_BV.scatter_add_(1, targets_C[rows][:, None], here["logprob"][:, None])
        if extra_BV is not None:
            logp_BV[:, :vocab_size].add_(extra_BV)
        if further_BV is not None:
            logp_BV.add_(further_BV)
        if slope_BV is not None:
            logp_BV.mul_(slope_BV)


def _slope(logp_BV: Tensor, known: dict[str, Tensor], softcap: float, scratch: Scratch) -> Tensor:
    logits_BV = torch.add(logp_BV, known["normaliser"][:, None], out=scratch.like(logp_BV, 2)).add_(
        known["top"][:, None]
    )
    return logits_BV.div_(softcap).square_().neg_().add_(1)


def _further_gradient(
    logp_BV: Tensor, logq_BV: Tensor | None, targets_B: Tensor, known: dict[str, Tensor], vocab_size: int | None
) -> Tensor | None:
    """Return what the statistics by registration add, None where none has an incoming gradient."""
    total_BV: Tensor | None = None
    for name, incoming_B in known.items():
        if (statistic := find(name)) is None:
            continue
        own_BV, other_BV = logp_BV, None
        if statistic.pair and logq_BV is not None:
            own_BV, other_BV = _common(logp_BV, vocab_size), _common(logq_BV, vocab_size)
        grad_BV = statistic.gradient(own_BV, targets_B, other_BV, known[value_of(name)]).mul_(incoming_B[:, None])
        if total_BV is None:
            total_BV = torch.zeros_like(logp_BV)
        total_BV[:, : grad_BV.shape[1]].add_(grad_BV)
    return total_BV


def _marginal_gradient(logp_BV: Tensor, known: dict[str, Tensor], scratch: Scratch) -> None:
    """Put ``−p·(a + b·(log p + H) − 2e·(p − S))`` in place of the log-probabilities."""
    factor_B1 = -known["logprob"][:, None] if "logprob" in known else 0.0
    if known.keys().isdisjoint(("entropy", "collision")):
        logp_BV.exp_().mul_(factor_B1)
        return
    p_BV = torch.exp(logp_BV, out=scratch.like(logp_BV, 0))
    if "entropy" in known:
        logp_BV.add_(known["H"][:, None]).mul_(-known["entropy"][:, None]).add_(factor_B1)
    else:
        logp_BV.zero_().add_(factor_B1)
    if "collision" in known:
        twice_B1 = 2 * known["collision"][:, None]
        logp_BV.addcmul_(p_BV, twice_B1).sub_(known["S"][:, None] * twice_B1)
    logp_BV.mul_(p_BV)


def _kl_gradient(
    logp_BV: Tensor, logq_BV: Tensor, known: dict[str, Tensor], vocab_size: int | None, scratch: Scratch
) -> Tensor | None:
    """Return ``c·p·(log p − log q − KL) + d·(p − q)`` over the tokens that both vocabularies have."""
    if known.keys().isdisjoint(KL_FIELDS):
        return None
    logp_BV, logq_BV = _common(logp_BV, vocab_size), _common(logq_BV, vocab_size)
    p_BV = torch.exp(logp_BV, out=scratch.like(logp_BV, 0))
    pulled_BV = None
    if "kl_forward" in known:
        q_BV = torch.exp(logq_BV, out=scratch.like(logq_BV, 1))
        pulled_BV = torch.sub(p_BV, q_BV, out=q_BV).mul_(known["kl_forward"][:, None])
    if "kl" not in known:
        return pulled_BV
    # The difference first: where p = q the gradient is 0 exactly.
    grad_BV = torch.sub(logp_BV, logq_BV, out=logq_BV).sub_(known["KL"][:, None]).mul_(p_BV)
    grad_BV.mul_(known["kl"][:, None])
    return grad_BV if pulled_BV is None else grad_BV.add_(pulled_BV)
