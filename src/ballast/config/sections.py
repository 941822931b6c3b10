"""Parts of a recipe that are more than a list of values: an objective, and a comparison of several."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from ballast.objectives import Objective
from ballast.objectives import objective as build_objective
from ballast.objectives import problems as objective_problems
from ballast.options import Options, Text


class ObjectiveSection(Options):
    """An objective's name and its options, written side by side; a bare string is the ``name``."""

    model_config = ConfigDict(extra="allow")

    name: Text
    """A name of `ballast objectives`, or `package.module:Class` for one of your own."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def build(self) -> Objective:
        """Return the objective with these options; raises BallastError where they are not allowed."""
        return build_objective(self.name, **self.options)

    def problems(self) -> list[tuple[str, str]]:
        """Return which options are not allowed, and why."""
        return objective_problems(self.name, self.options)


class MethodSection(ObjectiveSection):
    """One row of a comparison: an objective, its options beside it, and where it departs from the other rows."""

    label: str = ""
    """Name in results; the objective's where absent."""
    rates: tuple[float, ...] = ()
    """Learning rates of this row, instead of `compare.rates`."""
    groups: dict[str, Any] = Field(default_factory=dict)
    """Laid over the recipe's `groups`."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Laid over the recipe's `training`."""

    @field_validator("rates", mode="before")
    @classmethod
    def _rates(cls, value: Any) -> Any:
        return _listed_rates(value)


class ChooseSection(Options):
    """By what a learning rate is chosen: a task that is not reported, and one of its metrics."""

    task: Text
    """Name of an evaluation task, which is not reported."""
    metric: Text = "accuracy"
    """What of it is best."""


class BudgetSection(Options):
    """How long every row trains; a row's own `training` goes before."""

    steps: int | None = Field(None, ge=1)
    """Optimiser steps."""
    tokens: int | None = Field(None, ge=1)
    """Tokens read, prompts included, rounded to steps."""

    @model_validator(mode="after")
    def _one_unit(self) -> BudgetSection:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("takes steps or tokens, one of the two")
        return self


class ThenSection(Options):
    """What follows every reported run."""

    rl: dict[str, Any]
    """Laid over the recipe's `rl`."""


class CompareSection(Options):
    """A matrix of objectives, learning rates and seeds."""

    objectives: tuple[MethodSection, ...] = Field(strict=False)
    """Rows: names, or mappings with options beside the `name` and what differs in this row."""
    rates: tuple[float, ...]
    """Learning rates to choose from, for every row."""
    choose_by: ChooseSection | None = None
    """Task and metric that the rate is chosen by; required where there are several rates."""
    seeds: int = Field(5, ge=1, le=1000)
    """Runs of every row at its chosen rate."""
    tuning_seeds: int = Field(2, ge=1, le=1000)
    """Other runs, of every row at every rate."""
    baseline: str | None = None
    """Label to compare with; `sft` where there is one, else the first."""
    budget: BudgetSection | None = None
    """How long every row trains."""
    then: ThenSection | None = None
    """RL after every reported run."""
    random: bool = False
    """Also train the baseline's objective from random weights."""
    keep_tuning: bool = False
    """Keep the weights of the runs that the rate is chosen by."""

    @field_validator("objectives", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str | dict) else value
        if not isinstance(listed, list):
            return value
        if not listed:
            raise ValueError("names nothing to compare; list at least one objective")
        return [{"name": one} if isinstance(one, str) else one for one in listed]

    @field_validator("rates", mode="before")
    @classmethod
    def _rates(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("names no learning rate; list at least one")
        return _listed_rates(value)


def _listed_rates(value: Any) -> Any:
    listed = [value] if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(listed, list):
        return value
    numbers = [rate for rate in listed if isinstance(rate, int | float)]
    for place, rate in enumerate(numbers):
        if not rate > 0 or not math.isfinite(rate):
            raise ValueError(f"{rate!r} is no learning rate; give numbers above 0")
        if rate in numbers[:place]:
            raise ValueError(f"{rate!r} is listed twice; its runs would count twice")
    return tuple(listed)
