"""``tokens.json``: what `ballast inspect` keeps of every token of some rows, and what objectives make of it."""

from __future__ import annotations

from pydantic import FiniteFloat, model_validator

from ballast.records.schema import Record, Values, Versioned

Column = tuple[FiniteFloat, ...]
"""One value per trained token."""


class TokenRow(Record):
    """A row of the data, or a piece of one that was split: its tokens, and statistics of those that are trained.

    Attributes:
        row: counted from 1.
        text: every token as text.
        trained: places in `text` of the trained tokens.
        logprob, entropy, kl, mass: under the live model; ``kl`` is to the reference; nats.
        ref_logprob, ref_entropy, ref_mass: under the reference.
    """

    row: int
    text: tuple[str, ...]
    trained: tuple[int, ...]
    logprob: Column
    entropy: Column
    kl: Column
    mass: Column
    ref_logprob: Column
    ref_entropy: Column
    ref_mass: Column

    @model_validator(mode="after")
    def _one_each(self) -> TokenRow:
        columns = (self.logprob, self.entropy, self.kl, self.mass, self.ref_logprob, self.ref_entropy, self.ref_mass)
        inside = all(0 <= place < len(self.text) for place in self.trained)
        if not inside or any(len(column) != len(self.trained) for column in columns):
            raise ValueError(f"row {self.row}: {len(self.trained)} trained tokens, and not as many statistics")
        return self


class TokenWeights(Record):
    """What an objective makes of a row: one value per trained token.

    Attributes:
        extra: its further loss, None where that is 0 everywhere.
        selected: what it was picked out by; empty text where it was not.
        logprob: under inputs of its own, None where these are the row's.
    """

    weight: Column
    extra: Column | None
    selected: tuple[str, ...]
    logprob: Column | None


class Histogram(Record):
    """Weights of `tokens` tokens of `rows` rows; `zero` of them are exactly 0."""

    edges: Column
    counts: tuple[int, ...]
    zero: int
    tokens: int
    rows: int


class TokenObjective(Record):
    """An objective with its options, and what it makes of each of the rows.

    Attributes:
        mean_weight, end_weight: mean weight of all tokens, and of those that end a turn, over the rows that the
            histogram counts; None where there is none, or weights carry gradient.
        end_warning: what to say of an end of turn that is hardly taught, else "".
    """

    label: str
    name: str
    options: Values
    note: str
    rows: tuple[TokenWeights, ...]
    histogram: Histogram | None
    mean_weight: FiniteFloat | None = None
    end_weight: FiniteFloat | None = None
    end_warning: str = ""


class TokensRecord(Versioned):
    """The whole of ``tokens.json``; `same` is whether live model and reference are one."""

    live: str
    reference: str
    same: bool
    data: tuple[str, ...]
    rows: tuple[TokenRow, ...]
    objectives: tuple[TokenObjective, ...]

    @model_validator(mode="after")
    def _one_weight_each(self) -> TokensRecord:
        counts = [len(row.trained) for row in self.rows]
        for one in self.objectives:
            if [len(row.weight) for row in one.rows] != counts or [len(row.selected) for row in one.rows] != counts:
                raise ValueError(f"objective {one.label!r} has not one weight for each token")
        return self
