"""What an objective is: a frozen set of options and pure functions of `TokenStats`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from ballast.errors import BallastError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from ballast.stats import TokenStats


class OptionError(BallastError):
    """An objective that cannot be: ``option`` is at fault, ``name`` where no single one is; ``message`` says why."""

    def __init__(self, objective: str, option: str, message: str) -> None:
        super().__init__(objective, option, message)
        self.objective, self.option, self.message = objective, option, message

    def __str__(self) -> str:
        return f"{f'objective {self.objective}'.strip()}: {self.message}"


Scope = Literal["token", "sequence", "group", "batch", "step"]
Reduction = Literal["tokens", "sequences", "groups"]


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    optional: bool = False,
    whole: bool = False,
) -> Any:
    """Declare an option of an objective: its default, one line of documentation, and what values are allowed.

    An option with ``choices`` takes one of these strings, one whose default is True or False takes these two, one whose
    default is a tuple takes objectives, one whose default is any other text takes text, any other a finite number
    within the bounds, a ``whole`` one if asked; ``optional`` allows None too.
    """
    limits = {"doc": doc, "choices": choices, "minimum": minimum, "maximum": maximum, "optional": optional}
    kinds = {
        "flag": isinstance(default, bool),
        "text": isinstance(default, str) and not choices,
        "objectives": isinstance(default, tuple),
    }
    return field(default=default, metadata={**limits, **kinds, "whole": whole})


def check_read(built: Objective, choice: str, readers: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse options that the value of another one leaves unread, and those that it reads and that are None.

    Args:
        built: the objective.
        choice: the option that decides.
        readers: its values, each with the options that it alone reads; those not named here are always read.

    Raises:
        OptionError: naming the option and the value.
    """
    value, defaults = getattr(built, choice), {item.name: item.default for item in fields(built)}
    read = readers.get(value, ())
    for name in dict.fromkeys(name for names in readers.values() for name in names):
        if name in read and getattr(built, name) is None:
            raise OptionError(built.name, name, f"{choice} {value!r} needs the option {name!r}")
        if name not in read and getattr(built, name) != defaults[name]:
            raise OptionError(built.name, name, f"{choice} {value!r} has no {name!r}, it would be ignored")


