"""Random rows of logits for the oracles, and the same rows as the library's statistics."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ballast import TokenStats, token_stats


@dataclass(frozen=True)
class Rows:
    """Logits of the trained tokens of a micro-batch under the live model and the reference, as lists of floats."""

    live: list[list[float]]
    reference: list[list[float]]
    targets: list[int]
    sequence: list[int]
    position: list[int]

    @property
    def vocab(self) -> int:
        return len(self.live[0])


def random_rows(seed: int = 0, lengths: tuple[int, ...] = (7, 3, 11), vocab: int = 6, spread: float = 1.5) -> Rows:
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


def statistics_of(rows: Rows, fields: tuple[str, ...], **settings) -> tuple[TokenStats, Tensor]:
    """Return the library's statistics in float64 and the leaf ``[N, V]`` of live logits that they depend on.

    The head is the identity, so the hidden states are the logits.
    """
    logits = torch.tensor(rows.live, dtype=torch.float64, requires_grad=True)
    identity = torch.eye(rows.vocab, dtype=torch.float64)
    reference = (torch.tensor(rows.reference, dtype=torch.float64), identity)
    wanted = tuple(field for field in fields if field not in ("sequence", "position"))
    stats = token_stats(
        logits, identity, torch.tensor(rows.targets), fields=wanted, reference=reference, **settings
    )
    return with_layout(stats, rows), logits


def with_layout(stats: TokenStats, rows: Rows) -> TokenStats:
    from dataclasses import replace

    return replace(stats, sequence=torch.tensor(rows.sequence), position=torch.tensor(rows.position))
