"""The library's vocabulary: one statistic per trained token, whatever computed it.

Shape suffixes used throughout: ``N`` trained tokens of a micro-batch, ``H`` hidden size, ``V`` vocabulary,
``B`` rows, ``T`` positions, ``C`` rows of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LIVE_FIELDS = ("logprob", "entropy", "collision", "mass", "tied")
"""Statistics of the model in training, from its own logits."""

PAIR_FIELDS = ("kl", "kl_forward")
"""Statistics that need both distributions over the whole vocabulary, so never come from a per-token cache."""

REFERENCE_FIELDS = ("ref_logprob", "ref_entropy", "ref_mass", "ref_tied")
"""Statistics of the frozen reference, from a live reference or from a cache."""

GROUP_FIELDS = ("advantage", "origin")
"""Columns that come with the rows of a group, not from any model."""

ORIGINS = ("expert", "teacher", "own")
"""Where an answer comes from; a token's `TokenStats.origin` is the place in this tuple."""

LAYOUT_FIELDS = ("sequence", "position", "end")
"""Where a token stands; the collator and the tokenizer know it."""

DIFFERENTIABLE_FIELDS = ("logprob", "entropy", "collision", "kl", "kl_forward")

TOKEN_FIELDS = (*LIVE_FIELDS, *PAIR_FIELDS, *REFERENCE_FIELDS, *GROUP_FIELDS, *LAYOUT_FIELDS)
"""What there is one value of for each token."""

FIELDS = (*TOKEN_FIELDS, "vocabulary")


@dataclass(frozen=True)
class TokenStats:
    """Statistics of the trained tokens of one micro-batch.

    Every field is None when nobody asked for it. Those in `TOKEN_FIELDS` are tensors ``[N]``; log-probabilities,
    entropies and divergences are in nats and at least float32. `DIFFERENTIABLE_FIELDS` carry gradient.

    Attributes:
        logprob: log p(target) under the model in training.
        entropy: −Σ p log p of the model in training.
        collision: Σ p² of the model in training: the probability that two tokens drawn from p are the same.
        kl: KL(p‖q) over the full vocabulary, q being the reference.
        kl_forward: KL(q‖p) over the full vocabulary.
        mass: probability of the tokens strictly less likely than the target, plus the target's own.
        tied: further probability of the other tokens exactly as likely as the target (equal logits as computed);
            ``mass + tied`` counts ties as less likely.
        ref_logprob, ref_entropy, ref_mass, ref_tied: the same under the reference.
        advantage: advantage of the response that the token belongs to.
        origin: which kind of response the token belongs to.
        sequence: index of the sequence that the token belongs to; None means that all belong to one.
        position: index of the token in its sequence, counted over all its tokens, trained or not; None where tokens
            follow each other as they are given.
        end: whether generation would stop at the token; None where nobody knows.
        vocabulary: number of tokens that p is over, one integer: the rows of the LM head.
    """

    logprob: Tensor | None = None
    entropy: Tensor | None = None
    collision: Tensor | None = None
    kl: Tensor | None = None
    kl_forward: Tensor | None = None
    mass: Tensor | None = None
    tied: Tensor | None = None
    ref_logprob: Tensor | None = None
    ref_entropy: Tensor | None = None
    ref_mass: Tensor | None = None
    ref_tied: Tensor | None = None
    advantage: Tensor | None = None
    origin: Tensor | None = None
    sequence: Tensor | None = None
    position: Tensor | None = None
    end: Tensor | None = None
    vocabulary: int | None = None

    def require(self, field: str) -> Tensor:
        """Return the field, which must be there.

        Raises:
            ValueError: if the field was not computed.
        """
        value: Tensor | None = getattr(self, field)
        if value is None:
            raise ValueError(f"the statistic {field!r} was not computed: ask for it in `fields`, or list it in `needs`")
        return value

    def take(self, index: Tensor) -> TokenStats:
        """Return the statistics of these tokens, by index or by mask."""
        known = {name: value for name in TOKEN_FIELDS if (value := getattr(self, name)) is not None}
        return replace(self, **{name: value[index] for name, value in known.items()})