@dataclass(frozen=True)
class Objective:
    """A fine-tuning objective: ``loss = Σ_t [ sg(weight_t)·nll_t + extra_t ] / count``.

    Subclasses set `name` and `source`, declare their options as dataclass fields made with `option`, and override
    what differs. Everything is per token and unreduced: whoever trains divides the sum once, by the count that
    `reduction` names, over the whole optimiser step. An objective that changes what the model reads has a method
    ``prepare_inputs`` besides (see `ChangesInputs`).
    """

    name: ClassVar[str]
    source: ClassVar[str]
    origins: ClassVar[tuple[str, ...]] = ()
    """Origins that every group must have an answer of, from `ballast.stats.ORIGINS`."""

    def __post_init__(self) -> None:
        for name, message in self.problems({item.name: getattr(self, item.name) for item in fields(self) if item.init}):
            raise OptionError(self.name, name, message)

    @classmethod
    def problems(cls, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield each option that is not known or whose value is not allowed by itself, and what is wrong with it."""
        known = {item.name: item for item in fields(cls) if item.init}
        for name, value in options.items():
            if name not in known:
                yield name, f"unknown option {name!r}{suggest(name, list(known)) if known else '; it has no options'}"
            elif known[name].metadata and (problem := _problem(value, **known[name].metadata)):
                yield name, f"{name} {problem}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what the objective reads of each token; nothing else is computed.

        Fields of `TokenStats`, statistics by registration (`ballast.statistics`), and the names of `columns`.
        ``old_logprob`` also wants an option or a property `refresh`: the optimiser steps that one scoring serves.
        """
        return ("logprob",)

    @property
    def columns(self) -> Mapping[str, str]:
        """Names among `needs` that come with the rows, each with the column of the data that holds it.

        A value there is a number for the whole row, or a list with one number for each turn that is trained, each
        trained token, or each token of the row.
        """
        return {}

    @property
    def scope(self) -> Scope:
        """How far a token's loss looks: at its own statistics, its sequence, its group, the micro-batch, or the step.

        With ``step``, `weight` sees the statistics of all micro-batches and ranks of an optimiser step at once, found
        without gradient before any of them is trained on; `extra` sees a token.
        """
        return "token"

    @property
    def reduction(self) -> Reduction:
        """What the sum of per-token losses is divided by."""
        return "tokens"

    def weight(self, stats: TokenStats) -> Tensor:
        """Return the weight of each token's negative log-likelihood, ``[N]``; the caller detaches it."""
        return stats.require("logprob").new_ones(len(stats.require("logprob")))

    def extra(self, stats: TokenStats) -> Tensor:
        """Return differentiable terms added to each token's loss, ``[N]`` in nats."""
        return stats.require("logprob").new_zeros(len(stats.require("logprob")))

    def active(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        """Return which tokens can have a loss other than 0, ``[N]`` of bool, where `columns` tell; None for all.

        `columns` has statistics by name that are known before the head runs (a cache's, a group's), ``[N]`` each.
        Tokens left out are not projected at all, so their loss must be 0 exactly whatever the live model says.
        """
        return None

    def report(self, stats: TokenStats) -> dict[str, Tensor]:
        """Return further quantities to log as means over tokens, ``[N]`` each, by name; the caller detaches them."""
        return {}

    def per_token_loss(self, stats: TokenStats) -> Tensor:
        """Return the loss of each token, ``[N]`` in nats, differentiable; its sum over the count is the loss."""
        logprob, weight, extra = stats.require("logprob"), self.weight(stats), self.extra(stats)
        for name, value in (("weight", weight), ("extra", extra)):
            if value.shape != logprob.shape:
                raise ValueError(
                    f"objective {self.name}: {name} has shape {[*value.shape]} for {len(logprob)} tokens: it would be "
                    "spread over them silently; return one value per token"
                )
        return -logprob * weight.detach() + extra

    def to_dict(self) -> dict[str, Any]:
        """Return the name and all options, from which `ballast.objective` builds an equal objective."""
        own = type(self).__module__.startswith(f"{__package__}.")
        name = self.name if own else f"{type(self).__module__}:{type(self).__qualname__}"
        return {"name": name, **{item.name: plain(getattr(self, item.name)) for item in fields(self)}}


def has_extra(one: Objective) -> bool:
    """Return whether an objective, or any factor of a product, has further terms."""
    inner: tuple[Objective, ...] = getattr(one, "of", ())
    return any(map(has_extra, inner)) if inner else type(one).extra is not Objective.extra


def plain(value: Any) -> Any:
    """Return the value of an option as it is written down: objectives as mappings with their names and options."""
    return [one.to_dict() for one in value] if isinstance(value, tuple) else value


class ChangesInputs(Protocol):
    """What an objective has that changes the inputs of the training forward."""

    def prepare_inputs(
        self, embeddings: Tensor, arg_max: Tensor, labels: Tensor, *, progress: float = 0.0, noise: float = 0.0
    ) -> Tensor:
        """Return the embeddings that the model reads instead of its own, ``[B, T, H]``.

        Args:
            embeddings: embedded gold tokens, ``[B, T, H]``.
            arg_max: the same with every trained token replaced by the model's greedy prediction of it, ``[B, T, H]``.
            labels: ``[B, T]``, -100 where nothing is trained.
            progress: share of the training done, 0 … 1.
            noise: a standard normal number, one for each optimiser step.
        """


def _problem(
    value: object,
    *,
    doc: str,
    choices: tuple[str, ...],
    minimum: float | None,
    maximum: float | None,
    optional: bool,
    flag: bool,
    text: bool,
    objectives: bool,
    whole: bool,
) -> str | None:
    if value is None and optional:
        return None
    if objectives:
        listed = isinstance(value, tuple) and value and all(isinstance(one, Objective) for one in value)
        return None if listed else f"must be a list of objectives ({doc}); got {value!r}"
    if flag:
        return None if isinstance(value, bool) else f"must be true or false ({doc}); got {value!r}"
    if text:
        return None if isinstance(value, str) and value.strip() else f"must be text ({doc}); got {value!r}"
    if choices:
        return None if value in choices else f"must be one of {', '.join(choices)}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return f"must be a finite number ({doc}); got {value!r}"
    if whole and not isinstance(value, int):
        return f"must be a whole number ({doc}); got {value!r}"
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        low = "-∞" if minimum is None else f"{minimum:g}"
        high = "∞" if maximum is None else f"{maximum:g}"
        return f"must lie in [{low}, {high}] ({doc}); got {value!r}"
    return None
