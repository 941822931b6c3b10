"""How large a comparison fits into the time there is. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ballast.advise.regime import ABOVE, BELOW, EQUAL, UNKNOWN
from ballast.start.probe import Probe

OVERHEAD = 2.0
"""Seconds of a run beside steps, answers and loading the model twice: preparing, writing."""
SAMPLES = 8
LORA_ABOVE = 1_000_000_000
"""Parameters above which an adapter is trained."""
FULL_RATES = (3e-5, 1e-4, 1e-5)
LORA_RATES = (3e-4, 1e-4, 1e-3)
"""Learning rates, those to try first in front."""

WORTH: Mapping[str, Sequence[tuple[str, str]]] = {
    ABOVE: (
        ("sft", "what every other is compared with"),
        ("prift-mass", "the model supports these rows and contradicts some: it leaves out what it contradicts"),
        ("dft", "the same idea, weighed by the model in training"),
    ),
    EQUAL: (
        ("sft", "what every other is compared with"),
        ("prift-mass", "the model hardly contradicts these rows, so little is expected of it but less drift"),
    ),
    BELOW: (
        ("sft", "what every other is compared with; the model has these rows still to learn"),
        ("dft", "led in sampled answers where the lab's base knew little; PriFT would drop what is to be learned"),
    ),
    UNKNOWN: (
        ("sft", "what every other is compared with"),
        ("prift-mass", "the scores do not say whether it or sft is better here"),
        ("dft", "weighed by the model in training, for the same reason"),
    ),
}
"""By where `ballast advise` expects prift-mass against sft: the objectives that are worth their time, and why."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        rates: learning rates that each objective is tried at.
        tuning_seeds, seeds: runs that choose a rate, and that are reported.
        steps: optimiser steps of a run.
        validation, items: greedy answers that choose the rate, and that are reported.
        sampled: prompts with `SAMPLES` samples each, for pass@k.
    """

    rates: int
    tuning_seeds: int
    seeds: int
    steps: int
    validation: int
    items: int
    sampled: int


SIZES = (
    Size(rates=3, tuning_seeds=2, seeds=5, steps=200, validation=100, items=200, sampled=100),
    Size(rates=3, tuning_seeds=1, seeds=5, steps=96, validation=100, items=200, sampled=50),
    Size(rates=3, tuning_seeds=1, seeds=3, steps=64, validation=64, items=128, sampled=32),
    Size(rates=2, tuning_seeds=1, seeds=3, steps=48, validation=64, items=100, sampled=0),
    Size(rates=2, tuning_seeds=1, seeds=3, steps=24, validation=40, items=64, sampled=0),
    Size(rates=1, tuning_seeds=1, seeds=3, steps=24, validation=0, items=64, sampled=0),
    Size(rates=1, tuning_seeds=1, seeds=3, steps=12, validation=0, items=48, sampled=0),
)
"""From the most thorough to the least that still says how far chance goes."""


@dataclass(frozen=True)
class Room:
    """What bounds a comparison beside the time.

    Attributes:
        steps: optimiser steps after which the rows have been seen often enough.
        validation, test: rows that there are.
        jobs: runs at a time.
        scoring: seconds that scoring all rows takes, once.
    """

    steps: int
    validation: int
    test: int
    jobs: int = 1
    scoring: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A comparison and what it costs: seconds with so many runs at a time, bytes on disk, bytes of memory of a run."""

    objectives: tuple[str, ...]
    size: Size
    rates: tuple[float, ...]
    seconds: float
    disk: int
    memory: int
    jobs: int

    @property
    def runs(self) -> int:
        tuning = len(self.rates) * self.size.tuning_seeds if len(self.rates) > 1 else 0
        return len(self.objectives) * (tuning + self.size.seeds)


def plan(objectives: Sequence[str], probe: Probe, seconds: float, *, lora: bool, room: Room) -> Plan:
    """Return the most thorough comparison that fits into `seconds`; the least of all where none does.

    Args:
        objectives: names.
        probe: what steps and answers cost.
        lora: whether an adapter is trained.
        room: what there is beside the time.
    """
    made = [_sized(objectives, probe, size, lora, room) for size in SIZES]
    return next((one for one in made if one.seconds <= seconds), made[-1])


def _sized(objectives: Sequence[str], probe: Probe, size: Size, lora: bool, room: Room) -> Plan:
    rates = (LORA_RATES if lora else FULL_RATES)[: size.rates]
    size = replace(
        size,
        steps=min(size.steps, room.steps),
        validation=min(size.validation, room.validation),
        items=min(size.items, room.test),
        sampled=min(size.sampled, room.test),
    )
    training = OVERHEAD + 2 * probe.load_seconds + size.steps * probe.step_seconds
    reported = size.items + size.sampled * SAMPLES
    tuning = training + size.validation * probe.answer_seconds
    final = tuning + reported * (probe.answer_seconds + probe.score_seconds)
    count = len(objectives) * len(rates) * size.tuning_seeds if len(rates) > 1 else 0
    seconds = _rounds(count, room) * tuning + _rounds(len(objectives) * size.seeds, room) * final
    base = reported * (probe.answer_seconds + probe.score_seconds)
    disk = len(objectives) * size.seeds * probe.weights
    return Plan(tuple(objectives), size, rates, seconds + base + room.scoring, disk, probe.memory, room.jobs)


def _rounds(runs: int, room: Room) -> int:
    return math.ceil(runs / room.jobs)
