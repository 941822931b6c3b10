"""The library's vocabulary: one statistic per trained token, whatever computed it.

Shape suffixes used throughout: ``N`` trained tokens of a micro-batch, ``H`` hidden size, ``V`` vocabulary,
``B`` rows, ``T`` positions, ``C`` rows of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

LIVE_FIELDS = ("logprob", "entropy", "collision", "mass", "tied")
"""Statistics of the model in training, from its own logits."""

PAIR_FIELDS = ("kl", "kl_forward")
"""Statistics that need both distributions over the whole vocabulary, so never come from a per-token cache."""

REFERENCE_FIELDS = ("ref_logprob", "ref_entropy", "ref_mass", "ref_tied")
"""Statistics of the frozen reference, from a live reference or from a cache."""

ORIGINS = ("expert", "teacher", "own")
"""Where an answer of a group comes from; a token's `TokenStats.origin` is the place in this tuple."""

GROUP_FIELDS = ("advantage", "origin", "group", "reward", "share")
"""Columns that come with the rows of a group, not from any model."""

JUDGED_FIELDS = ("advantage", "reward")
"""Those of them that are there only where a verifier has judged the answers."""

STEP_FIELDS = ("share",)
"""Those of them that depend on the whole optimiser step."""

LAYOUT_FIELDS = ("sequence", "position", "end")
"""Where a token stands; the collator and the tokenizer know it."""

OLD_FIELDS = ("old_logprob",)
"""Statistics of the model some optimiser steps ago, scored ahead of the steps that train on them."""

RUN_FIELDS = ("progress",)
"""What the run says of all its tokens."""

DIFFERENTIABLE_FIELDS = ("logprob", "entropy", "collision", "kl", "kl_forward")

TOKEN_FIELDS = (
    *LIVE_FIELDS,
    *PAIR_FIELDS,
    *REFERENCE_FIELDS,
    *GROUP_FIELDS,
    *OLD_FIELDS,
    *RUN_FIELDS,
    *LAYOUT_FIELDS,
)
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
        origin: which kind of response the token belongs to, a place in `ORIGINS`.
        group: which group of responses to one prompt the token belongs to; any number, one for each group.
        reward: what the verifier said of the response, 0 … 1.
        share: what makes the means of all origins over an optimiser step weigh the same in it: tokens of the step /
            (origins · tokens of the token's origin), of tokens that can have a loss.
        old_logprob: log p(target) under the model as it was up to `refresh` optimiser steps ago.
        progress: share of the training done, 0 … 1, the same for all tokens.
        sequence: index of the sequence that the token belongs to; None means that all belong to one.
        position: index of the token in its sequence, counted over all its tokens, trained or not; None where tokens
            follow each other as they are given.
        end: whether generation would stop at the token; None where nobody knows.
        vocabulary: number of tokens that p is over, one integer: the rows of the LM head.
        further: by name, ``[N]`` each, what has no field of its own: statistics from `ballast.statistics`, such as
            ``top_entropy@20``, and columns of the data that an objective declares.
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
    group: Tensor | None = None
    reward: Tensor | None = None
    share: Tensor | None = None
    old_logprob: Tensor | None = None
    progress: Tensor | None = None
    sequence: Tensor | None = None
    position: Tensor | None = None
    end: Tensor | None = None
    vocabulary: int | None = None
    further: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Tensor], *, vocabulary: int | None = None) -> TokenStats:
        """Return statistics from values by name, each in its field or among the further ones."""
        return cls(vocabulary=vocabulary).changed(values)

    def changed(self, values: Mapping[str, Tensor]) -> TokenStats:
        """Return these statistics with other values, by name."""
        own: dict[str, Any] = {name: value for name, value in values.items() if name in TOKEN_FIELDS}
        others = {name: value for name, value in values.items() if name not in TOKEN_FIELDS}
        return replace(self, **own, further={**self.further, **others})

    def get(self, name: str) -> Tensor | None:
        """Return a statistic by name, None where it was not computed."""
        return getattr(self, name) if name in FIELDS else self.further.get(name)

    def require(self, name: str) -> Tensor:
        """Return the statistic of this name, which must be there.

        Raises:
            ValueError: if it was not computed.
        """
        value = self.get(name)
        if value is None:
            raise ValueError(f"the statistic {name!r} was not computed: ask for it in `fields`, or list it in `needs`")
        return value

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that there is one value of for each token, by name."""
        known = {name: value for name in TOKEN_FIELDS if (value := getattr(self, name)) is not None}
        return {**known, **self.further}

    def take(self, index: Tensor) -> TokenStats:
        """Return the statistics of these tokens, by index or by mask."""
        return self.changed({name: value[index] for name, value in self.tensors().items()})
