"""Random rows of logits for the oracles, and the same rows as the library's statistics."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ballast import TokenStats, token_stats
from ballast.stats import GROUP_FIELDS, LAYOUT_FIELDS, LIVE_FIELDS, PAIR_FIELDS, REFERENCE_FIELDS


@dataclass(frozen=True)
class Rows:
    """Logits of the trained tokens of a micro-batch under the live model and the reference, as lists of floats."""

    live: list[list[float]]
    reference: list[list[float]]
    targets: list[int]
    sequence: list[int]
    position: list[int]

    @property
    def advantage(self) -> list[float]:
        """An advantage for each token, that of its sequence: one imitated, one unlearnt, one neither, one more so."""
        return [ADVANTAGES[index % len(ADVANTAGES)] for index in self.sequence]

    @property
    def weight(self) -> list[float]:
        """A weight for each token, as a column of the data may hold it: some of them 0."""
        return [WEIGHTS[place % len(WEIGHTS)] for place in range(len(self.targets))]

    @property
    def old(self) -> list[list[float]]:
        """Logits of the model as it was: some targets were likelier then, some half as likely."""
        shift = [OLD_SHIFTS[place % len(OLD_SHIFTS)] for place in range(len(self.targets))]
        return [
            [z + (by if v == target else 0.0) for v, z in enumerate(row)]
            for row, target, by in zip(self.live, self.targets, shift, strict=True)
        ]

    @property
    def origin(self) -> list[float]:
        """Where each token's sequence comes from: an expert, a teacher, the model itself, twice."""
        return [(0.0, 1.0, 2.0, 2.0)[index % 4] for index in self.sequence]

    @property
    def group(self) -> list[int]:
        """The group that a token belongs to: three answers each."""
        return [index // 3 for index in self.sequence]

    @property
    def reward(self) -> list[float]:
        """A reward for each token, that of its sequence: of the own ones the first is right."""
        return [(0.0, 0.0, 1.0, 0.5)[index % 4] for index in self.sequence]

    @property
    def share(self) -> list[float]:
        """A share for each token, that of its origin."""
        return [(1.5, 2.0, 0.75)[int(origin)] for origin in self.origin]

    @property
    def end(self) -> list[bool]:
        """Whether generation would stop at a token: at two of the ids."""
        return [target in (0, 2) for target in self.targets]

    @property
    def vocab(self) -> int:
        return len(self.live[0])


ADVANTAGES = (1.0, -0.5, 0.0, 1.7)
WEIGHTS = (1.0, 0.0, 2.5, 0.3)
OLD_SHIFTS = (0.2, -0.2, -1.5, 0.0, 0.6)
PROGRESS = 0.3
COLUMNS = ("weight",)
"""Columns of the data, beside the fields of `TokenStats`."""
MODEL_FIELDS = (*LIVE_FIELDS, *PAIR_FIELDS, *REFERENCE_FIELDS)
STATISTICS: tuple[str, ...] = ()
"""Statistics by registration that the cases read."""


def random_rows(seed: int = 0, lengths: tuple[int, ...] = (9, 3, 11, 17), vocab: int = 6, spread: float = 1.5) -> Rows:
    """Return rows whose reference lies near the live model and shares a tie with every other target."""
    draw = random.Random(seed)
    live, reference, targets, sequence, position = [], [], [], [], []
    for index, length in enumerate(lengths):
        for place in range(length):
            row = [draw.gauss(0, spread) for _ in range(vocab)]
            ref_row = [z + draw.gauss(0, 0.7) for z in row]
            target = draw.randrange(vocab)
            if place % 2:
                twin = (target + 1) % vocab
                row[twin], ref_row[twin] = row[target], ref_row[target]
            live.append(row)
            reference.append(ref_row)
            targets.append(target)
            sequence.append(index)
            position.append(place)
    return Rows(live, reference, targets, sequence, position)


def with_turns(rows: Rows) -> Rows:
    """Return the rows as if their sequences began with a prompt and had untrained tokens between trained ones."""
    return replace(rows, position=[5 + place + 6 * (place // 4) for place in rows.position])


def statistics_of(rows: Rows, **settings) -> tuple[TokenStats, Tensor]:
    """Return all of the library's statistics in float64 and the leaf ``[N, V]`` of live logits that they depend on.

    The head is the identity, so the hidden states are the logits.
    """
    logits = torch.tensor(rows.live, dtype=torch.float64, requires_grad=True)
    identity = torch.eye(rows.vocab, dtype=torch.float64)
    reference = (torch.tensor(rows.reference, dtype=torch.float64), identity)
    targets = torch.tensor(rows.targets)
    fields = (*MODEL_FIELDS, *STATISTICS, "vocabulary")
    stats = token_stats(logits, identity, targets, fields=fields, reference=reference, **settings)
    layout = {name: torch.tensor(getattr(rows, name)) for name in LAYOUT_FIELDS}
    old = token_stats(torch.tensor(rows.old, dtype=torch.float64), identity, targets)
    given = {"old_logprob": old.logprob, "progress": torch.full_like(old.logprob, PROGRESS)}
    given |= {name: torch.tensor(getattr(rows, name), dtype=torch.float64) for name in (*GROUP_FIELDS, *COLUMNS)}
    return stats.changed({**given, **layout}), logits
