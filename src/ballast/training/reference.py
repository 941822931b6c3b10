"""The reference of one run: what it can serve, which columns it adds to the rows, what it computes in each batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ballast.errors import BallastError
from ballast.groups.options import ROUND, round_problem
from ballast.head import lm_head
from ballast.limits import context_length
from ballast.reference import (
    AdapterOffReference,
    CacheKey,
    LiveReference,
    ModelReference,
    ReferenceCache,
    resolve_reference,
    score_rows,
    starts_at_base,
)
from ballast.reference.resolve import BY_NAME
from ballast.statistics import check_statistics, is_of_models, is_pair, reads_reference
from ballast.stats import GROUP_FIELDS, REFERENCE_FIELDS
from ballast.training.sharded import shard_frozen

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from torch import Tensor

    from ballast.head import LMHead
    from ballast.objectives import Objective
    from ballast.protocols import Model, Tokenizer
    from ballast.reference.resolve import ReferenceSpec

    RunSpec: TypeAlias = "ReferenceSpec | ScoredCache"
    States: TypeAlias = tuple[Tensor, LMHead]


@dataclass(frozen=True)
class ScoredCache:
    """A cache that was filled by the model that training starts from, so neither is to be hashed again.

    Attributes:
        cache: opened and verified.
        model: what filled it; a new adapter on it may train.
    """

    cache: ReferenceCache
    model: Model


def is_cache(spec: RunSpec) -> bool:
    """Return whether a reference specification names a cache on disk, rather than a model in memory."""
    if isinstance(spec, Mapping):
        return "cache" in spec
    if isinstance(spec, str):
        return spec not in BY_NAME and spec != ROUND
    return isinstance(spec, (ReferenceCache, ScoredCache, Path))


def is_round(spec: RunSpec) -> bool:
    """Return whether the reference is the model as it was when a round of answers was sampled."""
    return isinstance(spec, str) and spec == ROUND


def check_needs(objective: Objective, spec: RunSpec) -> None:
    """Refuse a reference that cannot serve the objective, before anything is loaded.

    Raises:
        BallastError: if the objective needs a KL over the vocabulary and the reference is a per-token cache, or has no
            rounds of answers to be compared with themselves.
    """
    if is_round(spec) and (problem := round_problem(objective.name, objective.needs)):
        raise BallastError(f"reference: {problem}")
    if is_cache(spec) and any(name in GROUP_FIELDS for name in objective.needs):
        raise BallastError(
            f"objective {objective.name} trains on answers that are sampled as it goes, which no cache holds: leave "
            "the reference out, or use 'model'"
        )
    pairs = list(filter(is_pair, objective.needs))
    if pairs and is_cache(spec):
        raise BallastError(
            f"objective {objective.name} needs {pairs[0]!r} over the full vocabulary, which a per-token cache does not "
            "hold: use reference 'model', or 'adapter-off' with LoRA"
        )


def needs_reference(objective: Objective, spec: RunSpec) -> bool:
    """Return whether a run has a reference: because the objective reads one, or because the user asks for one."""
    return any(map(reads_reference, objective.needs)) or spec not in (None, "auto")


@dataclass(frozen=True)
class RunReference:
    """A live reference, a cache, log-probabilities that answers bring, or none; what follows for rows and batches.

    Attributes:
        columns: cached statistics that batches carry.
        fields: what is computed of a batch whose metrics are logged.
        needed: what is computed of any other: what the objective declares, and what costs nothing beside it.
        vocab_size: tokens that model and reference share, None where they have the same.
        teacher: whether the cache is of another model than the one that training starts from.
    """

    live: LiveReference | None = None
    cache: ReferenceCache | None = None
    of_rounds: bool = False
    columns: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    vocab_size: int | None = None
    teacher: bool = False

    def place(self, accelerator: Accelerator) -> None:
        """Put a live reference where the run computes, sharded as the policy will be if it is a model of its own."""
        if isinstance(self.live, ModelReference):
            shard_frozen(self.live.model, accelerator)
        elif self.live is not None:
            self.live.model.to(accelerator.device)

    def context(self, model: Model) -> int | None:
        """Return the positions that both the model and a live reference were built for, None being without bound."""
        read = (model,) if self.live is None else (model, self.live.model)
        return min(filter(None, map(context_length, read)), default=None)

    def describe(self) -> str:
        """Return what the reference is, in a few words."""
        if self.cache is not None:
            return f"a cache scored by model {self.cache.key.model}"
        if self.live is not None:
            return f"{type(self.live).__name__}, live"
        if self.of_rounds:
            return "the model as it was when each round of answers was sampled"
        return "none"

    def attach(self, dataset: Dataset, score: Callable[[Dataset], ReferenceCache]) -> Dataset:
        """Return the rows with the cached columns; rows that the cache does not have are scored by `score(rows)`.

        A row of a stream that the cache does not have is an error when it is reached.
        """
        if self.cache is None:
            return dataset
        from datasets import IterableDataset

        from ballast.data import attach

        if isinstance(dataset, IterableDataset):
            return attach(dataset, self.cache.lookup, self.columns)
        cache = score(dataset) if self.cache.missing(dataset["digest"]) else self.cache
        return attach(dataset, cache.lookup, self.columns)

    def states(self, mask: Tensor, inputs: dict[str, Any], fields: tuple[str, ...]) -> States | None:
        """Return the live reference's hidden states at the trained positions ``[N, H]``, and its head.

        None where none of the fields reads it.
        """
        if self.live is None or not any(map(reads_reference, fields)):
            return None
        return self.live.hidden(**inputs)[:, :-1][mask], self.live.head


def run_reference(
    objective: Objective, spec: RunSpec, model: Model, tokenizer: Tokenizer, autocast: torch.dtype | None
) -> RunReference:
    """Return the reference of a run, the model being as it starts and not yet patched by a trainer.

    Raises:
        BallastError: if the reference does not exist, is of another model, or cannot serve the objective.
    """
    check_needs(objective, spec)
    wanted = dict.fromkeys(name for name in (*objective.needs, "entropy") if is_of_models(name))
    check_statistics(tuple(wanted), len(lm_head(model).weight))
    if not needs_reference(objective, spec):
        return RunReference(fields=tuple(wanted), needed=tuple(wanted))
    if is_round(spec):
        fields = tuple(name for name in wanted if name not in REFERENCE_FIELDS)
        return RunReference(fields=fields, needed=fields, of_rounds=True)
    if isinstance(spec, ScoredCache) or is_cache(spec):
        cache = open_cache(spec, model, tokenizer, autocast)
        columns = tuple(name for name in (*wanted, "ref_logprob") if name in REFERENCE_FIELDS)
        fields = tuple(name for name in wanted if name not in REFERENCE_FIELDS)
        columns, teacher = tuple(dict.fromkeys(columns)), isinstance(spec, Mapping) and "model" in spec
        return RunReference(cache=cache, columns=columns, fields=fields, needed=fields, teacher=teacher)
    live = resolve_reference(spec, model, vocab_size=len(tokenizer))
    assert isinstance(live, LiveReference)
    same_size = len(lm_head(model).weight) == len(live.head.weight)
    fields = tuple(dict.fromkeys((*wanted, "kl", "ref_logprob")))
    beside = ("ref_logprob",) if any(map(reads_reference, wanted)) else ()
    needed = tuple(dict.fromkeys((*wanted, *beside)))
    vocab_size = None if same_size else len(tokenizer)
    return RunReference(live=live, fields=fields, needed=needed, vocab_size=vocab_size)


def open_cache(spec: RunSpec, model: Model, tokenizer: Tokenizer, autocast: torch.dtype | None) -> ReferenceCache:
    """Open the cache that a specification names, which must have been written with this model and tokenizer."""
    if isinstance(spec, ScoredCache):
        if spec.model is model or starts_at_base(model):
            return spec.cache
        spec = spec.cache
    cache = resolve_reference(spec, model, key=CacheKey.of(model, tokenizer, autocast=autocast))
    assert isinstance(cache, ReferenceCache)
    return cache


def score_missing(cache: ReferenceCache, model: Model, dataset: Dataset, device: torch.device) -> ReferenceCache:
    """Score rows that the cache does not have, under the model as it starts and in the cache's own dtype."""
    live = AdapterOffReference(model) if hasattr(model, "peft_config") and starts_at_base(model) else model
    return score_rows(live, dataset, cache.path, cache.key, device=device)
