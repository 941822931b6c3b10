"""Parts of a recipe that are more than a list of values: an objective, and a comparison of several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from ballast.files import expanded
from ballast.objectives import Objective
from ballast.objectives import objective as build_objective
from ballast.objectives import problems as objective_problems
from ballast.options import Options, OptionsError, Sources, Text, Where


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


Rates = Annotated[tuple[float, ...], BeforeValidator(_listed_rates)]
"""A learning rate, or a list of them."""


PATHS = ("chat_template_path", "logging_dir", "fsdp_config", "deepspeed")
"""Training settings that are paths, or may be."""


def _from_home(training: dict[str, Any]) -> dict[str, Any]:
    return {key: expanded(one) if key in PATHS and isinstance(one, str) else one for key, one in training.items()}


Training = Annotated[dict[str, Any], AfterValidator(_from_home)]
"""Fields of `ballast.TrainingConfig`."""


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


def _bits(value: Any) -> Any:
    return {"bits": value} if isinstance(value, int) and not isinstance(value, bool) else value


class QuantizationSection(Options):
    """Frozen weights in few bits under an adapter that trains (QLoRA), by bitsandbytes; a number is its ``bits``."""

    bits: Literal[4, 8]
    """Bits of a weight; LM head, embeddings and norms stay as they are."""
    type: Literal["nf4", "fp4"] | None = None
    """Of 4 bits: `nf4` (where absent), whose levels are a normal distribution's, or `fp4`."""
    double: bool | None = None
    """Of 4 bits: hold the scales of the weights in 8 bits too, about 0.4 bits a weight less; not where absent."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of 4 bits: what products are computed in; `model.dtype` where absent."""

    @model_validator(mode="after")
    def _read(self) -> QuantizationSection:
        ignored = [name for name in ("type", "double", "compute_dtype") if getattr(self, name) is not None]
        if self.bits == 8 and ignored:
            raise OptionsError([((name,), "is of 4 bits and would be ignored; leave it out") for name in ignored])
        return self


Quantization = Annotated[QuantizationSection, BeforeValidator(_bits)]


class MethodSection(ObjectiveSection):
    """One row of a comparison: an objective, its options beside it, and where it departs from the other rows."""

    label: str = ""
    """What the row is called in results and folders; the objective's name where absent."""
    data: Sources = ()
    """Training rows of this row of the table, in place of the recipe's `data.train`: a source, or a list of them."""
    rates: Rates = ()
    """Learning rates of this row; those of all rows where absent."""
    groups: dict[str, Any] = Field(default_factory=dict)
    """Laid over the recipe's `groups` for this row."""
    training: Training = Field(default_factory=dict)
    """Laid over the recipe's `training` for this row."""


class ChooseSection(Options):
    """By what a learning rate is chosen: a task that is not reported, and one of its metrics."""

    task: Text
    """Name of an evaluation task; it is not reported."""
    metric: Text = "accuracy"
    """Metric of that task: `accuracy`, `mean@N`, `pass@K`, `maj@K`, `nll`, …"""


class HalvingSection(Options):
    """Successive halving: all pairs of objective and rate train shortly, the best of them longer; ``true`` is this."""

    eta: int = Field(4, ge=2, le=100)
    """A rung keeps 1 / eta of its pairs, and the runs of the next are eta times as long."""
    min_steps: int | None = Field(None, ge=1)
    """Steps of the shortest runs, at least: smaller allows more rungs. `steps` / eta where absent: a single one."""


def _halving(value: Any) -> Any:
    return {True: HalvingSection(), False: None}[value] if isinstance(value, bool) else value


Halving = Annotated[HalvingSection | None, BeforeValidator(_halving)]


class BudgetSection(Options):
    """How long every row trains: steps or tokens, one of the two."""

    steps: int | None = Field(None, ge=1)
    """Optimiser steps."""
    tokens: int | None = Field(None, ge=1)
    """Tokens read, prompts included, rounded to steps."""
    halving: Halving = None
    """Successive halving: pairs of objective and rate that are behind in short runs leave before the whole budget is
    spent; `true` takes all defaults. See [below](#halving)."""

    @model_validator(mode="after")
    def _one_unit(self) -> BudgetSection:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("takes steps or tokens, one of the two")
        return self


