"""Pairs to learn a reward from: of each prompt every given answer with each of the model's own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ballast.errors import BallastError

if TYPE_CHECKING:
    from ballast.groups import Group


@dataclass(frozen=True)
class Pair:
    """Token ids of prompt and answer, the given one's and an own one's; `row` is the place of their group."""

    row: int
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class Pairs:
    """Pairs to train on, pairs whose prompts are held out, and how many were left out as their answers are equal."""

    train: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    equal: int = 0


def pairs_of(groups: Sequence[Group], held_out: float = 0.0, seed: int = 0) -> Pairs:
    """Return the pairs of some groups; two answers with the same ids are none, since no score could tell them apart.

    Args:
        groups: each with the expert's and own answers.
        held_out: share of the groups, at least one where it is above 0, whose pairs are kept apart.
        seed: which groups these are.

    Raises:
        BallastError: if nothing is left to train on.
    """
    apart = _drawn(len(groups), held_out, seed)
    train: list[Pair] = []
    kept: list[Pair] = []
    equal = 0
    for place, group in enumerate(groups):
        given = [member.ids for member in group.members if member.origin != "own"]
        own = [member.ids for member in group.members if member.origin == "own"]
        found = [Pair(group.row, one, other) for one in given for other in own]
        differing = [pair for pair in found if pair.chosen != pair.rejected]
        equal += len(found) - len(differing)
        (kept if place in apart else train).extend(differing)
    if not train:
        raise BallastError(
            f"{equal} pairs of {len(groups)} prompts, in all of which the own answer is the demonstration itself: "
            "there is nothing to prefer; sample more or at a higher temperature, or hold out fewer prompts"
        )
    return Pairs(tuple(train), tuple(kept), equal)


def _drawn(count: int, share: float, seed: int) -> frozenset[int]:
    size = min(count - 1, max(1, round(share * count))) if share else 0
    return frozenset(random.Random(seed).sample(range(count), size))
