"""From a recipe to the runs of a comparison: which objective, rate and seed, for what, under which name.

A rate is chosen on runs of its own (other seeds) by a task of its own; what is reported was chosen by nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ballast.config.recipe import Recipe, TaskSection
from ballast.config.sections import CompareSection, MethodSection
from ballast.errors import BallastError

TUNING, REPORT = "tuning", "report"
BASE, RANDOM = "base", "random"
RESERVED = (BASE, RANDOM)
TUNING_OFFSET = 1000
"""Distance of the tuning seeds from the reported ones: constant, so that more seeds can be added later."""

BETTER: tuple[tuple[str, int], ...] = (
    (r"accuracy(_per_token|_per_character)?|mean@\d+|pass@\d+", 1),
    (r"nll|bits_per_character|perplexity|base_kl|forgetting", -1),
)
"""Patterns of metrics, and whether more of them is better (1) or less (-1); of others neither is."""


def direction(metric: str) -> int:
    """Return 1 where more of a metric is better, -1 where less is, 0 where neither (entropy, answer length)."""
    return next((sign for pattern, sign in BETTER if re.fullmatch(pattern, metric)), 0)


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        label: its name in results and folders.
        section: its objective, and what it has instead of the recipe's groups and training.
        rates: learning rates to choose from; a single one is taken without tuning.
        random: whether it starts from random weights instead of the recipe's model.
    """

    label: str
    section: MethodSection
    rates: tuple[float, ...]
    random: bool = False


@dataclass(frozen=True)
class Cell:
    """One run: ``role`` is `TUNING` (measured on the task that chooses the rate) or `REPORT` (on all others)."""

    label: str
    rate: float
    seed: int
    role: str

    @property
    def name(self) -> str:
        """The folder's name; the rate in full, so that two rates never share one."""
        return f"{self.label}-lr{self.rate!r}-s{self.seed}"

    def record(self) -> dict[str, Any]:
        """Return plain values, as they stand in ``run.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """The whole matrix. `tuning` lists the runs that choose, `report` those at the chosen rates."""

    recipe: Recipe

    @property
    def compare(self) -> CompareSection:
        """The recipe's section."""
        assert self.recipe.compare is not None
        return self.recipe.compare

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """The rows: the objectives as listed, then the one from random weights where asked."""
        section = self.compare
        rows = [Method(label_of(one), one, one.rates or section.rates) for one in section.objectives]
        if section.random:
            like = next(row for row in rows if row.label == self.baseline)
            # A floor, not a contestant: from nothing the largest step goes furthest.
            rows.append(Method(RANDOM, like.section, (max(like.rates),), random=True))
        return tuple(rows)

    @property
    def baseline(self) -> str:
        """The label that differences are taken to."""
        return baseline_of(self.compare)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the reported runs."""
        return tuple(self.recipe.seed + place for place in range(self.compare.seeds))

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds of the runs that choose a rate; never among `seeds`."""
        return tuple(self.recipe.seed + TUNING_OFFSET + place for place in range(self.compare.tuning_seeds))

    def method(self, label: str) -> Method:
        """Return the row of a label."""
        return next(row for row in self.methods if row.label == label)

    def tuning(self, label: str) -> list[Cell]:
        """Return the runs that choose a row's rate, none where it has a single one."""
        rates = self.method(label).rates
        if len(rates) == 1:
            return []
        return [Cell(label, rate, seed, TUNING) for seed in self.tuning_seeds for rate in rates]

    def report(self, rates: Mapping[str, float]) -> list[Cell]:
        """Return the reported runs of the rows that have a rate, seed by seed, so that what is there pairs up."""
        labels = [row.label for row in self.methods if row.label in rates]
        return [Cell(label, rates[label], seed, REPORT) for seed in self.seeds for label in labels]

    def tasks(self, role: str) -> tuple[TaskSection, ...]:
        """Return the tasks that runs of a role are measured on: never the same ones."""
        chosen = None if self.compare.choose_by is None else self.compare.choose_by.task
        wanted = role == TUNING
        return tuple(task for task in self.recipe.evaluation.tasks if (task.settings()["name"] == chosen) == wanted)

    @property
    def rl(self) -> bool:
        """Whether RL follows the start and every reported run of a method."""
        return self.compare.then is not None

    def followed(self, cell: Cell) -> bool:
        """Whether RL follows a run: not from random weights, whose answers earn no reward to learn from."""
        return self.rl and cell.role == REPORT and not self.method(cell.label).random

    @property
    def sign(self) -> int:
        """Whether more (1) or less (-1) of what chooses the rate is better; 0 where nothing is chosen."""
        return 0 if self.compare.choose_by is None else direction(self.compare.choose_by.metric)


def label_of(section: MethodSection) -> str:
    """Return a row's name: its label, else its objective's name without the module of one's own."""
    return section.label or re.split(r"[.:]", section.name)[-1]


def baseline_of(section: CompareSection) -> str:
    """Return the label that differences are taken to: the one named, else ``sft``'s, else the first."""
    labels = [label_of(one) for one in section.objectives]
    plain = next((label_of(one) for one in section.objectives if one.name == "sft"), labels[0])
    return section.baseline or plain


@dataclass(frozen=True)
class Part:
    """Part ``i`` of ``n`` of a matrix. A row that is tuned stays together: its rate depends on all of its runs."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part that ``i/n`` names.

        Raises:
            BallastError: it is no such pair.
        """
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text.strip())
        if match is None or int(match[1]) > int(match[2]):
            raise BallastError(f"--only {text}: is no part of a whole; write 1/2 on one machine and 2/2 on the other")
        return cls(int(match[1]), int(match[2]))

    def check(self, plan: Plan) -> None:
        """Refuse more parts than there are things to do.

        Raises:
            BallastError: naming how many parts there can be.
        """
        units = sum(1 for _ in _units(plan))
        if self.of > units:
            raise BallastError(
                f"--only {self.number}/{self.of}: some machines would have nothing to do; this matrix splits into at "
                f"most {units} parts"
            )

    def takes(self, plan: Plan, cell: Cell) -> bool:
        """Whether a run belongs to this part."""
        tuned = len(plan.method(cell.label).rates) > 1
        return self._takes(plan, (cell.label, None if tuned else cell.seed))

    def takes_base(self, plan: Plan, seed: int | None = None) -> bool:
        """Whether this part measures the start, or, with a seed, follows it with RL."""
        return self.number == 1 if seed is None else (plan.seeds.index(seed) % self.of) + 1 == self.number

    def _takes(self, plan: Plan, unit: tuple[str, int | None]) -> bool:
        return list(_units(plan)).index(unit) % self.of + 1 == self.number


def _units(plan: Plan) -> Iterator[tuple[str, int | None]]:
    for row in plan.methods:
        yield from ((row.label, seed) for seed in ((None,) if len(row.rates) > 1 else plan.seeds))