class ThenSection(Options):
    """What follows every reported run."""

    rl: dict[str, Any]
    """Options of the RL, laid over the recipe's `rl`."""


class CompareSection(Options):
    """A matrix of objectives, learning rates and seeds."""

    objectives: tuple[MethodSection, ...] = Field(strict=False)
    """The rows: a name, or a mapping with `name`, the objective's options, and the keys below."""
    rates: Rates
    """Learning rates to choose from; a single one is taken as it is."""
    choose_by: ChooseSection | None = None
    """What the rate is chosen by; required where there are several, and where a halving chooses who stays."""
    seeds: int = Field(5, ge=1, le=1000)
    """Reported runs of each row, at its chosen rate: seeds `seed`, `seed` + 1, …"""
    tuning_seeds: int = Field(2, ge=1, le=1000)
    """Runs of each row at each rate that choose it: seeds `seed` + 1000, …"""
    baseline: str | None = None
    """Label of the row that differences are taken to; `sft` where there is one, else the first."""
    budget: BudgetSection | None = None
    """How long every row trains, but for one with `max_steps` or `num_train_epochs` of its own; without it `training`
    says how long."""
    then: ThenSection | None = None
    """GRPO from every reported run and from the base model."""
    random: bool = False
    """Also train the baseline's objective from random weights, at its largest rate: what the rows alone teach."""
    keep_tuning: bool = False
    """Keep the weights of the runs that choose a rate."""

    @field_validator("objectives", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str | dict) else value
        if not isinstance(listed, list):
            return value
        if not listed:
            raise ValueError("names nothing to compare; list at least one objective")
        return [{"name": one} if isinstance(one, str) else one for one in listed]

    @field_validator("rates")
    @classmethod
    def _some_rate(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("names no learning rate; list at least one")
        return value


Verb = Literal["sample", "revise", "reward", "train", "rl", "evaluate"]
READERS = {"sample": ("revise", "reward", "train"), "revise": ("train",), "reward": ("rl",)}
"""Commands whose output is nothing by itself, and those that read it."""
MAKERS = ("sample", "revise")
"""Commands that make what `train` reads."""
TRAINERS = ("train", "rl")
"""Commands that end with another model."""


class RoundsSection(Options):
    """Commands that are repeated; each round goes on from the model that the round before ended with."""

    owner: ClassVar[str] = "rounds."

    steps: tuple[Verb, ...] = Field(strict=False)
    """Commands of a round, in their order: `sample`, `revise`, `reward`, `train`, `rl`, and `evaluate` last."""
    count: int = Field(3, ge=1, le=1000)
    """Rounds in all; raise it to go on."""
    previous: int = Field(0, ge=0)
    """Earlier rounds whose answers or rows `train` reads beside those of its own; SPIN's is 1."""

    @model_validator(mode="after")
    def _goes_together(self) -> RoundsSection:
        if problems := list(self._conflicts()):
            raise OptionsError(problems)
        return self

    def before(self, verb: str, wanted: Sequence[str]) -> list[str]:
        """Return those of some commands that a command comes after; none where it is no step."""
        place = self.steps.index(verb) if verb in self.steps else 0
        return [one for one in self.steps[:place] if one in wanted]

    def _conflicts(self) -> Iterator[tuple[Where, str]]:
        for place, verb in enumerate(self.steps):
            later = self.steps[place + 1 :]
            if verb in later:
                yield ("steps",), f"{verb} comes twice, and its second output would take the place of the first"
            readers: tuple[str, ...] = READERS.get(verb, ())
            if readers and not set(readers) & set(later):
                yield ("steps",), f"nothing after {verb} reads what it writes; let {' or '.join(readers)} follow it"
            if verb == "evaluate" and later:
                yield ("steps",), f"{later[0]} after evaluate would not be measured; put evaluate last"
        if not set(TRAINERS) & set(self.steps):
            yield ("steps",), "nothing trains, so every round would be the first one again; add train or rl"
        if self.previous and not self.before("train", MAKERS):
            yield ("previous",), "would be ignored: no train reads what a sample or revise made; set it to 0"
