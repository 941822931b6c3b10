"""Rows that were prepared before the trainer was made: taken as they stand, and not prepared again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ballast.data import Prepared, PrepareOptions, Streamed, check_data
from ballast.data.refusals import streaming_problem
from ballast.errors import BallastError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ballast.objectives import Objective
    from ballast.training.config import TrainingConfig


@dataclass(frozen=True)
class Handed:
    """What a trainer was given.

    Attributes:
        sets: prepared rows, those to train on and those held out.
    """

    sets: tuple[Prepared | Streamed, ...] = ()

    @classmethod
    def of(cls, *given: Any) -> Handed:
        """Return those among the data sets given that are prepared."""
        listed = [one for some in given for one in (some.values() if isinstance(some, Mapping) else [some])]
        return cls(tuple(one for one in listed if isinstance(one, Prepared | Streamed)))

    def checked(self, rows: Any, tokenizer: PreTrainedTokenizerBase, args: TrainingConfig, objective: Objective) -> Any:
        """Return raw rows as they stand, having raised what `prepare` would say of the first; others as they are."""
        if rows is None or any(one.dataset is rows for one in self.sets):
            return rows
        columns = tuple(objective.columns.values())
        return check_data(rows, tokenizer, PrepareOptions.from_training_args(args), columns=columns)

    def find(self, rows: Any, options: PrepareOptions, columns: tuple[str, ...]) -> Prepared | Streamed | None:
        """Return what these rows are, where they were prepared as the trainer would; None where they are raw to it.

        Raises:
            BallastError: rows of a stream were prepared in another way.
        """
        one = next((one for one in self.sets if one.dataset is rows), None)
        if one is None:
            return None
        # For rows that are tokens the trainer itself has the first of these off.
        as_prepared = replace(
            options, assistant_only_loss=one.options.assistant_only_loss, num_proc=one.options.num_proc
        )
        if as_prepared == one.options and columns == one.columns:
            return one
        if isinstance(one, Prepared):
            return None
        differing = [name for name, value in vars(as_prepared).items() if value != getattr(one.options, name)]
        raise BallastError(
            f"the stream was prepared with other {differing[0] if differing else 'columns'} than the trainer has; use "
            "PrepareOptions.from_training_args(args, context=...) with the arguments of the trainer"
        )


def rows_of(given: Any) -> Any:
    """Return a data set as the trainer's base takes it."""
    if isinstance(given, Mapping):
        return {name: rows_of(one) for name, one in given.items()}
    return given.dataset if isinstance(given, Prepared | Streamed) else given


def row_count(rows: Any) -> int | None:
    """Return how many rows a data set has, None of a stream and of no data set."""
    return len(rows) if hasattr(rows, "__len__") else None


def refuse_streaming(given: Any, args: TrainingConfig, *, groups: bool) -> None:
    """Refuse a stream together with what needs to know how many rows there are, or to see them in any order.

    Raises:
        BallastError: naming the setting.
    """
    if isinstance(given, Streamed) and (problem := streaming_problem(vars(args), groups=groups)):
        raise BallastError(f"training.{problem[0]}: {problem[1]}")
